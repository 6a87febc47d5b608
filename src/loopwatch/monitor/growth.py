"""What grew between two readings of a monitor."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from loopwatch.findings import place_text
from loopwatch.memory.allocations import Allocations
from loopwatch.memory.process import MEGABYTE
from loopwatch.monitor.readings import Place, Reading

__all__ = ["Grown", "GrowthReport"]


@dataclass(frozen=True)
class Grown:
    """One line of a report: a number that is higher than before.  ``size_grown`` is bytes, None where not known."""

    name: str
    place: Place | None
    before: int
    now: int
    size_grown: int | None = None

    @property
    def grown(self) -> int:
        """By how much."""
        return self.now - self.before


@dataclass(frozen=True)
class GrowthReport:
    """What changed from one reading to a later one; only what grew is listed, the largest growth first.

    ``seconds`` lie between them.  ``tasks``: alive, by coroutine and creation place.  ``retained``: done but held.
    ``awaits``: by where tasks wait.  ``timers``: by callback.  ``objects``: by type, where both counted them.
    ``rss``: bytes, before and now.  ``allocations``: by line, where they were sampled at both.
    """

    seconds: float
    rss: tuple[int, int]
    tasks: tuple[Grown, ...]
    retained: tuple[Grown, ...]
    awaits: tuple[Grown, ...]
    timers: tuple[Grown, ...]
    objects: tuple[Grown, ...]
    threads: tuple[int, int]
    descriptors: tuple[int, int]
    allocations: Allocations | None = field(default=None, repr=False)

    @classmethod
    def between(cls, earlier: Reading, later: Reading) -> "GrowthReport":
        """Compare two readings.  Raises ValueError where the second is the earlier one, TypeError for what is none."""
        for reading in (earlier, later):
            if not isinstance(reading, Reading):
                raise TypeError(
                    f"compare(earlier, later) needs two readings, got {reading!r} of type {type(reading).__name__}: "
                    "take them with snapshot() or read()"
                )
        if later.monotonic < earlier.monotonic:
            raise ValueError("compare(earlier, later) was given the later reading first: exchange them")
        allocations = None
        if earlier.allocations is not None and later.allocations is not None:
            allocations = later.allocations.since(earlier.allocations)
        return cls(
            seconds=later.monotonic - earlier.monotonic,
            rss=(earlier.process.rss, later.process.rss),
            tasks=_grown(_tasks(earlier, "alive"), _tasks(later, "alive")),
            retained=_grown(_tasks(earlier, "retained"), _tasks(later, "retained")),
            awaits=_grown(_awaits(earlier), _awaits(later)),
            timers=_grown(_timers(earlier), _timers(later)),
            objects=_objects(earlier, later),
            threads=(earlier.process.native_threads, later.process.native_threads),
            descriptors=(earlier.process.descriptors, later.process.descriptors),
            allocations=allocations,
        )

    def text(self, limit: int = 10) -> str:
        """Tables of the ``limit`` largest of each; with 0, how many there are.  Raises ValueError for less."""
        if limit < 0:
            raise ValueError(f"limit must be a number of lines, at least 0, got {limit!r}")
        lines = [f"In {self.seconds:.1f} s:"]
        for name, (before, now) in (("threads", self.threads), ("descriptors", self.descriptors)):
            lines.append(f"  {name:<12} {before:>10,} -> {now:>10,}  {now - before:+,}")
        before, now = self.rss
        lines.insert(1, f"  {'RSS, MB':<12} {before / MEGABYTE:>10.1f} -> {now / MEGABYTE:>10.1f}  "
                        f"{(now - before) / MEGABYTE:+.1f}")  # fmt: skip
        for title, found in (
            ("Tasks alive, by coroutine and where they were created", self.tasks),
            ("Tasks done but still held, by coroutine and where they were created", self.retained),
            ("Tasks waiting, by where", self.awaits),
            ("Timers, by callback", self.timers),
            ("Objects, by type", self.objects),
        ):
            lines += _table(title, found, limit)
        if self.allocations is not None:
            lines.append(self.allocations.text(limit))
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    def as_dict(self) -> dict[str, Any]:
        """The numbers as plain data, for JSON; allocations left out."""
        names = ("tasks", "retained", "awaits", "timers", "objects")
        found: dict[str, Any] = {
            name: [asdict(entry) | {"grown": entry.grown} for entry in getattr(self, name)] for name in names
        }
        for name in ("rss", "threads", "descriptors"):
            found[name] = list(getattr(self, name))
        return {"seconds": self.seconds, **found}


_Counts = Mapping[tuple[str, Place | None], int]


def _tasks(reading: Reading, what: str) -> _Counts:
    return {(entry.qualname, entry.place): getattr(entry, what) for entry in reading.coroutines}


def _awaits(reading: Reading) -> _Counts:
    counts: dict[tuple[str, Place | None], int] = {}
    for entry in reading.coroutines:
        for site in entry.awaits:
            key = site.waits_for, site.place
            counts[key] = counts.get(key, 0) + site.count
    return counts


def _timers(reading: Reading) -> _Counts:
    counts: dict[tuple[str, Place | None], int] = {}
    for loop in reading.loops:
        for timer in loop.timers_by_callback:
            key = timer.callback, timer.place
            counts[key] = counts.get(key, 0) + timer.count
    return counts


def _objects(earlier: Reading, later: Reading) -> tuple[Grown, ...]:
    before, now = earlier.process.objects, later.process.objects
    if before is None or now is None:
        return ()
    found = []
    for name, (count, size) in now.items():
        count_before, size_before = before.get(name, (0, 0))
        if count > count_before or size > size_before:
            found.append(Grown(name, None, count_before, count, size - size_before))
    return tuple(sorted(found, key=lambda entry: (-entry.grown, -(entry.size_grown or 0), entry.name)))


def _grown(before: _Counts, now: _Counts) -> tuple[Grown, ...]:
    found = [Grown(*key, before.get(key, 0), count) for key, count in now.items() if count > before.get(key, 0)]
    return tuple(sorted(found, key=lambda entry: (-entry.grown, entry.name)))


def _table(title: str, found: Sequence[Grown], limit: int) -> list[str]:
    if not found:
        return []
    shown = found[:limit]
    lines = [f"{title}:" if len(shown) == len(found) else f"{title} ({len(shown)} of {len(found)} that grew):"]
    width = max((len(entry.name) for entry in shown), default=0)
    for entry in shown:
        size = "" if entry.size_grown is None else f"  {entry.size_grown / 1024:+,.0f} KB"
        place = "" if entry.place is None else f"  {place_text(entry.place)}"
        lines.append(f"  {entry.name:<{width}}  {entry.now:>9,}  {entry.grown:>+9,}{size}{place}")
    return lines
