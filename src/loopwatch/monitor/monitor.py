"""``Monitor``: one process, watched for as long as it lives."""

import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from loopwatch import _core
from loopwatch.leaks.suppress import Ignores
from loopwatch.memory.allocations import AllocationTrace
from loopwatch.monitor.alarms import Alarm, AlarmBook
from loopwatch.monitor.blockbook import BlockBook
from loopwatch.monitor.coroutines import CoroutineBook, Sample
from loopwatch.monitor.growth import GrowthReport
from loopwatch.monitor.judges import TaskJudge, TimerJudge
from loopwatch.monitor.lagjudge import HangJudge, LagJudge
from loopwatch.monitor.loopbook import LoopBook, WatchedLoop
from loopwatch.monitor.memoryjudge import MemoryJudge
from loopwatch.monitor.options import MonitorOptions, check_options
from loopwatch.monitor.process import count_objects, gc_pauses, read_process
from loopwatch.monitor.readings import LoopReading, OverheadReading, Reading
from loopwatch.monitor.series import Rule
from loopwatch.monitor.sinks import Destination, Sinks

__all__ = ["Monitor"]

_EXAMPLES = 20  # coroutines of which a reading shows example tasks
_CHECK_NS = 50_000_000
_CHECK_LEAST_NS = 1_000_000
_JOIN = 2.0


class Monitor:
    """Watches all event loops, tasks and memory of this process, and gives an alarm when something grows or hangs.

    Use it as ``Monitor().start()``, or as a context manager.  It may be started again after ``stop()``; both do nothing
    when it runs already, or no longer.  Any number may run at once: they share the counters.

    interval: seconds between two samples.  Default 10.
    window: samples that a series remembers; nothing is said to grow before it is full.  Default 60, ten minutes.
    sigma, consecutive: growth is ``consecutive`` samples (3) in a row above the mean + ``sigma`` (2.0) standard
        deviations of the window before them.
    max_tasks: more old tasks of one coroutine than this are too many, growing or not.  Default 100.
    memory_growth: resident memory may be this fraction above its baseline.  Default 0.5, which is 50 %.
    lag: seconds a loop may be busy without a break before that is a block, and an alarm.  Default 0.2.
    hang: seconds after which a loop that has not come back is an alarm while it still hangs.  Default 10, 0: never.
    repeat: seconds before the same alarm is given again.  Default 3600.
    on_alarm: called with each Alarm, in the monitor's thread.
    logger: where alarms are logged as warnings; default ``logging.getLogger("loopwatch")`` unless any other way is
        given.
    json: a path, or an open file: a line of JSON for each alarm.
    stderr: whether alarms are written to stderr.
    ignore: what to overlook: ``loopwatch.Ignore``, strings or compiled regular expressions (names).
    memory: "sampled" (or True) samples allocations, so that growing memory is named by line; False (default): by type.
    objects: count objects by type in every so many samples; 0 (default): only when memory is suspected to grow.

    Raises TypeError or ValueError for options that are wrong.
    """

    def __init__(
        self,
        *,
        interval: float = 10.0,
        window: int = 60,
        sigma: float = 2.0,
        consecutive: int = 3,
        max_tasks: int = 100,
        memory_growth: float = 0.5,
        lag: float = 0.2,
        hang: float = 10.0,
        repeat: float = 3600.0,
        on_alarm: Callable[[Alarm], object] | None = None,
        logger: logging.Logger | None = None,
        json: Destination | None = None,
        stderr: bool = False,
        ignore: Ignores = (),
        memory: bool | str = False,
        objects: int = 0,
    ) -> None:
        self.options: MonitorOptions = check_options(
            interval=interval,
            window=window,
            sigma=sigma,
            consecutive=consecutive,
            max_tasks=max_tasks,
            memory_growth=memory_growth,
            lag=lag,
            hang=hang,
            repeat=repeat,
            on_alarm=on_alarm,
            logger=logger,
            json=json,
            ignore=ignore,
            memory=memory,
            objects=objects,
        )
        if logger is None and on_alarm is None and json is None and not stderr:
            logger = logging.getLogger("loopwatch")
        self._sinks = Sinks(on_alarm, logger, json, stderr)
        self._lock = threading.RLock()
        self._running: _Run | None = None

    @property
    def running(self) -> bool:
        """Whether it watches now, in this process."""
        return self._running is not None

    def start(self) -> Self:
        """Watch from now on.  Nothing happens if it does already."""
        with self._lock:
            if self._running is None:
                run = _Run(self.options, self._sinks)
                run.start()
                self._running = run
                _alive.add(self)
        return self

    def stop(self) -> None:
        """Watch no longer, and leave nothing behind.  Idempotent.  The last reading can still be had."""
        with self._lock:
            run, self._running = self._running, None
            _alive.discard(self)
        if run is not None:
            run.stop()

    def read(self, *, objects: bool = False, uss: bool = True, examples: int = _EXAMPLES) -> Reading:
        """Take a sample and give all that is known.  It is not fed to the alarms, whose samples come evenly.

        objects: count objects by type as well.  uss: read the memory that is the process's own, which costs some
        milliseconds for a large process.  examples: of how many coroutines, those with the most tasks, to show up to
        three example tasks.  Raises RuntimeError where the monitor does not run.
        """
        run = self._running
        if run is None:
            raise RuntimeError("this Monitor does not run: start() it first")
        return run.read(objects=objects, uss=uss, examples=examples)

    def snapshot(self) -> Reading:
        """All that is known, with objects by type: for ``compare()``."""
        return self.read(objects=True)

    @staticmethod
    def compare(earlier: Reading, later: Reading) -> GrowthReport:
        """What grew between two readings, by creation place, place of waiting and type of object."""
        return GrowthReport.between(earlier, later)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _after_fork(self) -> None:
        """In a forked child: the thread is gone, and so are the other loops."""
        self._lock = threading.RLock()
        run, self._running = self._running, None
        if run is not None:
            run.after_fork()


