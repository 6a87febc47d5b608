"""Where surviving memory was allocated, and by which task's coroutine, by sampling."""

from collections.abc import Sequence
from dataclasses import dataclass
from traceback import FrameSummary
from types import TracebackType
from typing import Self

from loopwatch import _core
from loopwatch.stacks import format_stack, frames_from_raw, qualified_name, user_frame

__all__ = ["AllocationSite", "AllocationTrace", "Allocations"]

_MEGABYTE = 1024 * 1024


@dataclass(frozen=True)
class AllocationSite:
    """Memory that survives, by the stack that allocated it and the coroutine of the task that ran.

    ``size`` (bytes) is an estimate from ``samples`` samples: with ten of them it is off by a third or so, with a
    hundred by a tenth.  ``stack`` is outermost first; ``coroutine`` is None outside of tasks.
    """

    stack: tuple[FrameSummary, ...]
    coroutine: str | None
    size: int
    samples: int

    @property
    def place(self) -> tuple[str, int, str] | None:
        """File, line and qualified name of the program's own line that allocated it; None without a stack."""
        frame = user_frame(self.stack)
        return None if frame is None else (frame.filename, frame.lineno or 0, qualified_name(frame))

    def __str__(self) -> str:
        place = self.place
        where = "an unknown place" if place is None else f"{place[0]}:{place[1]} in {place[2]}"
        task = "" if self.coroutine is None else f", in a task of {self.coroutine}"
        return f"{self.size / _MEGABYTE:.1f} MB ({self.samples} samples) at {where}{task}"

    def format_stack(self) -> str:
        """Format the stack as a traceback does."""
        return format_stack(self.stack)


@dataclass(frozen=True)
class Allocations:
    """What survives of the memory allocated since the trace began, the largest site first.  Sizes are bytes."""

    sites: tuple[AllocationSite, ...]
    total: int
    dropped: int

    def by_coroutine(self) -> dict[str | None, int]:
        """Bytes that survive by the coroutine of the task that allocated them, the largest first."""
        sizes: dict[str | None, int] = {}
        for site in self.sites:
            sizes[site.coroutine] = sizes.get(site.coroutine, 0) + site.size
        return dict(sorted(sizes.items(), key=lambda entry: -entry[1]))

    def since(self, earlier: "Allocations") -> "Allocations":
        """What is there more than there was at an earlier reading of the same trace."""
        before = {_key(site): site for site in earlier.sites}
        grown = []
        for site in self.sites:
            old = before.get(_key(site))
            size, samples = (
                (site.size, site.samples) if old is None else (site.size - old.size, site.samples - old.samples)
            )
            if size > 0 and samples > 0:
                grown.append(AllocationSite(site.stack, site.coroutine, size, samples))
        grown.sort(key=lambda site: -site.size)
        return Allocations(tuple(grown), sum(site.size for site in grown), self.dropped - earlier.dropped)

    def text(self, limit: int = 10) -> str:
        """The ``limit`` largest sites, one a line."""
        lines = [f"About {self.total / _MEGABYTE:.1f} MB survive, from {len(self.sites)} places:"]
        lines += [f"  {site}" for site in self.sites[:limit]]
        if self.dropped:
            lines.append(f"  ({self.dropped} samples found no room: raise sample_bytes)")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()


class AllocationTrace:
    """Samples the allocations of the whole process while it is on; a context manager, or ``start`` and ``stop``.

    sample_bytes: one sample for so many bytes allocated, on average.  Default 512 KB: a program that does nothing but
    allocate then takes about a tenth longer, and sites that hold a few MB are seen.  At most 65,536 samples are kept.

    Only one trace can be on at a time.  Raises RuntimeError where another one is, or where this interpreter's stacks
    cannot be read; ValueError for a size below 1.
    """

    def __init__(self, sample_bytes: int = 512 * 1024) -> None:
        if isinstance(sample_bytes, bool) or not isinstance(sample_bytes, int):
            raise TypeError(f"sample_bytes must be a whole number of bytes, got {sample_bytes!r}")
        if sample_bytes < 1:
            raise ValueError(f"sample_bytes must be at least 1, got {sample_bytes}")
        self.sample_bytes = sample_bytes
        self._on = False

    @property
    def on(self) -> bool:
        """Whether this trace is sampling."""
        return self._on

    def start(self) -> Self:
        """Begin to sample."""
        _core.alloc_start(self.sample_bytes)
        self._on = True
        return self

    def stop(self) -> None:
        """Forget all samples and put Python's allocators back.  Idempotent."""
        if self._on:
            self._on = False
            _core.alloc_stop()

    def read(self) -> Allocations:
        """What survives now of the memory allocated since the start.  Raises RuntimeError where the trace is off."""
        if not self._on:
            raise RuntimeError("this AllocationTrace is off: start() it first")
        sizes: dict[tuple[int, str | None], tuple[int, int]] = {}
        stacks: dict[int, Sequence[_core.RawFrame]] = {}
        for raw, coroutine, _, weight, _, stack in _core.alloc_read():
            size, samples = sizes.get((stack, coroutine), (0, 0))
            sizes[stack, coroutine] = size + weight, samples + 1
            stacks.setdefault(stack, raw)
        frames = {stack: frames_from_raw(raw) for stack, raw in stacks.items()}
        sites = [AllocationSite(frames[key[0]], key[1], size, samples) for key, (size, samples) in sizes.items()]
        sites.sort(key=lambda site: -site.size)
        return Allocations(tuple(sites), sum(site.size for site in sites), int(_core.alloc_info()["dropped"]))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _key(site: AllocationSite) -> tuple[object, ...]:
    return site.coroutine, tuple((frame.filename, frame.lineno, frame.name, frame.colno) for frame in site.stack)
