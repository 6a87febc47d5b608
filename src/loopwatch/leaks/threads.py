"""``no_thread_leaks``: threads that a scope started and left running.

Which threads began in the scope is read from the interpreter's own list of threads, so nothing that is patched can hide
one; where each was started is told by the core's hooks on ``_thread`` while a guard is open.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from traceback import FrameSummary
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from loopwatch import _core
from loopwatch.actions import Action, LeakAction
from loopwatch.errors import ThreadLeakError
from loopwatch.leaks import thread_roles as roles
from loopwatch.leaks.guard import LeakGuard
from loopwatch.leaks.kinds import Kind, Leak, Session
from loopwatch.leaks.origins import without_runners
from loopwatch.leaks.suppress import Ignores, NameFilter
from loopwatch.leaks.thread_findings import LeakedThread, LeakedThreadPool
from loopwatch.leaks.thread_waits import clipped, doing_text, interpreters_stack
from loopwatch.settings import DEFAULT_THREAD_NAME_FILTER
from loopwatch.stacks import summary_from_raw
from loopwatch.visits import decorate_bare, decorated_function

if TYPE_CHECKING:
    from loopwatch._core import RawDoing, RawThread, ThreadRecord

__all__ = ["DEFAULT_THREAD_NAME_FILTER", "LeakedThread", "LeakedThreadPool", "ThreadKind", "no_thread_leaks"]

_F = TypeVar("_F", bound=Callable[..., Any])


@overload
def no_thread_leaks(
    action: Action = ...,
    name_filter: NameFilter = ...,
    logger: logging.Logger | None = ...,
    exclude_daemon: bool = ...,
    grace_period: float = ...,
    *,
    native: bool = ...,
    ignore: Ignores = ...,
) -> LeakGuard: ...
@overload
def no_thread_leaks(action: _F, /) -> _F: ...
def no_thread_leaks(
    action: Any = LeakAction.WARN,
    name_filter: NameFilter = DEFAULT_THREAD_NAME_FILTER,
    logger: logging.Logger | None = None,
    exclude_daemon: bool = True,
    grace_period: float = 0.1,
    *,
    native: bool = False,
    ignore: Ignores = (),
) -> Any:
    """Find threads that the guarded code starts and that still run when it ends.

    Use it as ``with``, as ``async with`` (which never blocks the loop), or as a decorator of a function, sync or async,
    with or without parentheses.

    action: what happens to leaked threads: "warn" (default), "log", "cancel" (which cancels a ``threading.Timer`` and
        warns of all others: a thread cannot be stopped from outside), "raise", a callable that takes the list of
        LeakedThread, or a sequence of several.
    name_filter: report threads of this name only: a string (matched whole) or a compiled regular expression
        (searched), None for all.  Default: all but ``asyncio_0``, ``asyncio_1``, ..., the workers of asyncio's own
        executor.
    logger: where "log" writes; default ``logging.getLogger("loopwatch")``.
    exclude_daemon: leave out threads that were made with ``daemon=True``.  Default True.
    grace_period: seconds to wait at most for threads to end; it goes on as soon as they have.  Default 0.1.
    native: report threads too that no Python code started, by the name that the kernel has for them.  Default False.
    ignore: what to overlook: ``loopwatch.Ignore``, strings or compiled regular expressions (names).

    Idle workers that a running event loop owns, of its default executor or of anyio, are not leaks.  A thread begun
    inside another guard that is open at the same time, in another task or thread, is that guard's to report.

    Raises TypeError or ValueError for options that are wrong; at the exit, with the action "raise", ThreadLeakError.
    An exception of the guarded code is never replaced: it carries the findings as a note.
    """
    if decorated_function(action):
        return decorate_bare(no_thread_leaks(), action)
    kind = ThreadKind(exclude_daemon=exclude_daemon, native=native)
    return LeakGuard(
        "no_thread_leaks",
        [kind],
        action,
        name_filter=name_filter,
        logger=logger,
        grace_period=grace_period,
        ignore=ignore,
    )


class ThreadKind(Kind):
    """Threads.  exclude_daemon, native: as in ``no_thread_leaks``."""

    name: ClassVar[str] = "threads"
    error = ThreadLeakError
    refusal: ClassVar[str] = (
        "Threads cannot be stopped from outside: tell the thread to end (an Event, a sentinel in its queue, shutdown() "
        "of its executor), then join() it."
    )

    def __init__(self, *, exclude_daemon: bool = True, native: bool = False) -> None:
        for option, value in (("exclude_daemon", exclude_daemon), ("native", native)):
            if not isinstance(value, bool):
                raise TypeError(f"{option} must be True or False, got {value!r} of type {type(value).__name__}")
        self._exclude_daemon = exclude_daemon
        self._native = native

    def begin(self) -> "ThreadSession":
        return ThreadSession(self._exclude_daemon, self._native)


@dataclass(frozen=True)
class _Candidate:
    """A thread begun in the scope.  ``id`` is its thread state's number, 0 for a native one."""

    id: int
    ident: int
    native_id: int
    record: "ThreadRecord | None"
    thread: threading.Thread | None
    foreign: bool


