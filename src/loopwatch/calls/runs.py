"""From the samples of one block to the calls seen in them.

A run is a frame that stays, sample after sample, at the same depth: one call.  The core marks the frames that are
surely another call than in the sample before; here they are only followed.  The innermost frame's line is followed in
the same way while the thread is inside C code: that run is a C call.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loopwatch._core import RawFrame, RawSegment

FRESH = 1
FROM_C = 2
_COROUTINE = 0x80 | 0x100 | 0x200  # CO_COROUTINE, CO_ITERABLE_COROUTINE, CO_ASYNC_GENERATOR
_OUTER_KEPT = 28  # of a very deep stack (LW_KEEP_OUTER)
_IN_C = frozenset({"c_call", "c_call_released", "syscall", "lock", "gc"})
_BESIDE_C = frozenset({"gil", "starved", "stopped", "unknown"})  # a C call goes on meanwhile


@dataclass
class Run:
    """One call, or a coroutine's step: the frame as first seen, and the segments it lasted."""

    frame: "RawFrame"
    flags: int
    marks: int
    depth: int
    caller: "Run | None"
    call: "RawFrame | None"  # the caller's frame: where the call was made
    slack_ns: int  # how much earlier it may have begun
    is_c: bool = False
    callback_known: bool = False  # it belongs to one known callback of the iteration
    duration_ns: int = 0
    advances: int = 0  # samples in between which the thread may have come back to this call's line
    end_slack_ns: int = 0
    segments: "list[RawSegment]" = field(default_factory=list)

    @property
    def is_coroutine(self) -> bool:
        return bool(self.flags & _COROUTINE)

    @property
    def precision_ns(self) -> int:
        """How far the duration may be off: half the gap between two samples at each end."""
        return max(self.slack_ns, self.end_slack_ns)

    def add(self, segment: "RawSegment") -> None:
        self.segments.append(segment)
        self.duration_ns += segment["duration_ns"]
        self.advances += segment["advances"]

    def heaviest(self) -> "RawSegment":
        return max(self.segments, key=lambda part: part["duration_ns"])

    def main_cause(self) -> str:
        return main_cause(self.segments)


def main_cause(segments: "Sequence[RawSegment]") -> str:
    """The cause of most of their time."""
    totals: dict[str, int] = {}
    for part in segments:
        totals[part["cause"]] = totals.get(part["cause"], 0) + part["duration_ns"]
    return max(totals, key=lambda cause: totals[cause])


def runs_of(segments: "Sequence[RawSegment]") -> Iterator[Run]:
    """All runs of a block's segments: each begins before those inside it."""
    open_runs: dict[int, Run] = {}
    c_run: Run | None = None
    for number, segment in enumerate(segments):
        after = segments[number + 1]["slack_ns"] if number + 1 < len(segments) else 0
        now: dict[int, Run] = {}
        caller: Run | None = None
        place: RawFrame | None = None
        for index, frame in enumerate(segment["frames"]):
            depth = index + (segment["omitted"] if index >= _OUTER_KEPT else 0)
            flags, marks = segment["marks"][index]
            run = open_runs.get(depth)
            if run is None or marks & FRESH or run.caller is not caller:
                run = Run(frame, flags, marks, depth, caller, place, segment["slack_ns"])
                run.callback_known = segment["callback_framed"]
                run.advances = -segment["advances"]  # how it came here says nothing: see below
                run.add(segment)
                run.advances += max(0, segment["advances"] - 1)
                yield run
            else:
                run.add(segment)
            run.end_slack_ns = after
            now[depth] = run
            caller, place = run, frame
        open_runs = now
        c_run = _c_run(c_run, segment, caller, place)
        if c_run is not None:
            c_run.end_slack_ns = after
            if len(c_run.segments) == 1:
                yield c_run


def _c_run(before: Run | None, segment: "RawSegment", caller: Run | None, place: "RawFrame | None") -> Run | None:
    """The C call that a segment's innermost frame is in, new or still the one before."""
    if caller is None or place is None or segment["cause"] not in _IN_C | _BESIDE_C:
        return None
    if before is not None and before.caller is caller and before.frame == place:
        before.add(segment)
        return before
    run = Run(place, 0, 0, caller.depth + 1, caller, place, segment["slack_ns"], is_c=True)
    run.add(segment)
    run.advances = max(0, segment["advances"] - 1)
    return run


def is_c_call(run: Run) -> bool:
    """Whether a run is one of C code that was spent there."""
    return run.is_c and spent_in_c(run.segments)


def spent_in_c(segments: "Sequence[RawSegment]") -> bool:
    """Whether they were spent in C code, not waiting for the GIL.  A CPU is waited for everywhere."""
    inside = sum(part["duration_ns"] for part in segments if part["cause"] in _IN_C)
    waiting = sum(part["duration_ns"] for part in segments if part["cause"] == "gil")
    return inside > 0 and inside >= waiting
