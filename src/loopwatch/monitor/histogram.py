"""A histogram of durations, as read at one moment."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from loopwatch._core import RawHistogram

__all__ = ["Histogram"]

_SECOND = 1e9


@dataclass(frozen=True)
class Histogram:
    """How often something took how long.  All in seconds.

    ``buckets`` are pairs of a bound and how many values lie below it and not below the bound before; empty ones are
    left out, and each is at most an eighth of its bound wide.  ``max`` is the longest ever.
    """

    count: int = 0
    sum: float = 0.0
    max: float = 0.0
    buckets: tuple[tuple[float, int], ...] = ()

    @classmethod
    def from_raw(cls, raw: "RawHistogram") -> Self:
        """From the core's nanoseconds."""
        buckets = tuple((upper / _SECOND, count) for upper, count in raw["buckets"])
        return cls(raw["count"], raw["sum_ns"] / _SECOND, raw["max_ns"] / _SECOND, buckets)

    @property
    def mean(self) -> float:
        """The mean; 0 where nothing was counted."""
        return self.sum / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """What a fraction ``q`` (0 to 1) of all values do not exceed, at most an eighth too high; 0 without values."""
        if not 0 <= q <= 1:
            raise ValueError(f"q must be a fraction from 0 to 1, such as 0.99; got {q!r}")
        total = sum(count for _, count in self.buckets)
        passed = 0
        for upper, count in self.buckets:
            passed += count
            if passed >= q * total:
                return min(upper, self.max)
        return self.max

    def since(self, earlier: "Histogram") -> "Histogram":
        """What came since an earlier reading of the same histogram; ``max`` is then the highest bound left."""
        before = dict(earlier.buckets)
        buckets = tuple((upper, count - before.get(upper, 0)) for upper, count in self.buckets)
        buckets = tuple(pair for pair in buckets if pair[1] > 0)
        top = min(buckets[-1][0], self.max) if buckets else 0.0
        return Histogram(max(0, self.count - earlier.count), max(0.0, self.sum - earlier.sum), top, buckets)

    def plus(self, other: "Histogram") -> "Histogram":
        """Both together."""
        if not other.count:
            return self
        counts = dict(self.buckets)
        for upper, count in other.buckets:
            counts[upper] = counts.get(upper, 0) + count
        return Histogram(
            self.count + other.count, self.sum + other.sum, max(self.max, other.max), tuple(sorted(counts.items()))
        )
