"""A monitor from one start to its stop: what is open, its thread, and the judges it feeds."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from loopwatch import _core
from loopwatch.memory.allocations import AllocationTrace
from loopwatch.monitor.alarms import Alarm, AlarmBook
from loopwatch.monitor.blockbook import BlockBook
from loopwatch.monitor.coroutines import CoroutineBook, Sample
from loopwatch.monitor.judges import TaskJudge, TimerJudge
from loopwatch.monitor.lagjudge import HangJudge, LagJudge
from loopwatch.monitor.loopbook import LoopBook, WatchedLoop
from loopwatch.monitor.memoryjudge import MemoryJudge
from loopwatch.monitor.options import MonitorOptions
from loopwatch.monitor.process import count_objects, gc_pauses, read_process
from loopwatch.monitor.readings import LoopReading, OverheadReading, Reading
from loopwatch.monitor.series import Rule
from loopwatch.monitor.sinks import Sinks
from loopwatch.stacks import library_folders

__all__ = ["EXAMPLES", "Run"]

EXAMPLES = 20  # coroutines of which a reading shows example tasks
_CHECK_NS = 50_000_000
_CHECK_LEAST_NS = 1_000_000
_JOIN = 2.0


class Run:
    """From one start to its stop."""

    def __init__(self, options: MonitorOptions, sinks: Sinks) -> None:
        self._options = options
        self._sinks = sinks
        self._wake = threading.Event()
        self._end = threading.Event()
        self._sampling = threading.Lock()
        self._beginning = threading.Lock()
        self._thread: threading.Thread | None = None
        lag_ns = round(options.lag * 1e9)
        self._blocks = BlockBook(self._wake)
        check_ns = max(min(_CHECK_NS, lag_ns // 10), _CHECK_LEAST_NS)
        self._loops = LoopBook(lag_ns, check_ns, self._blocks.add, self._begin)
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
        _core.set_library_folders(library_folders())  # so that tasks are told to wait at lines of the program's own
        _core.count_tasks(1)
        gc_pauses.start()
        self._blocks.begin(time.monotonic_ns())
        if self._trace is not None:
            try:
                self._trace.start()
            except RuntimeError as error:
                self._notes.append(f"allocations are not sampled: {error}")
        self._loops.start()

    def _begin(self) -> None:
        """A loop runs.  Without one there is no thread: it would be in the way of a process that only forks others."""
        with self._beginning:
            if self._thread is None and not self._end.is_set():
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
        """The thread: a sample each interval; blocks are told of at once, and hangs when they become such."""
        due = time.monotonic() + self._options.interval
        while not self._end.is_set():
            self._wake.wait(max(0.0, min(due, self._hang.due) - time.monotonic()))
            self._wake.clear()
            if self._end.is_set():
                return
            try:
                self._send(self._lag.judge(self._blocks.take()))
                if time.monotonic() >= self._hang.due:
                    self._send(self._hang.look(self._loops.loops))
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
        self._last_sample = time.thread_time() - began
        self._seconds += self._last_sample
        self._send(alarms)
        if self._options.on_sample is not None:
            self._options.on_sample(self.read(objects=False, uss=False, examples=0))

    def _send(self, alarms: list[Alarm]) -> None:
        for alarm in alarms:
            given = self._book.give(alarm)
            if given is not None:
                self._sinks.send(given)

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
