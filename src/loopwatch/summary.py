"""What a whole run found: blocks kept for the report, and totals by the line to fix.

Totals cover every block; of the blocks themselves the longest ``KEPT`` are kept, the others counted as dropped, so that
a long run needs a bounded amount of memory.  Blocks come from all threads; a lock guards the whole.
"""

import fnmatch
import heapq
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from loopwatch.findings import EventLoopBlock

KEPT = 1000

Place = tuple[str, int, str]


@dataclass
class Group:
    """All blocks with the same line to fix.  ``total`` and ``longest`` are seconds."""

    place: Place | None
    count: int = 0
    total: float = 0.0
    longest: float = 0.0
    whys: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)

    def add(self, block: EventLoopBlock) -> None:
        """Count one more block."""
        self.count += 1
        self.total += block.duration
        self.longest = max(self.longest, block.duration)
        self.causes[block.cause.value] += round(block.duration * 1e9)
        self.whys[short_why(block)] += round(block.duration * 1e9)

    @property
    def why(self) -> str:
        """The cause that took most of the time, in plain English."""
        return self.whys.most_common(1)[0][0] if self.whys else "unknown"

    @property
    def cause(self) -> str:
        """The code of the cause that took most of the time."""
        return self.causes.most_common(1)[0][0] if self.causes else "unknown"


class Patterns:
    """Which blocks to report: shell patterns on the culprit's file path, qualified name or ``module.function``.

    A block is judged by its line to fix and by its innermost frame.  With ``include``, one of them must match one of
    the patterns; none may match one of ``exclude``.
    """

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self.include = tuple(include)
        self.exclude = tuple(exclude)

    def accept(self, block: EventLoopBlock) -> bool:
        """Tell whether a block is to be reported."""
        if not self.include and not self.exclude:
            return True
        names = {name for place in (block.culprit, block.innermost) if place for name in _names(place)}
        if any(_matches(names, pattern) for pattern in self.exclude):
            return False
        return not self.include or any(_matches(names, pattern) for pattern in self.include)


def _names(place: Place) -> set[str]:
    filename, _, qualname = place
    stem = os.path.splitext(filename)[0].lstrip("/").split("/")
    if stem[-1] == "__init__":
        stem.pop()
    modules = {".".join(stem[depth:]) for depth in range(len(stem))}
    names = {filename, os.path.basename(filename), os.path.relpath(filename), qualname}
    return names | {f"{module}.{qualname}" for module in modules}


def _matches(names: set[str], pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


class Summary:
    """Collects the blocks of a run.  ``threshold`` is in seconds."""

    def __init__(self, threshold: float, patterns: Patterns | None = None) -> None:
        self.threshold = threshold
        self.patterns = patterns or Patterns()
        self.clear()

    def clear(self) -> None:
        """Forget everything, and start the clock anew."""
        self._lock = threading.RLock()
        self._order = itertools.count()
        self._ids = itertools.count(1)
        self._blocks: list[tuple[float, int, EventLoopBlock]] = []
        self._stalls: list[tuple[float, int, EventLoopBlock]] = []
        self._groups: dict[Place | None, Group] = {}
        self.started = time.time()
        self.began = time.monotonic()
        self.count = 0
        self.stall_count = 0
        self.excluded = 0
        self.dropped_samples = 0
        self.loops: Counter[tuple[str, bool]] = Counter()
        self.unwatched: list[str] = []

    def add(self, block: EventLoopBlock, dropped_samples: int = 0) -> bool:
        """Take a block in.  Tells whether it is to be shown: no stall, and not excluded by the patterns."""
        with self._lock:
            self.dropped_samples += dropped_samples
            if block.stall:
                self.stall_count += 1
                self._keep(self._stalls, block)
                return False
            if not self.patterns.accept(block):
                self.excluded += 1
                return False
            self.count += 1
            self._keep(self._blocks, block)
            place = block.culprit
            self._groups.setdefault(place, Group(place)).add(block)
            return True

    def add_loop(self, kind: str, exact: bool) -> None:
        """Count one more watched loop."""
        with self._lock:
            self.loops[kind, exact] += 1

    def add_unwatched(self, reason: str) -> bool:
        """Remember that a loop could not be watched.  Tells whether the reason is a new one."""
        with self._lock:
            if reason in self.unwatched:
                return False
            self.unwatched.append(reason)
            return True

    def next_id(self) -> int:
        """The number for the next block."""
        return next(self._ids)

    def _keep(self, heap: list[tuple[float, int, EventLoopBlock]], block: EventLoopBlock) -> None:
        entry = (block.duration, next(self._order), block)
        if len(heap) < KEPT:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.began

    @property
    def blocks(self) -> list[EventLoopBlock]:
        """The blocks kept, in the order in which they began."""
        with self._lock:
            return sorted((entry[2] for entry in self._blocks), key=lambda block: block.timestamp)

    @property
    def stalls(self) -> list[EventLoopBlock]:
        """The stalls kept, in the order in which they began."""
        with self._lock:
            return sorted((entry[2] for entry in self._stalls), key=lambda block: block.timestamp)

    @property
    def groups(self) -> list[Group]:
        """Totals by the line to fix, the most time first."""
        with self._lock:
            return sorted(self._groups.values(), key=lambda group: -group.total)


def short_why(block: EventLoopBlock) -> str:
    """The main cause alone, in plain English."""
    parts = [part for part in block.segments if part.cause is block.cause]
    longest = max(parts, key=lambda part: part.duration, default=None)
    return block.cause.describe(longest)
