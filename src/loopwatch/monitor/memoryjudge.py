"""Memory that grows: resident bytes over time, and which objects, and lines, it belongs to.

Resident memory does not come down when a burst of load is over, so growth counts only while it goes on.  Objects are
counted when growth is first suspected and again when it is proved: each holds the GIL for some 10 ms for every 100,000
objects, and a process that does not grow never pays it.  While tasks or timers grow, memory does as well: that has
been told, and memory begins anew from there.
"""

import time
from collections.abc import Mapping, Sequence

from loopwatch.findings import place_text
from loopwatch.leaks.suppress import Ignore, first_match
from loopwatch.memory.allocations import Allocations, AllocationSite, AllocationTrace
from loopwatch.memory.process import MEGABYTE
from loopwatch.monitor.alarms import Alarm, AlarmBook
from loopwatch.monitor.judges import Subject, unix_time
from loopwatch.monitor.process import count_objects
from loopwatch.monitor.series import Bound, Growth, Rule, Series

__all__ = ["MemoryJudge"]

_LEAST = 8 * MEGABYTE
_RISING = MEGABYTE
_RISING_SHARE = 0.02
_FINGERPRINT = "memory"
_TYPES = 3

Objects = Mapping[str, tuple[int, int]]


class MemoryJudge:
    """``growth`` is the fraction above the baseline that is too much, ``trace`` samples allocations, or None."""

    def __init__(
        self, rule: Rule, growth: float, ignores: Sequence[Ignore], book: AlarmBook, trace: AllocationTrace | None
    ) -> None:
        self._growth = growth
        self._ignores = ignores
        self._book = book
        self._trace = trace
        self._series = Series(rule, _LEAST, steady=False)
        self._bound = Bound(rule)
        self._baseline: float | None = None
        self._last: list[float] = []
        self._consecutive = rule.consecutive
        self._objects: Objects | None = None
        self._allocations: Allocations | None = None

    def judge(self, now: float, rss: int, explained: bool) -> list[Alarm]:
        """Take in a sample.  ``explained``: something else grows, and was or will be told of."""
        if explained:
            self._series.restart()
            self._baseline = None
            self._forget()
            return []
        if self._baseline is None and self._series.ready:
            self._baseline = self._series.mean
        grown = self._series.add(now, rss)
        beyond = None
        if self._baseline is not None:
            beyond = self._bound.add(now, rss, self._baseline * (1 + self._growth))
        self._last = [*self._last, rss][-self._consecutive - 1 :]
        if not self._series.suspected and beyond is None:
            self._forget()
            return []
        if self._objects is None and self._book.due(_FINGERPRINT):
            self._objects = count_objects()
            self._allocations = self._read_trace()
            if grown is None:  # a leap past the bound: what grows is seen from here to the next sample
                return []
        rising = self._last[-1] - self._last[0] >= max(_RISING, _RISING_SHARE * self._last[0])
        if grown is not None and not rising:
            grown = None
        found = grown or beyond
        if found is None or not self._book.due(_FINGERPRINT):
            return []
        return self._alarm(found, grown is None)

    def _forget(self) -> None:
        self._objects = self._allocations = None

    def _read_trace(self) -> Allocations | None:
        return self._trace.read() if self._trace is not None and self._trace.on else None

    def _alarm(self, found: Growth, bound: bool) -> list[Alarm]:
        types = _grown_types(self._objects or {}, count_objects())
        site = self._grown_site(bound)
        if first_match(self._ignores, Subject("memory", {"name": ["memory"]})) is not None:
            return []
        value, before = found.value / MEGABYTE, found.before / MEGABYTE
        if bound:
            base = (self._baseline or 0) / MEGABYTE
            before = base
            reason = f"resident memory is {value:.1f} MB, more than {self._growth:.0%} above its baseline {base:.1f} MB"
        else:
            reason = f"resident memory is {value:.1f} MB, up from {before:.1f} MB, and goes on growing"
        detail = [f"{name}: {count:+,} objects, {size / MEGABYTE:+.1f} MB" for name, count, size in types]
        if site is not None:
            where = "" if site.coroutine is None else f", in a task of {site.coroutine}"
            detail.insert(0, f"about {site.size / MEGABYTE:.1f} MB more survive from {place_text(site.place)}{where}")
        elif self._trace is None:
            detail.append('Monitor(memory="sampled") names the line that allocates it')
        return [
            Alarm(
                kind="memory",
                subject=types[0][0] if types else "memory",
                reason=reason,
                value=value,
                before=before,
                limit=found.limit / MEGABYTE,
                unit="MB",
                rate=found.rate / MEGABYTE,
                since=unix_time(found.since),
                time=time.time(),
                fingerprint=_FINGERPRINT,
                place=None if site is None else site.place,
                stack=() if site is None else site.stack,
                detail=tuple(detail),
            )
        ]

    def _grown_site(self, bound: bool) -> AllocationSite | None:
        """The line that holds most of what is new: since the trace began, as the baseline is from there, or since the
        growth was suspected."""
        now = self._read_trace()
        if now is None:
            return None
        grown = now if bound or self._allocations is None else now.since(self._allocations)
        return grown.sites[0] if grown.sites else None


def _grown_types(before: Objects, now: Objects) -> list[tuple[str, int, int]]:
    """The types of which there are more, most bytes first: name, objects, bytes."""
    grown = []
    for name, (count, size) in now.items():
        count_before, size_before = before.get(name, (0, 0))
        if size > size_before:
            grown.append((name, count - count_before, size - size_before))
    grown.sort(key=lambda entry: -entry[2])
    return grown[:_TYPES]
