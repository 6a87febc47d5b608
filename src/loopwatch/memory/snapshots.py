"""Snapshots of what lives in the process, and what grew between two of them."""

import gc
import time
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from loopwatch import _core
from loopwatch.memory.allocations import Allocations
from loopwatch.memory.held import type_name
from loopwatch.memory.process import MEGABYTE, ProcessMemory, process_memory
from loopwatch.memory.retain import all_tasks_alive

__all__ = ["Growth", "MemorySnapshot", "TypeGrowth", "growth", "show_growth", "take_snapshot"]


@dataclass(frozen=True)
class MemorySnapshot:
    """What lived at one moment.

    ``rss``, ``vms``, ``uss`` and ``peak`` are in MB (of 1024 * 1024 bytes); ``objects`` gives for each type name how
    many objects the garbage collector tracked and how many bytes they were themselves; ``tasks`` how many tasks were
    not done, by the qualified name of their coroutine.  ``traced`` is a tracemalloc snapshot, where the program runs
    tracemalloc; ``allocations`` what a sampling trace of the detector's showed.  ``timestamp`` is Unix time.
    ``snapshot["rss"]`` is the same as ``snapshot.rss``.
    """

    label: str
    timestamp: float
    rss: float
    vms: float
    uss: float | None
    peak: float
    objects: Mapping[str, tuple[int, int]] = field(repr=False)
    tasks: Mapping[str, int] = field(repr=False)
    traced: "tracemalloc.Snapshot | None" = field(default=None, repr=False)
    allocations: Allocations | None = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Any:
        if name == "snapshot":
            return self.traced
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(name) from None


def take_snapshot(label: str = "", *, collect: bool = True) -> MemorySnapshot:
    """Look at what lives now.

    ``collect`` (default) runs the garbage collector first, so that garbage does not count; it blocks this thread's
    event loop meanwhile, some 10 ms for every 100,000 objects.  Counting takes about as long again.  Raises TypeError
    for a label that is no text.
    """
    if not isinstance(label, str):
        raise TypeError(f"a snapshot's label must be text, got {label!r} of type {type(label).__name__}")
    if collect:
        gc.collect()
    memory: ProcessMemory = process_memory()
    objects: dict[str, tuple[int, int]] = {}
    for kind, (count, size) in _core.count_objects().items():
        name = type_name(kind)
        before = objects.get(name, (0, 0))
        objects[name] = (before[0] + count, before[1] + size)
    return MemorySnapshot(
        label=label,
        timestamp=time.time(),
        rss=memory.rss / MEGABYTE,
        vms=memory.vms / MEGABYTE,
        uss=None if memory.uss is None else memory.uss / MEGABYTE,
        peak=memory.peak / MEGABYTE,
        objects=objects,
        tasks=_tasks_by_coroutine(),
        traced=tracemalloc.take_snapshot() if tracemalloc.is_tracing() else None,
    )


@dataclass(frozen=True)
class TypeGrowth:
    """One type, or one coroutine, of which there are more than before.  ``grown_bytes`` is None for coroutines."""

    name: str
    count: int
    grown: int
    grown_bytes: int | None = None


