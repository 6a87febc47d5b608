"""When a number grows: a sliding window, a limit above it, and several samples beyond that.

A sample counts as high above mean + sigma standard deviations of the window before, and above what growth must be to
matter at all (``least``, and ``share`` of the mean).  Growth is told when ``consecutive`` samples in a row are high,
all of them above whatever the window held, and the last has not fallen back: a burst that goes down again is none.  The
window stands still meanwhile.  What stays high for a whole window is the new normal.

A leak that began before the window did is a slope all the same: after two windows, one that rises from each third of
the window to the next is told too.
"""

import statistics
from collections import deque
from dataclasses import dataclass

__all__ = ["Bound", "Growth", "Rule", "Series"]

_STILL_HIGH = 0.9
_THIRDS = 3
_STEADY_LEAST = 3  # times what matters otherwise
_STEADY_SHARE = 0.2


@dataclass(frozen=True)
class Rule:
    """``window``: samples remembered.  ``sigma``, ``consecutive``: see above."""

    window: int
    sigma: float
    consecutive: int


@dataclass(frozen=True)
class Growth:
    """A number grew: ``before`` is the mean of the window, ``since`` when the first high sample was taken (monotonic).

    ``rate`` is per second, from there to now; negative where it is falling.
    """

    value: float
    before: float
    limit: float
    since: float
    rate: float
    samples: int


class Series:
    """One number over time.  ``past``: how many samples, all 0, there would have been before it exists, at ``born``."""

    def __init__(
        self,
        rule: Rule,
        least: float,
        share: float = 0.2,
        *,
        past: int = 0,
        born: float = 0.0,
        steady: bool = True,
    ) -> None:
        self._rule = rule
        self._least = least
        self._share = share
        self._steady = steady
        self._window: deque[float] = deque([0.0] * min(past, rule.window), maxlen=rule.window)
        self._times: deque[float] = deque([born] * len(self._window), maxlen=rule.window)
        self._seen = past
        self._mean = self._limit = self._highest = 0.0
        self._streak: list[tuple[float, float]] = []

    @property
    def suspected(self) -> bool:
        """Whether the last sample was high."""
        return bool(self._streak)

    @property
    def idle(self) -> bool:
        """Whether all that is remembered is 0: the series can be forgotten."""
        return not self._streak and not any(self._window)

    @property
    def mean(self) -> float:
        """The mean of the window."""
        return statistics.fmean(self._window) if self._window else 0.0

    @property
    def ready(self) -> bool:
        """Whether the window is full: nothing is told before."""
        return len(self._window) == self._rule.window

    def add(self, time: float, value: float) -> Growth | None:
        """Take in a sample; what it proves, if anything."""
        self._seen += 1
        if not self.ready:
            self._remember(time, value)
            return None
        if not self._streak:
            self._mean = statistics.fmean(self._window)
            deviation = statistics.pstdev(self._window, self._mean)
            enough = max(self._least, self._share * self._mean)
            self._limit = self._mean + max(self._rule.sigma * deviation, enough)
            self._highest = max(self._window)
        if value <= self._limit:
            self._end_streak()
            self._remember(time, value)
            return self._slope(time) if self._steady and self._seen >= 2 * self._rule.window else None
        self._streak.append((time, value))
        growth = self._judge()
        if len(self._streak) >= self._rule.window:
            self._end_streak()
        return growth

    def restart(self) -> None:
        """Forget everything, and warm up again."""
        self._streak.clear()
        self._window.clear()
        self._times.clear()
        self._seen = 0

    def _remember(self, time: float, value: float) -> None:
        self._window.append(value)
        self._times.append(time)

    def _end_streak(self) -> None:
        for time, value in self._streak:
            self._remember(time, value)
        self._streak.clear()

    def _judge(self) -> Growth | None:
        values = [value for _, value in self._streak]
        last = values[-self._rule.consecutive :]
        if len(last) < self._rule.consecutive or min(last) <= self._highest:
            return None
        if last[-1] < _STILL_HIGH * max(values):
            return None
        (began, first), (now, value) = self._streak[0], self._streak[-1]
        return Growth(value, self._mean, self._limit, began, _rate(value - first, now - began), len(values))

    def _slope(self, now: float) -> Growth | None:
        values = list(self._window)
        third = len(values) // _THIRDS
        if third < self._rule.consecutive:
            return None
        parts = [values[at * third : (at + 1) * third] for at in range(_THIRDS)]
        if any(max(low) >= min(high) for low, high in zip(parts, parts[1:], strict=False)):
            return None
        first, last = statistics.fmean(parts[0]), statistics.fmean(parts[-1])
        if last - first < max(_STEADY_LEAST * self._least, _STEADY_SHARE * first):
            return None
        rate = _rate(values[-1] - values[0], now - self._times[0])
        return Growth(values[-1], first, first, self._times[0], rate, len(values))


class Bound:
    """A number that must not exceed a bound for ``consecutive`` samples in a row."""

    def __init__(self, rule: Rule) -> None:
        self._consecutive = rule.consecutive
        self._streak: deque[tuple[float, float]] = deque(maxlen=rule.consecutive)

    def add(self, time: float, value: float, bound: float) -> Growth | None:
        """Take in a sample; what it proves, if anything."""
        if value <= bound:
            self._streak.clear()
            return None
        self._streak.append((time, value))
        if len(self._streak) < self._consecutive:
            return None
        began, first = self._streak[0]
        return Growth(value, first, bound, began, _rate(value - first, time - began), len(self._streak))


def _rate(grown: float, seconds: float) -> float:
    return grown / seconds if seconds > 0 else 0.0
