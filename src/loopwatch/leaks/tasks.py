"""``no_task_leaks``: asyncio tasks that a scope created and that have not ended when it does.

What was created where is recorded by the core, at no noticeable cost; a guard reads a counter when it is entered, and
looks at the tasks created since when it is left, however many others there are.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from traceback import FrameSummary, StackSummary
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from loopwatch import _core, requests
from loopwatch.actions import Action, LeakAction
from loopwatch.errors import TaskLeakError
from loopwatch.leaks.coroutines import CoroutineKind
from loopwatch.leaks.effort import allowed
from loopwatch.leaks.guard import LeakGuard
from loopwatch.leaks.kinds import Kind, Leak, Session
from loopwatch.leaks.origins import without_runners
from loopwatch.leaks.suppress import Ignores, NameFilter
from loopwatch.leaks.task_ends import DestroyedTaskKind, TaskExceptionKind
from loopwatch.leaks.task_findings import LeakedTask, TaskState
from loopwatch.leaks.task_scopes import BornTasks, Scope, Token, check_scope
from loopwatch.loops import running_loop
from loopwatch.stacks import summary_from_raw
from loopwatch.visits import current_task, decorated_function

if TYPE_CHECKING:
    from loopwatch._core import TaskRecord
    from loopwatch.leaks.owners import Search

__all__ = [
    "CoroutineKind",
    "DestroyedTaskKind",
    "LeakedTask",
    "TaskExceptionKind",
    "TaskKind",
    "TaskState",
    "no_task_leaks",
]

_F = TypeVar("_F", bound=Callable[..., Any])
_PAST_FACTORY = (
    "the task was not made by the loop's create_task() but past it, by asyncio.Task() or by a task factory that was "
    "set after the guard was entered"
)
_MOST_BLOCKS = 1_500_000  # of memory: where there are more, not even their list is made
_WOKEN_FROM_OUTSIDE = ("timer", "socket", "executor", "thread", "process", "ready", "running", "done", "closed_loop")
_OTHER_LOOP = "its event loop was made while the guard was open, or runs in another thread"


@overload
def no_task_leaks(
    action: Action = ...,
    name_filter: NameFilter = ...,
    logger: logging.Logger | None = ...,
    *,
    enable_creation_tracking: bool = ...,
    grace_period: float = ...,
    scope: Scope = ...,
    ignore: Ignores = ...,
) -> LeakGuard: ...
@overload
def no_task_leaks(action: _F, /) -> _F: ...
def no_task_leaks(
    action: Any = LeakAction.WARN,
    name_filter: NameFilter = None,
    logger: logging.Logger | None = None,
    *,
    enable_creation_tracking: bool = False,
    grace_period: float = 0.1,
    scope: Scope = "descendants",
    ignore: Ignores = (),
) -> Any:
    """Find asyncio tasks that the guarded code creates and that have not ended when it does.

    Use it as ``async with``, or as a decorator of an async function, with or without parentheses.

    action: what happens to leaked tasks: "warn" (default), "log", "cancel" (which cancels them, waits until they have
        ended, and warns of those that do not), "raise", a callable that takes the list of LeakedTask, or a sequence of
        several.
    name_filter: report tasks of this name only: a string (matched whole) or a compiled regular expression (searched).
    logger: where "log" writes; default ``logging.getLogger("loopwatch")``.
    enable_creation_tracking: whether texts show the stack that created a task.  It is known either way.
    grace_period: seconds to wait at most for tasks to end; it goes on as soon as they have, or as nothing on the loop
        can make progress any more.  Default 0.1.
    scope: "descendants" (default): tasks created under the guard, and by those; other tasks that were created on the
        loop meanwhile are told apart and fail nothing.  "loop": all of these.  "process": those of every loop, which
        costs a search of all objects at the entry and at the exit.
    ignore: what to overlook: ``loopwatch.Ignore``, strings or compiled regular expressions (names).

    Raises TypeError or ValueError for options that are wrong; RuntimeError where no event loop runs, or when entered
    with a sync ``with``; at the exit, with the action "raise", TaskLeakError.  An exception of the guarded code is
    never replaced: it carries the findings as a note.
    """
    if decorated_function(action):
        return no_task_leaks()(action)
    return LeakGuard(
        "no_task_leaks",
        [TaskKind(enable_creation_tracking=enable_creation_tracking, scope=scope)],
        action,
        name_filter=name_filter,
        logger=logger,
        grace_period=grace_period,
        ignore=ignore,
        asynchronous=True,
    )


class TaskKind(Kind):
    """Tasks.  enable_creation_tracking, scope: as in ``no_task_leaks``."""

    name: ClassVar[str] = "tasks"
    needs_loop: ClassVar[bool] = True
    error = TaskLeakError
    refusal: ClassVar[str] = "A task whose loop is closed cannot be cancelled."

    def __init__(self, *, enable_creation_tracking: bool = False, scope: Scope = "descendants") -> None:
        if not isinstance(enable_creation_tracking, bool):
            raise TypeError(f"enable_creation_tracking must be True or False, got {enable_creation_tracking!r}")
        self._show_creation = enable_creation_tracking
        self._scope = check_scope(scope)

    def begin(self) -> "TaskSession":
        return TaskSession(self._scope, self._show_creation)


class TaskSession(Session):
    """Tasks created since it was made."""

    def __init__(self, scope: Scope, show_creation: bool) -> None:
        self._scope = scope
        self._show_creation = show_creation
        self._owner = current_task()
        self._apart: list[Any] = []
        self._known: dict[int, tuple[Any, LeakedTask]] = {}
        self._born = BornTasks(process=scope == "process")
        self._token = Token()

    def look(self) -> list[Leak]:
        self._apart = []
        found: list[Leak] = []
        pairs = self._born.pairs(pending=True)
        if not pairs:
            self._known = {}
            return found
        here = current_task()
        known: dict[int, tuple[Any, LeakedTask]] = {}
        for task, record in pairs:
            if task is here or task is self._owner:
                continue
            if self._scope == "descendants" and not self._token.covers_task(task):
                self._apart.append((task, record))
                continue
            waiter, leak = self._known.get(id(task), (self, None))
            now = getattr(task, "_fut_waiter", None)
            if leak is None or now is None or waiter is not now or leak.task_ref is not task:
                leak = task_finding(task, record, self._show_creation)
            known[id(task)] = (now, leak)
            found.append(leak)
        self._known = known
        return found

    def settled(self) -> str | None:
        quiescent = _quiescent()
        return None if quiescent is None else quiescent(running_loop())

    def cancel(self, leaks: Sequence[Leak]) -> list[Leak]:
        refused: list[Leak] = []
        here = running_loop()
        for leak in leaks:
            task = leak.task_ref if isinstance(leak, LeakedTask) else None
            try:
                assert task is not None
                loop = task.get_loop()
                if loop is here:
                    task.cancel()
                else:
                    loop.call_soon_threadsafe(task.cancel)
            except Exception:  # its loop is closed, or it is no Task but somebody's own make
                refused.append(leak)
        return refused

    def complete(self, leaks: Sequence[Leak], search: "Search") -> list[Leak]:
        return with_proofs(leaks)

    def apart(self) -> list[Leak]:
        return [task_finding(task, record, self._show_creation) for task, record in self._apart if not task.done()]

    def end(self) -> None:
        try:
            self._token.close()
            self._born.close()
        except Exception:
            logging.getLogger("loopwatch").exception("loopwatch could not end a look for tasks")
        self._owner = None
        self._apart = []
        self._known = {}


def task_finding(task: Any, record: "TaskRecord | None", show_creation: bool) -> LeakedTask:
    """What there is to say about a task, now."""
    creation, reason = creation_of(record)
    frames, wait, wait_kind = _waiting(task)
    qualname, module = coroutine_names(task)
    return LeakedTask(
        task_id=id(task),
        name=task_name(task),
        state=_state(task),
        current_stack=frames or None,
        creation_stack=creation,
        task_ref=task,
        wait=wait,
        wait_kind=wait_kind,
        qualname=qualname,
        age=None if record is None or creation is None else max(0.0, time.monotonic() - record.born_ns / 1e9),
        parent=None if record is None else record.parent,
        cancelling=_cancelling(task),
        show_creation=show_creation,
        missing_reason=reason,
        module=module,
        request=requests.of_task(task),
    )


def creation_of(record: "TaskRecord | None") -> tuple[list[FrameSummary] | None, str | None]:
    """The creation stack of a task; None, and why, where it is not known."""
    if record is None:
        return None, _OTHER_LOOP
    raw = record.frames()
    if raw is None:
        return None, _PAST_FACTORY
    return without_runners(summary_from_raw(raw)), None


def task_name(task: Any) -> str:
    try:
        name = str(task.get_name())
    except Exception:  # somebody's own make
        name = ""
    return name or f"<unnamed-{id(task)}>"


def coroutine_names(task: Any) -> tuple[str, str | None]:
    """The qualified name of a task's coroutine, and the module of its frame's globals."""
    coroutine = _core.task_coroutine(task)
    frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
    module = None if frame is None else frame.f_globals.get("__name__")
    name = getattr(coroutine, "__qualname__", None) or getattr(coroutine, "__name__", None) or ""
    return str(name), module if isinstance(module, str) else None


def _state(task: Any) -> TaskState:
    if task.cancelled():
        return TaskState.CANCELLED
    return TaskState.DONE if task.done() else TaskState.RUNNING


def _cancelling(task: Any) -> int:
    try:
        return int(task.cancelling())
    except Exception:
        return 0


def _waiting(task: Any) -> tuple[list[FrameSummary], str | None, str | None]:
    """The chain of awaits down to the innermost frame, and what is waited for at its end, in words and in one."""
    try:
        from loopwatch.leaks.waits import wait_of
    except ImportError:
        return summary_from_raw(_core.await_chain(task)[0]), None, None
    wait = wait_of(task)
    return StackSummary(wait.frames), wait.text, wait.kind


def with_proofs(leaks: Sequence[Any]) -> list[Leak]:
    """The findings with why only ``cancel()`` can end them, where that can be proved."""
    asked = [leak.task_ref for leak in leaks if leak.task_ref is not None and leak.wait_kind not in _WOKEN_FROM_OUTSIDE]
    proofs: Mapping[Any, str] = {}
    if asked and sys.getallocatedblocks() < _MOST_BLOCKS:
        with contextlib.suppress(ImportError, RuntimeError):  # an interpreter whose memory cannot be read
            from loopwatch.leaks.waits import stuck

            proofs = stuck(asked, seconds=allowed().proofs)
    return [replace(leak, proof=proofs[leak.task_ref]) if leak.task_ref in proofs else leak for leak in leaks]


def _quiescent() -> Callable[[Any], str | None] | None:
    try:
        from loopwatch.leaks.waits import quiescent
    except ImportError:
        return None
    return quiescent