@dataclass(frozen=True)
class Growth:
    """What changed from one snapshot to a later one; only what grew is listed, the largest growth first."""

    earlier: MemorySnapshot = field(repr=False)
    later: MemorySnapshot = field(repr=False)
    types: tuple[TypeGrowth, ...]
    tasks: tuple[TypeGrowth, ...]

    @property
    def rss(self) -> float:
        """By how many MB the resident memory grew."""
        return self.later.rss - self.earlier.rss

    def traced(self, key: str = "lineno", limit: int = 10) -> list["tracemalloc.StatisticDiff"]:
        """What tracemalloc says grew, where the program ran it at both moments; else an empty list."""
        if self.earlier.traced is None or self.later.traced is None:
            return []
        return self.later.traced.compare_to(self.earlier.traced, key)[:limit]

    @property
    def allocations(self) -> Allocations | None:
        """What survives more than before, by line and coroutine, where allocations were sampled at both moments."""
        if self.earlier.allocations is None or self.later.allocations is None:
            return None
        return self.later.allocations.since(self.earlier.allocations)

    def text(self, limit: int = 10) -> str:
        """A table: memory, tasks by coroutine, and the ``limit`` types that grew most, as objgraph prints growth."""
        seconds = self.later.timestamp - self.earlier.timestamp
        lines = [
            f"From {self.earlier.label!r} to {self.later.label!r}, {seconds:.1f} s: "
            f"RSS {self.earlier.rss:.1f} -> {self.later.rss:.1f} MB ({self.rss:+.1f})"
        ]
        lines += _table("Tasks not done, by coroutine", self.tasks[:limit], len(self.tasks))
        lines += _table("Objects by type", self.types[:limit], len(self.types))
        traced = self.traced(limit=limit)
        if self.allocations is not None:
            lines.append(self.allocations.text(limit))
        if traced:
            lines += ["tracemalloc:", *(f"  {statistic}" for statistic in traced)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    @classmethod
    def between(cls, earlier: MemorySnapshot, later: MemorySnapshot) -> "Growth":
        """Compare two snapshots."""
        types = []
        for name, (count, size) in later.objects.items():
            count_before, size_before = earlier.objects.get(name, (0, 0))
            if count > count_before:
                types.append(TypeGrowth(name, count, count - count_before, size - size_before))
        tasks = [
            TypeGrowth(name, count, count - earlier.tasks.get(name, 0))
            for name, count in later.tasks.items()
            if count > earlier.tasks.get(name, 0)
        ]
        return cls(earlier, later, _sorted(types), _sorted(tasks))


_last: dict[str, int] = {}


def growth(limit: int = 10) -> list[tuple[str, int, int]]:
    """Types of which there are more than at any earlier call: (type name, count, increase), most first.

    The first call gives the ``limit`` most frequent types, as ``objgraph.growth`` does.
    """
    gc.collect()
    counts: Counter[str] = Counter()
    for kind, (count, _) in _core.count_objects().items():
        counts[type_name(kind)] += count
    found = []
    for name, count in counts.items():
        before = _last.get(name, 0)
        if count > before:
            found.append((name, count, count - before))
            _last[name] = count
    found.sort(key=lambda entry: (-entry[2], entry[0]))
    return found[:limit]


def show_growth(limit: int = 10, *, file: TextIO | None = None) -> None:
    """Print ``growth(limit)`` as ``objgraph.show_growth`` does: type name, count, increase.  Default: to stdout."""
    found = growth(limit)
    if found:
        name_width = max(len(name) for name, _, _ in found)
        count_width = max(len(str(count)) for _, count, _ in found)
        grown_width = max(len(f"{grown:+}") for _, _, grown in found)
        for name, count, grown in found:
            print(f"{name:<{name_width}}{count:>{count_width + 1}} {grown:>+{grown_width + 0}}", file=file)


def _tasks_by_coroutine() -> Mapping[str, int]:
    """Tasks that are not done, of every loop in every thread."""
    counts: Counter[str] = Counter()
    for task in all_tasks_alive():
        if not task.done():
            coroutine = _core.task_coroutine(task)
            counts[str(getattr(coroutine, "__qualname__", None) or type_name(type(coroutine)))] += 1
    return dict(counts)


def _sorted(found: list[TypeGrowth]) -> tuple[TypeGrowth, ...]:
    return tuple(sorted(found, key=lambda entry: (-entry.grown, entry.name)))


def _table(title: str, found: tuple[TypeGrowth, ...], total: int) -> list[str]:
    if not found:
        return []
    width = max(len(entry.name) for entry in found)
    lines = [f"{title}:" if len(found) == total else f"{title} ({len(found)} of {total} that grew):"]
    for entry in found:
        size = "" if entry.grown_bytes is None else f"  {entry.grown_bytes / 1024:+,.0f} KB"
        lines.append(f"  {entry.name:<{width}}  {entry.count:>9}  {entry.grown:>+9}{size}")
    return lines
