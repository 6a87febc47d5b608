"""Executors of concurrent.futures that were not shut down."""

import asyncio
import gc
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from loopwatch import _core
from loopwatch.errors import ExecutorLeakError
from loopwatch.leaks.kinds import Kind, Leak, Session
from loopwatch.leaks.loopfds import open_loops
from loopwatch.leaks.origins import Resource, ResourceSession, creation_of, with_holders

if TYPE_CHECKING:
    from loopwatch.leaks.owners import Search

__all__ = ["ExecutorKind", "LeakedExecutor"]


@dataclass(frozen=True)
class LeakedExecutor(Resource):
    """An executor that was made, put to work, and not shut down.

    name: its class, with the prefix of its threads' names where one was given.  workers: how many threads or processes
    it has.  queued: how many jobs wait for one.  holder: who holds it, in words.
    executor_ref: the executor; None in a pickled copy.
    """

    kind: ClassVar[str] = "executor"
    title: ClassVar[str] = "Executor"
    live: ClassVar[tuple[str, ...]] = ("executor_ref",)

    workers: int = 0
    queued: int = 0
    processes: bool = False
    holder: str | None = None
    executor_ref: Any = field(default=None, compare=False)

    def _workers_text(self) -> str:
        what = "process" if self.processes else "thread"
        plural = "" if self.workers == 1 else "es" if self.processes else "s"
        return f"{self.workers} worker {what}{plural}" + (f", {self.queued} jobs queued" if self.queued else "")

    def tail(self) -> str:
        return f"not shut down, {self._workers_text()}" + (f", held by {self.holder}" if self.holder else "")

    def facts(self) -> Iterable[tuple[str, str | None]]:
        yield "Workers", self._workers_text()
        yield "Held by", self.holder or self.unsearched
        yield "End it with", "shutdown(), or `with` around its use"

    def covers(self) -> Collection[object]:
        executor = self.executor_ref
        if executor is None:
            return ()
        helpers = (
            getattr(executor, "_executor_manager_thread", None),
            getattr(getattr(executor, "_call_queue", None), "_thread", None),
        )
        parts = (getattr(executor, "_threads", None) or (), getattr(executor, "_processes", None) or (), helpers)
        return {part for several in parts for part in list(several) if part is not None}


class ExecutorKind(Kind):
    """Thread and process pools made under the guard that have workers and were not shut down.

    A pool that was never used has none and is no leak.  Nor is the default executor of an open event loop, which
    ``asyncio.run`` shuts down at its end.
    """

    name: ClassVar[str] = "executors"
    error = ExecutorLeakError

    def begin(self) -> Session:
        return _Session()


class _Session(ResourceSession):
    def __init__(self) -> None:
        self._open = True
        _core.openings_begin()
        super().__init__()
        self._apart: list[Leak] = []
        self._left: list[LeakedExecutor] = []

    def look(self) -> list[Leak]:
        self._apart, self._left = [], []
        if not self._open:
            return []
        for executor, origin, _count in _core.executors_made(self.serial):
            workers = _workers(executor)
            if workers == 0 or _is_shut_down(executor) or _is_default(executor):
                continue
            leak = LeakedExecutor(
                name=_name(executor),
                creation_stack=creation_of(origin),
                workers=workers,
                queued=_queued(executor),
                processes=hasattr(executor, "_processes"),
                executor_ref=executor,
            )
            (self._apart if self.foreign(origin) else self._left).append(leak)
        return list(self._left)

    def complete(self, leaks: Sequence[Any], search: "Search") -> list[Leak]:
        return with_holders(leaks, [leak.executor_ref for leak in leaks], search)

    def apart(self) -> list[Leak]:
        return list(self._apart)

    def cancel(self, leaks: Sequence[Leak]) -> list[Leak]:
        refused = []
        for leak in leaks:
            executor = getattr(leak, "executor_ref", None)
            if executor is None:
                refused.append(leak)
            else:
                executor.shutdown(wait=False, cancel_futures=True)
        return refused

    def end(self) -> None:
        if self._open:
            self._open = False
            _core.openings_end()
        super().end()


def _workers(executor: Any) -> int:
    processes = getattr(executor, "_processes", None)
    if processes is not None:
        return len(processes)
    return sum(thread.is_alive() for thread in list(getattr(executor, "_threads", ()) or ()))


def _is_shut_down(executor: Any) -> bool:
    return bool(getattr(executor, "_shutdown", False) or getattr(executor, "_shutdown_thread", False))


def _is_default(executor: Any) -> bool:
    """Whether an open loop keeps it as its default executor: the loop shuts it down."""
    loop = asyncio._get_running_loop()
    if loop is not None and getattr(loop, "_default_executor", None) is executor:
        return True
    if getattr(executor, "_thread_name_prefix", None) not in ("asyncio", "uvloop"):
        return False
    for one in open_loops():
        if getattr(one, "_default_executor", None) is executor or any(
            held is executor for held in gc.get_referents(one)
        ):
            return True
    return False


def _queued(executor: Any) -> int:
    queue = getattr(executor, "_work_queue", None)
    if queue is not None:
        return int(queue.qsize())
    return len(getattr(executor, "_pending_work_items", ()) or ())


def _name(executor: Any) -> str:
    prefix = str(getattr(executor, "_thread_name_prefix", "") or "")
    kind = type(executor).__qualname__
    return kind if not prefix or prefix.startswith("ThreadPoolExecutor-") else f"{kind} {prefix!r}"