class _Run:
    """From one start to its stop: what is open, the thread, and the judges."""

    def __init__(self, options: MonitorOptions, sinks: Sinks) -> None:
        self._options = options
        self._sinks = sinks
        self._wake = threading.Event()
        self._end = threading.Event()
        self._sampling = threading.Lock()
        self._thread: threading.Thread | None = None
        lag_ns = round(options.lag * 1e9)
        self._blocks = BlockBook(self._wake)
        self._loops = LoopBook(lag_ns, max(min(_CHECK_NS, lag_ns // 10), _CHECK_LEAST_NS), self._blocks.add)
        self._coroutines = CoroutineBook(max(1.0, options.interval))
        rule = Rule(options.window, options.sigma, options.consecutive)
        self._book = AlarmBook(options.repeat)
        self._trace = AllocationTrace() if options.sampled else None
        self._tasks = TaskJudge(rule, options.max_tasks, options.ignores, self._book, self._coroutines)
        self._timers = TimerJudge(rule, options.ignores, self._book)
        self._memory = MemoryJudge(rule, options.memory_growth, options.ignores, self._book, self._trace)
        self._lag = LagJudge(options.ignores, self._book)
        self._hang = HangJudge(options.hang, self._book)
        self._samples = 0
        self._seconds = self._last_sample = 0.0
        self._failures = 0
        self._last_error: str | None = None
        self._notes: list[str] = []
        self._before: dict[int, LoopReading] = {}

    def start(self) -> None:
        _core.count_tasks(1)
        gc_pauses.start()
        self._blocks.begin(time.monotonic_ns())
        if self._trace is not None:
            try:
                self._trace.start()
            except RuntimeError as error:
                self._notes.append(f"allocations are not sampled: {error}")
        self._loops.start()
        self._thread = threading.Thread(target=self._watch, name="loopwatch-monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN)
        self._close(self._loops.stop)

    def after_fork(self) -> None:
        self._end.set()
        self._close(self._loops.after_fork)

    def _close(self, close_loops: Callable[[], None]) -> None:
        with contextlib.suppress(Exception):
            close_loops()
        with contextlib.suppress(Exception):
            gc_pauses.stop()
        if self._trace is not None:
            with contextlib.suppress(Exception):
                self._trace.stop()
        with contextlib.suppress(ValueError):
            _core.count_tasks(-1)

    def _watch(self) -> None:
        """The thread: a sample each interval; blocks are told of at once."""
        due = time.monotonic() + self._options.interval
        while not self._end.is_set():
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            if self._end.is_set():
                return
            try:
                self._send(self._lag.judge(self._blocks.take()))
                if time.monotonic() >= due:
                    # one that comes late is not made up for: samples are to be an interval apart
                    due = max(due + self._options.interval, time.monotonic() + self._options.interval / 2)
                    self._judge()
            except Exception as error:
                if self._end.is_set():
                    return
                self._failures += 1
                self._last_error = f"{type(error).__name__}: {error}"
                if self._failures == 1:
                    logging.getLogger("loopwatch").warning("a sample of the monitor failed", exc_info=error)

    def _judge(self) -> None:
        began = time.thread_time()
        with self._sampling:
            now = time.monotonic()
            loops = self._read_loops(remember=True)
            sample = self._coroutines.sample()
            self._samples += 1
            alarms = self._tasks.judge(now, sample)
            alarms += self._timers.judge(now, loops)
            explained = self._tasks.growing or self._timers.growing
            alarms += self._memory.judge(now, read_process(uss=False).rss, explained)
            alarms += self._hang.judge([reading for _, reading in loops])
        self._last_sample = time.thread_time() - began
        self._seconds += self._last_sample
        self._send(alarms)

    def _send(self, alarms: list[Alarm]) -> None:
        for alarm in alarms:
            if self._book.give(alarm):
                self._sinks.send(alarm)

    def _read_loops(self, *, remember: bool) -> list[tuple[WatchedLoop, LoopReading]]:
        found = []
        for watched in self._loops.loops:
            reading = watched.read(self._before.get(id(watched)))
            found.append((watched, replace(reading, timers_by_callback=watched.timers.count())))
        if remember:
            self._before = {id(watched): reading for watched, reading in found}
        return found

    def read(self, *, objects: bool, uss: bool, examples: int) -> Reading:
        with self._sampling:
            sample: Sample = self._coroutines.sample()
            loops = [reading for _, reading in self._read_loops(remember=False)]
            coroutines = tuple(
                replace(reading, examples=sample.examples(reading)) if number < examples and reading.alive else reading
                for number, reading in enumerate(sample.coroutines)
            )
        every = self._options.objects
        counted = objects or (every > 0 and self._samples % every == 0)
        process = read_process(uss=uss, objects=count_objects() if counted else None)
        unplaced = sum(reading.born for reading in coroutines if 0 in reading.groups)
        return Reading(
            time=time.time(),
            monotonic=time.monotonic(),
            loops=tuple(loops),
            coroutines=coroutines,
            process=process,
            blocks=self._blocks.read(),
            alarms=self._book.read(),
            overhead=OverheadReading(
                samples=self._samples,
                seconds=self._seconds,
                last_sample=self._last_sample,
                tasks_unplaced=unplaced,
                blocks_dropped=self._blocks.dropped,
                series_dropped=self._tasks.dropped,
                sink_errors=self._sinks.errors,
                errors=self._failures,
                last_error=self._last_error or self._sinks.last_error,
            ),
            ended_loops=self._loops.ended,
            ended_lag=self._loops.ended_lag,
            unwatched=tuple(self._loops.unwatched),
            notes=tuple(self._notes),
            allocations=self._trace.read() if objects and self._trace is not None and self._trace.on else None,
        )


_alive: "weakref.WeakSet[Monitor]" = weakref.WeakSet()


def _stop_all() -> None:
    for monitor in list(_alive):
        with contextlib.suppress(Exception):
            monitor.stop()


def _after_fork_in_child() -> None:
    monitors: list[Any] = list(_alive)
    _alive.clear()
    for monitor in monitors:
        with contextlib.suppress(Exception):
            monitor._after_fork()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
