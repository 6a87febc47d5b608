"""``Monitor``: one process, watched for as long as it lives."""

import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from loopwatch.leaks.suppress import Ignores
from loopwatch.monitor.alarms import Alarm
from loopwatch.monitor.growth import GrowthReport
from loopwatch.monitor.options import MonitorOptions, check_options
from loopwatch.monitor.readings import Reading
from loopwatch.monitor.running import EXAMPLES, Run
from loopwatch.monitor.sinks import Destination, Sinks

__all__ = ["Monitor"]


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
    json: a path, or an open file: a line of JSON for each alarm.  ``start()`` looks whether it can be written.
    stderr: whether alarms are written to stderr.
    ignore: what to overlook: ``loopwatch.Ignore``, strings or compiled regular expressions (names).
    memory: "sampled" (or True) samples allocations, so that growing memory is named by line; False (default): by type.
    objects: count objects by type in every so many samples; 0 (default): only when memory is suspected to grow.
    on_sample: called with a Reading after each sample, in the monitor's thread.

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
        on_sample: Callable[[Reading], object] | None = None,
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
            stderr=stderr,
            ignore=ignore,
            memory=memory,
            objects=objects,
            on_sample=on_sample,
        )
        if logger is None and on_alarm is None and json is None and not stderr:
            logger = logging.getLogger("loopwatch")
        self._sinks = Sinks(on_alarm, logger, json, stderr)
        self._lock = threading.RLock()
        self._running: Run | None = None

    @property
    def running(self) -> bool:
        """Whether it watches now, in this process."""
        return self._running is not None

    def start(self) -> Self:
        """Watch from now on.  Nothing happens if it does already.  ValueError where ``json`` cannot be written."""
        with self._lock:
            if self._running is None:
                self._sinks.check()
                run = Run(self.options, self._sinks)
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

    def read(self, *, objects: bool = False, uss: bool = True, examples: int = EXAMPLES) -> Reading:
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
