"""The loops that a monitor counts, and what it holds open on each.

While a loop runs: a scope for blocks and the loop's statistics.  From its first run until it is closed: the tracking of
its tasks, as tasks outlive a ``run_until_complete()``.  All is opened and closed on the loop's own thread; what the
counters of a run said is kept when it ends, and added to those of the next.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loopwatch import _core
from loopwatch.blocks import thread_name
from loopwatch.discovery import call_in_loop, subscribe, unsubscribe
from loopwatch.leaks.task_ends import ExceptionTap
from loopwatch.loops import LoopScope, open_scope, running_loop
from loopwatch.monitor.histogram import Histogram
from loopwatch.monitor.readings import LoopReading
from loopwatch.monitor.timers import TimerBook
from loopwatch.printable import printable

if TYPE_CHECKING:
    from loopwatch._core import LoopStats, RawBlock, TaskFactory

__all__ = ["LoopBook", "WatchedLoop"]

_CLOSING = 1.0  # seconds that stop() waits for the loops of other threads
_NAMES = 100  # characters of a loop's repr
_REASONS = 20


class WatchedLoop:
    """One loop with what is open on it."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.name = printable(repr(loop))[:_NAMES]
        self.kind, self.exact = "generic", False
        self.opening = True
        self.scope: LoopScope | None = None
        self.stats: LoopStats | None = None
        self.tasks: TaskFactory | None = None
        self.tap: ExceptionTap | None = None
        self.thread_id = self.native_id = 0
        self.lag, self.callbacks = Histogram(), Histogram()  # of the runs that ended
        self.since = time.monotonic()
        self.timers = TimerBook(loop)

    @property
    def closed(self) -> bool:
        """Whether it can never run again."""
        is_closed = getattr(self.loop, "is_closed", None)
        return not self.opening and self.scope is None and (is_closed is None or bool(is_closed()))

    @property
    def busy_since(self) -> int:
        """When the span that lasts began, monotonic nanoseconds; 0 where it waits, or does not run."""
        scope = self.scope
        return 0 if scope is None else scope.watch.busy_since

    def open(self, threshold_ns: int, interval_ns: int, on_block: "Callable[[RawBlock], object]") -> None:
        """In the loop's thread: it runs."""
        self.thread_id, self.native_id = threading.get_ident(), threading.get_native_id()
        self.scope = scope = open_scope(threshold_ns, interval_ns, on_block)
        self.kind, self.exact = scope.kind, scope.exact
        self.stats = scope.watch.stats_open()
        if self.tasks is None and isinstance(self.loop, asyncio.AbstractEventLoop):
            self.tasks = _core.tasks_open(self.loop)
            _core.tasks_adopt(self.tasks, list(asyncio.all_tasks(self.loop)))
            self.tap = ExceptionTap.of(self.loop)
            self.tap.sessions.append(self)

    def told(self, context: Mapping[str, Any]) -> None:
        """The loop's exception handler is called: for a task that dies, whose exception nobody asked for?"""
        task = context.get("future")
        if isinstance(task, asyncio.Task) and task.done() and isinstance(context.get("exception"), BaseException):
            _core.count_unretrieved(task)

    def close_run(self) -> "list[RawBlock]":
        """In the loop's thread: it runs no more."""
        scope, stats, self.scope, self.stats = self.scope, self.stats, None, None
        if scope is None:
            return []
        if stats is not None:
            raw = stats.read()
            self.lag = self.lag.plus(Histogram.from_raw(raw["lag"]))
            self.callbacks = self.callbacks.plus(Histogram.from_raw(raw["callbacks"]))
            scope.watch.stats_close()
        return scope.close()

    def close(self) -> "list[RawBlock]":
        """Undo everything."""
        blocks = self.close_run()
        tasks, self.tasks = self.tasks, None
        if self.tap is not None:
            self.tap.leave(self)
            self.tap = None
        if tasks is not None:
            _core.tasks_close(tasks)
        self.timers.end()
        return blocks

    def read(self, before: LoopReading | None) -> LoopReading:
        """What it did so far.  ``before`` is the reading that the utilization is told since."""
        lag, callbacks, ready, timers, busy = self.lag, self.callbacks, None, None, 0.0
        scope, stats = self.scope, self.stats
        now = time.monotonic()
        if scope is not None and stats is not None:
            raw = stats.read()
            lag = lag.plus(Histogram.from_raw(raw["lag"]))
            callbacks = callbacks.plus(Histogram.from_raw(raw["callbacks"]))
            ready, timers = raw["ready"], raw["timers"]
            since = self.busy_since
            busy = max(0.0, now - since / 1e9) if since else 0.0
        reading = LoopReading(
            name=self.name,
            kind=self.kind,
            exact=self.exact,
            running=scope is not None,
            thread=thread_name(self.native_id, self.thread_id),
            thread_id=self.thread_id,
            native_id=self.native_id,
            since=self.since,
            lag=lag,
            callbacks=callbacks,
            utilization=0.0,
            utilization_overall=_share(lag.sum + busy, now - self.since),
            ready=ready,
            timers=timers,
            busy=busy,
        )
        passed, worked = now - self.since, lag.sum + busy
        if before is not None:
            passed, worked = now - before.read_at, worked - before.lag.sum - before.busy
        return replace(reading, utilization=_share(worked, passed), read_at=now)