class ThreadSession(Session):
    """Threads begun since it was made."""

    def __init__(self, exclude_daemon: bool, native: bool) -> None:
        self._exclude_daemon = exclude_daemon
        self._before = _tasks() if native else None
        self._apart: list[Leak] = []
        self._scope = _core.ThreadScope()

    def look(self) -> list[Leak]:
        self._apart = []
        rows = self._scope.threads()
        if not rows and self._before is None:
            return []
        candidates = [*self._python(rows), *self._native(rows)]
        if not candidates:
            return []
        seen = _core.threads_doing([(one.id, one.native_id) for one in candidates])
        return self._judge([(one, _whole_stack(one, raw), raw) for one, raw in zip(candidates, seen, strict=True)])

    def apart(self) -> list[Leak]:
        return self._apart

    def cancel(self, leaks: Sequence[Leak]) -> list[Leak]:
        refused = []
        for leak in leaks:
            thread = leak.thread_ref if isinstance(leak, LeakedThread) else None
            if isinstance(thread, threading.Timer):
                thread.cancel()
            else:
                refused.append(leak)
        return refused

    def end(self) -> None:
        with contextlib.suppress(Exception):
            self._scope.close()

    def _python(self, rows: Sequence["RawThread"]) -> Iterator[_Candidate]:
        """What Python code started, and what C code started that is known to Python, where that is asked for."""
        known = {thread.ident: thread for thread in threading.enumerate()} if rows else {}
        for state, ident, native_id, begun, record, foreign in reversed(rows):
            thread = known.get(ident)
            if record is not None and record.threading:
                thread = record.thread
                if thread is None or not thread.is_alive():
                    continue  # it is ending
            elif isinstance(thread, threading._DummyThread):
                thread = None
            if record is None and thread is None and begun != 1 and not self._is_new(native_id):
                continue
            if thread is not None and (roles.is_harmless(thread) or (self._exclude_daemon and thread.daemon)):
                continue
            yield _Candidate(state, ident, native_id, record, thread, bool(foreign))

    def _is_new(self, native_id: int) -> bool:
        return self._before is not None and native_id not in self._before

    def _native(self, rows: Sequence["RawThread"]) -> Iterator[_Candidate]:
        if self._before is None:
            return
        own = {row[2] for row in rows} | {threading.get_native_id(), *_core.own_tids()}
        for native_id in sorted(_tasks() - self._before - own):
            yield _Candidate(0, 0, native_id, None, None, False)

    def _judge(self, seen: Sequence[tuple[_Candidate, list[FrameSummary], "RawDoing"]]) -> list[Leak]:
        found: list[Leak] = []
        pools: dict[Any, list[tuple[LeakedThread, bool]]] = {}
        executors: dict[Any, Any] = {}
        for one, frames, raw in seen:
            if raw[0] == "ended" or (one.id == 0 and raw[0] == "unknown"):
                continue
            leak = _finding(one, frames, raw)
            idle = roles.is_idle(one.thread, leak.state, frames)
            if one.foreign:
                self._apart.append(leak)
            elif one.thread is not None and roles.is_worker(one.thread):
                executor = roles.executor_of(one.thread)
                key = id(executor) if executor is not None else one.thread.name.rpartition("_")[0]
                executors[key] = executor
                pools.setdefault(key, []).append((leak, idle))
            elif one.thread is None or not (idle and roles.loops_own(one.thread, None)):
                found.append(leak)
        for key, members in pools.items():
            self._judge_pool(executors[key], members, found)
        return found

    def _judge_pool(self, executor: Any, members: Sequence[tuple[LeakedThread, bool]], found: list[Leak]) -> None:
        workers = [leak for leak, _idle in members]
        busy = [leak for leak, idle in members if not idle]
        first = workers[0].thread_ref
        if not busy and first is not None and roles.loops_own(first, executor):
            return
        pool = LeakedThreadPool.of(workers, busy)
        older = executor is not None and roles.older_workers(executor, [worker.thread_ref for worker in workers])
        (self._apart if older else found).append(pool)


def _tasks() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def _whole_stack(one: _Candidate, raw: "RawDoing") -> list[FrameSummary]:
    if raw[4] is not None:
        return summary_from_raw(raw[4])
    return interpreters_stack(one.ident) if one.ident else []


def _finding(one: _Candidate, frames: list[FrameSummary], raw: "RawDoing") -> LeakedThread:
    state, call, argument, holder, _frames = raw
    thread, record = one.thread, one.record
    target: str | None
    module: str | None
    role: str | None
    if thread is not None:
        target, module = roles.target_of(thread)
        name, role = thread.name or f"<unnamed-{one.ident}>", roles.role_of(thread, record.born_ns if record else None)
    elif record is not None:
        target, module = record.target, record.module
        name, role = target or _kernels_name(one.native_id), "made by the _thread module, so nothing can join it"
    else:
        target = module = None
        name, role = _kernels_name(one.native_id), "not started by threading" if one.id else "started by C code"
    state = "new" if one.native_id == 0 else state
    creation = without_runners(summary_from_raw(record.creation() if record else ()))
    return LeakedThread(
        name=name,
        ident=one.ident,
        native_id=one.native_id,
        daemon=thread.daemon if thread is not None else True,
        doing=doing_text(state, call, argument, holder, frames),
        state=state,
        current_stack=clipped(frames) or None,
        creation_stack=clipped(creation) or None,
        target=target,
        role=role,
        thread_ref=thread,
        target_module=module,
    )


def _kernels_name(native_id: int) -> str:
    try:
        with open(f"/proc/self/task/{native_id}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().removesuffix("\n")
    except OSError:
        return f"<native-{native_id}>"
