"""``loopwatch run --monitor``: alarms as they come, and at the end what grew."""

from collections import deque

from loopwatch.commands.options import RunOptions
from loopwatch.monitor.alarms import Alarm
from loopwatch.monitor.monitor import Monitor
from loopwatch.monitor.readings import Reading
from loopwatch.printable import printable
from loopwatch.report import Terminal

__all__ = ["GrowthWatch"]

_NEWEST = 10


class GrowthWatch:
    """A monitor for one run.  Blocks and hangs are the run's own matter, and not told twice."""

    def __init__(self, options: RunOptions, terminal: Terminal) -> None:
        self._terminal = terminal
        self._quiet = options.quiet
        self._first: Reading | None = None
        self._newest: deque[Reading] = deque(maxlen=_NEWEST)
        self._monitor = Monitor(
            interval=options.monitor_interval,
            lag=max(options.threshold, 0.001),
            hang=0,
            json=options.monitor_json,
            on_alarm=self._told,
            on_sample=self._sampled,
        )

    def start(self) -> None:
        """Watch from now on."""
        self._monitor.start()

    def finish(self) -> None:
        """End, and print what grew from the first sample to the last."""
        overhead = self._monitor.read().overhead if self._monitor.running else None
        self._monitor.stop()
        if overhead is not None and overhead.last_error is not None:
            self._terminal.write(f"loopwatch: --monitor: {printable(overhead.last_error)}\n")
        if self._quiet:
            return
        # the very last ones may be of a program that is ending already, and has cancelled its tasks
        most = max((_alive(reading) for reading in self._newest), default=0)
        last = next((reading for reading in reversed(self._newest) if 2 * _alive(reading) >= most), None)
        if self._first is None or last is None or self._first is last:
            self._terminal.write("loopwatch: --monitor: the program ended before two samples were taken\n")
            return
        self._terminal.write(f"loopwatch: what grew: {Monitor.compare(self._first, last)}\n")

    def _sampled(self, reading: Reading) -> None:
        self._first = self._first or reading
        self._newest.append(reading)

    def _told(self, alarm: Alarm) -> None:
        if alarm.kind != "lag" and not self._quiet:
            self._terminal.write(f"{alarm.stamped()}\n")


def _alive(reading: Reading) -> int:
    return sum(entry.alive for entry in reading.coroutines)
