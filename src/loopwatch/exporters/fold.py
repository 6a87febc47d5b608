"""What all exporters have in common: few series, comparable over time and between processes.

Labels come from the program (coroutines, lines, threads), so their number is bounded: at most ``limit`` of each kind,
the rest together as ``other``.  A counter keeps the name it was first given, as one that moved between its own series
and ``other`` would jump.  Histograms are folded into fixed bounds.
"""

import bisect
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from loopwatch.printable import printable

if TYPE_CHECKING:
    from loopwatch.monitor.histogram import Histogram
    from loopwatch.monitor.readings import CoroutineReading, LoopReading, Reading

__all__ = [
    "ALARM_KINDS",
    "BOUNDS",
    "LIMIT",
    "OTHER",
    "AlarmTally",
    "Slots",
    "check_monitor",
    "cumulative",
    "largest",
    "loop_labels",
    "site",
    "task_labels",
]

OTHER = "other"
LIMIT = 50
BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds."""
ALARM_KINDS = ("tasks", "retained", "timers", "memory", "lag", "hang")
_LONGEST = 200

_T = TypeVar("_T")
_K = TypeVar("_K", bound=Hashable)


def check_monitor(monitor: Any) -> None:
    """Raises TypeError for what is no Monitor."""
    if not callable(getattr(monitor, "read", None)):
        raise TypeError(f"expected a loopwatch.Monitor, got {monitor!r}: make one with loopwatch.Monitor().start()")


def check_limit(limit: int) -> int:
    """Raises TypeError or ValueError for what is no number of series."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be a whole number of series, got {limit!r}")
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    return limit


def cumulative(histogram: "Histogram", bounds: Sequence[float]) -> list[int]:
    """How many values are at most each bound, and after these all.  A bucket counts where all of it fits."""
    counts = [0] * (len(bounds) + 1)
    for upper, count in histogram.buckets:
        counts[bisect.bisect_left(bounds, upper)] += count
    total = 0
    for index, count in enumerate(counts):
        total += count
        counts[index] = total
    counts[-1] = max(total, histogram.count)
    return counts


class Slots(Generic[_K]):
    """The first ``limit`` keys ever seen keep their names; those that come later are ``other``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._own: set[_K] = set()
        self.cut = 0

    def split(self, items: Iterable[_T], key: Callable[[_T], _K]) -> tuple[list[_T], list[_T]]:
        """Those with a name of their own, and the others.  Of new ones the first come first."""
        own: list[_T] = []
        others: list[_T] = []
        for item in items:
            name = key(item)
            if name in self._own or len(self._own) < self._limit:
                self._own.add(name)
                own.append(item)
            else:
                others.append(item)
        self.cut = len(others)
        return own, others


def largest(items: Iterable[_T], size: Callable[[_T], float], limit: int) -> tuple[list[_T], list[_T]]:
    """The largest now, and the others: for what goes up and down."""
    ordered = sorted(items, key=size, reverse=True)
    return ordered[:limit], ordered[limit:]


def site(place: tuple[str, int, str] | None) -> str:
    """A line as a label: file and line, the file as seen from the working folder where it lies in it."""
    if place is None:
        return "unknown"
    file = place[0]
    try:
        inside = os.path.relpath(file) if os.path.isabs(file) else file
    except (OSError, ValueError):  # the working folder is gone
        inside = file
    return label(f"{file if inside.startswith('..') else inside}:{place[1]}")


def label(text: str) -> str:
    """Text of the program as a label: printable, of bounded length.  Of long text the end counts."""
    text = printable(text)
    return text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"


def culprit(place: tuple[str, int, str] | None) -> str:
    """The line to fix: ``file:line in function``."""
    return "unknown" if place is None else f"{site(place)} in {label(place[2])}"


def task_labels(coroutine: "CoroutineReading") -> tuple[str, str]:
    """Coroutine and creation site."""
    return label(coroutine.qualname), site(coroutine.place)


def loop_labels(loop: "LoopReading") -> tuple[str, str]:
    """Type of the loop and its thread: loops that share both are told together."""
    kind = loop.name.lstrip("<").partition(" ")[0]
    return label(kind.rpartition(".")[2].rstrip(">")), label(loop.thread or "unknown")


class AlarmTally:
    """Alarms by kind since it was made, from the monitor's list of the newest hundred."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(ALARM_KINDS, 0)
        self._seen: set[tuple[str, float]] = set()

    def add(self, reading: "Reading") -> dict[str, int]:
        """Count those that are new in this reading; all so far."""
        now = {(alarm.fingerprint, alarm.time): alarm.kind for alarm in reading.alarms}
        for key, kind in now.items():
            if key not in self._seen:
                self.counts[kind] = self.counts.get(kind, 0) + 1
        self._seen = set(now)
        return self.counts
