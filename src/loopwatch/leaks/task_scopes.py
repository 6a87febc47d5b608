"""Which tasks belong to a scope.

A guard that is entered sets a context variable to a token of its own; asyncio copies the context into every task that
is created there, and into theirs.  So the tasks that carry the token are the scope's descendants, whoever else creates
tasks on the loop meanwhile.  Tokens know the token that they were set under, so that nested guards each see theirs.
"""

import asyncio
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from loopwatch import _core
from loopwatch.leaks.loopfds import open_loops
from loopwatch.loops import running_loop

if TYPE_CHECKING:
    from loopwatch._core import TaskFactory, TaskRecord

__all__ = ["BornTasks", "Scope", "Token", "check_scope"]

Scope = Literal["descendants", "loop", "process"]
_SCOPES: Final = get_args(Scope)


def check_scope(scope: object) -> Scope:
    """Check the option ``scope``.  Raises TypeError and ValueError."""
    if not isinstance(scope, str):
        raise TypeError(f"scope must be one of {', '.join(map(repr, _SCOPES))}, got {scope!r}")
    if scope not in _SCOPES:
        raise ValueError(
            f"scope must be 'descendants' (tasks created under the guard, and theirs), 'loop' (every task created on "
            f"the loop meanwhile) or 'process' (on every loop), got {scope!r}"
        )
    return scope  # type: ignore[return-value]


class Token:
    """What is carried by everything that is created under one visit of a guard."""

    __slots__ = ("_outer", "_set", "open")

    def __init__(self) -> None:
        outer = _core.SCOPE.get(None)
        while outer is not None and not outer.open:  # a scope that ended is of no interest to those below it
            outer = outer._outer
        self._outer: Token | None = outer
        self.open = True
        _core.SCOPE.set(self)

    def covers(self, token: "Token | None") -> bool:
        """Whether what carries that token was created under this one."""
        while token is not None and token is not self:
            token = token._outer
        return token is self

    def covers_task(self, task: Any) -> bool:
        return self.covers(_core.task_token(task))

    def covers_here(self) -> bool:
        """Whether the code that runs now was begun under this token."""
        return self.covers(_core.SCOPE.get(None))

    def close(self) -> None:
        """End the scope.  In another context than it was begun in, that context keeps a token that covers nothing."""
        self.open = False
        if _core.SCOPE.get(None) is self:
            _core.SCOPE.set(self._outer)


class _TrackedLoop:
    """One loop while a session lasts.  ``before`` are its tasks at the entry, where records alone cannot tell."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, own: bool) -> None:
        self.loop = loop
        self.factory: TaskFactory | None = _core.tasks_open(loop)
        # what comes past the factory is seen in the list of the thread that runs here, and by the hook
        self.marked = own and _core.task_list_why() is None
        whole = self.marked and _core.task_list_mark(self.factory)
        self.whole = bool(whole)
        self.before: weakref.WeakSet[Any] | None = None
        if not self.marked and not _core.task_list_hooked():
            self.before = weakref.WeakSet(_all_tasks(loop))

    def close(self) -> None:
        factory, self.factory = self.factory, None
        if factory is not None:
            _core.tasks_close(factory)


class BornTasks:
    """The tasks that were created since it was made: on the running loop, or on all loops where ``process`` is set."""

    def __init__(self, *, process: bool = False) -> None:
        loop = running_loop()
        self._process = process
        self._tracked: dict[int, _TrackedLoop] = {}
        try:
            if isinstance(loop, asyncio.AbstractEventLoop):
                self._tracked[id(loop)] = _TrackedLoop(loop, own=True)
            if process:
                for other in _all_loops():
                    if id(other) not in self._tracked:
                        self._tracked[id(other)] = _TrackedLoop(other, own=False)
        except BaseException:
            self.close()
            raise
        self._mark = _core.task_mark()

    def pairs(self, *, pending: bool) -> "list[tuple[Any, TaskRecord | None]]":
        """Each task with its record, oldest first; without one where it came past the factory."""
        found: list[tuple[Any, TaskRecord | None]] = []
        for tracked in self._tracked.values():
            if tracked.factory is None:
                continue
            if tracked.marked:
                _core.task_list_look(self._mark, tracked.whole)
            found += _core.task_records(tracked.factory, self._mark, pending)
            if tracked.before is not None:
                found += _unrecorded(tracked.loop, tracked.before)
        if self._process:
            for loop in _all_loops():
                if id(loop) not in self._tracked:  # it was made meanwhile, and so were its tasks
                    found += _unrecorded(loop, ())
        return found

    def close(self) -> None:
        for tracked in self._tracked.values():
            tracked.close()


def _unrecorded(loop: asyncio.AbstractEventLoop, before: Any) -> "Iterator[tuple[Any, TaskRecord | None]]":
    for task in _all_tasks(loop):
        if task not in before and _core.task_record(task) is None:
            yield task, None


def _all_tasks(loop: asyncio.AbstractEventLoop) -> set[Any]:
    try:
        return asyncio.all_tasks(loop)
    except RuntimeError:  # other threads create tasks faster than they can be listed
        return set()


def _all_loops() -> list[asyncio.AbstractEventLoop]:
    return open_loops()