class LoopBook:
    """All loops; a listener of the discovery.  ``on_block`` gets raw blocks, ``on_loop`` is called for each loop that
    starts to run; both in the loop's thread."""

    def __init__(
        self,
        threshold_ns: int,
        interval_ns: int,
        on_block: "Callable[[RawBlock, str], object]",
        on_loop: Callable[[], object],
    ) -> None:
        self._on_loop = on_loop
        self._threshold_ns = threshold_ns
        self._interval_ns = interval_ns
        self._on_block = on_block
        self._loops: dict[int, WatchedLoop] = {}
        self.unwatched: list[str] = []
        self.ended = 0
        self.ended_lag = Histogram()

    def start(self) -> None:
        """Watch all loops, now and later."""
        subscribe(self, existing=True)

    def stop(self) -> None:
        """Undo everything.  A loop of another thread that does not come back within a second is let go when it does."""
        unsubscribe(self)
        own = threading.get_ident()
        waiting: list[threading.Event] = []
        for watched in list(self._loops.values()):
            if watched.scope is None or watched.thread_id == own:
                self._close(watched)
                continue
            done = threading.Event()

            def close(watched: WatchedLoop = watched, done: threading.Event = done) -> None:
                self._close(watched)
                done.set()

            if call_in_loop(watched.loop, close):
                waiting.append(done)
            else:
                self._close(watched)
        until = time.monotonic() + _CLOSING
        for done in waiting:
            done.wait(max(0.0, until - time.monotonic()))
        self._loops.clear()

    def after_fork(self) -> None:
        """In a forked child: only this thread's loop is there still."""
        unsubscribe(self)
        for watched in list(self._loops.values()):
            if watched.thread_id == threading.get_ident():
                self._close(watched)
        self._loops.clear()

    @property
    def loops(self) -> list[WatchedLoop]:
        """Those that are not closed.  Forgets the others."""
        for key, watched in list(self._loops.items()):
            if watched.closed:
                self._forget(key, watched)
        return list(self._loops.values())

    def loop_started(self, loop: Any) -> None:
        """In the loop's thread."""
        ident = threading.get_ident()
        for key, watched in list(self._loops.items()):
            if watched.thread_id == ident and watched.closed:
                self._forget(key, watched)
        known = self._loops.get(id(loop))
        if known is None or known.loop is not loop:
            known = self._loops[id(loop)] = WatchedLoop(loop)
        name = known.name
        try:
            if known.scope is None and running_loop() is loop:
                self._on_loop()
                known.open(self._threshold_ns, self._interval_ns, lambda raw: self._on_block(raw, name))
        except Exception as error:
            self.loop_unseen(f"{type(loop).__module__}.{type(loop).__qualname__}: {type(error).__name__}: {error}")
        finally:
            known.opening = False

    def loop_stopped(self, loop: Any) -> None:
        """In the loop's thread."""
        known = self._loops.get(id(loop))
        if known is not None and known.loop is loop:
            for raw in known.close_run():
                self._on_block(raw, known.name)

    def loop_unseen(self, reason: str) -> None:
        """Some loops will not be told of."""
        if reason not in self.unwatched and len(self.unwatched) < _REASONS:
            self.unwatched.append(reason)

    def _forget(self, key: int, watched: WatchedLoop) -> None:
        if self._loops.get(key) is watched:
            del self._loops[key]
        self._close(watched)
        self.ended += 1
        self.ended_lag = self.ended_lag.plus(watched.lag)

    def _close(self, watched: WatchedLoop) -> None:
        with contextlib.suppress(Exception):
            for raw in watched.close():
                self._on_block(raw, watched.name)


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0
