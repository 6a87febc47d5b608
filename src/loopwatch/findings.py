"""Blocks as the user sees them: immutable, printable, picklable.

``blocks.py`` makes them from what the core measured; nothing here knows the core.  Durations are seconds.
"""

import enum
import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from loopwatch.printable import printable
from loopwatch.requests import RequestInfo, request_text
from loopwatch.stacks import format_stack, module_of, qualified_name, user_frame

__all__ = ["CallerContext", "Cause", "EventLoopBlock", "Segment"]


class Cause(enum.StrEnum):
    """Why a segment took time.  The values are the codes used in JSON reports."""

    PYTHON = "python"
    C_CALL = "c_call"
    C_CALL_RELEASED = "c_call_released"
    SYSCALL = "syscall"
    LOCK = "lock"
    GIL = "gil"
    STARVED = "starved"
    STOPPED = "stopped"
    GC = "gc"
    IMPORT = "import"
    UNKNOWN = "unknown"

    def describe(self, segment: "Segment | None" = None) -> str:
        """Say the cause in plain English, with the names the segment knows (system call, holder of the GIL)."""
        if segment is not None and self is Cause.SYSCALL and segment.syscall:
            return f"system call {segment.syscall}"
        if segment is not None and self is Cause.GIL and segment.holder_thread_id is not None:
            return f"GIL held by thread {segment.holder_thread!r} (native id {segment.holder_thread_id})"
        return _SENTENCES[self]


_SENTENCES = {
    Cause.PYTHON: "Python code",
    Cause.C_CALL: "C call that holds the GIL",
    Cause.C_CALL_RELEASED: "C call that released the GIL",
    Cause.SYSCALL: "system call",
    Cause.LOCK: "waits for a lock",
    Cause.GIL: "GIL held by another thread",
    Cause.STARVED: "CPU starved by other work",
    Cause.STOPPED: "process was stopped",
    Cause.GC: "garbage collection",
    Cause.IMPORT: "import of a module",
    Cause.UNKNOWN: "unknown",
}


@dataclass(frozen=True)
class CallerContext:
    """Where a guard was written.  Stacks are cut so that they begin at this function's frame, if they hold it.

    ``lineno`` is only shown: the function has moved on by the time it blocks.
    """

    filename: str
    name: str
    lineno: int | None = None

    def __str__(self) -> str:
        return f"{self.filename}:{self.name}:{self.lineno}"

    def matches(self, frame: traceback.FrameSummary) -> bool:
        """Tell whether a frame belongs to this function, by file and by bare or qualified name."""
        if self.name not in (frame.name, qualified_name(frame)):
            return False
        return frame.filename == self.filename or os.path.abspath(frame.filename) == os.path.abspath(self.filename)


@dataclass(frozen=True)
class Segment:
    """A run of equal samples inside a block: one stack with its share of the time.

    ``stack`` is outermost first; ``omitted`` frames in its middle are left out when it is very deep.  ``duration`` is
    in seconds.  ``callback_index`` counts the callbacks of the loop's iteration from 0.  ``request`` is what it ran
    for, where a web integration is used.  None means unknown.
    """

    stack: tuple[traceback.FrameSummary, ...] = field(hash=False)
    duration: float
    cause: Cause
    syscall: str | None = None
    holder_thread: str | None = None
    holder_thread_id: int | None = None
    holder_stack: tuple[traceback.FrameSummary, ...] | None = field(default=None, hash=False)
    task: str | None = None
    callback: str | None = None
    callback_index: int | None = None
    callback_total: int | None = None
    samples: int = 0
    omitted: int = 0
    request: RequestInfo | None = field(default=None, hash=False)

    @property
    def detail(self) -> str:
        """The cause in plain English, with the names of the system call, or of the thread that held the GIL."""
        return self.cause.describe(self)


@dataclass(frozen=True)
class EventLoopBlock:
    """One stretch of time in which an event loop did not come back to wait for I/O.

    ``block_id`` counts from 1 in each guard; ``duration`` and ``threshold`` are seconds; ``timestamp`` is the Unix time
    at which the block began.  ``blocking_stack`` is where most of it was spent, outermost first; where there is none,
    ``missing_reason`` says why (or, beside a stack, what is doubtful about it).  ``callbacks`` is how many callbacks
    the iteration ran, ``heaviest`` the longest of them with its seconds; ``scattered`` tells that none took over
    half.  ``holder_thread`` and ``holder_stack`` are those of the thread that held the GIL, if that is the
    cause.  ``stopped`` and ``starved`` are the seconds of it in which the process, or this thread, was kept from
    running; ``stall`` tells that they are more than half of it and that what remains is below the threshold: then the
    machine is to blame, not the program.  ``request`` holds the route, method and request_id of the web request it ran
    for, None where there is none or no integration is used.
    """

    kind: ClassVar[str] = "block"

    block_id: int
    duration: float
    threshold: float
    timestamp: float
    blocking_stack: list[traceback.FrameSummary] | None = field(default=None, hash=False)
    segments: tuple[Segment, ...] = field(default=(), kw_only=True)
    cause: Cause = field(default=Cause.UNKNOWN, kw_only=True)
    callback: str | None = field(default=None, kw_only=True)
    task: str | None = field(default=None, kw_only=True)
    thread_name: str | None = field(default=None, kw_only=True)
    thread_id: int | None = field(default=None, kw_only=True)
    loop: str | None = field(default=None, kw_only=True)
    callbacks: int | None = field(default=None, kw_only=True)
    heaviest: tuple[str, float] | None = field(default=None, kw_only=True)
    holder_thread: str | None = field(default=None, kw_only=True)
    holder_stack: list[traceback.FrameSummary] | None = field(default=None, kw_only=True, hash=False)
    scattered: bool = field(default=False, kw_only=True)
    stopped: float = field(default=0.0, kw_only=True)
    starved: float = field(default=0.0, kw_only=True)
    stall: bool = field(default=False, kw_only=True)
    missing_reason: str | None = field(default=None, kw_only=True)
    request: RequestInfo | None = field(default=None, kw_only=True, hash=False)

    @property
    def culprit(self) -> tuple[str, int, str] | None:
        """File name, line and qualified name of the line to fix; None where there is no stack.

        It is the innermost frame of the program's own code (not of Python's library or an installed package, as long as
        the stack holds anything else), and that of the other thread where another one held the GIL.
        """
        frame = user_frame(self.holder_stack or self.blocking_stack or ())
        return None if frame is None else _place(frame)

    @property
    def innermost(self) -> tuple[str, int, str] | None:
        """File name, line and qualified name of the innermost frame of all; None where there is no stack."""
        stack = self.holder_stack or self.blocking_stack
        return _place(stack[-1]) if stack else None

    @property
    def why(self) -> str:
        """The causes in plain English, the heaviest first; those under a tenth of the block are left out."""
        totals: dict[Cause, float] = {}
        longest: dict[Cause, Segment] = {}
        for segment in self.segments:
            totals[segment.cause] = totals.get(segment.cause, 0.0) + segment.duration
            if segment.cause not in longest or segment.duration > longest[segment.cause].duration:
                longest[segment.cause] = segment
        causes = sorted(totals, key=lambda cause: (cause is not self.cause, -totals[cause]))
        if self.cause not in totals:
            return self.cause.describe()
        causes = causes[:1] + [cause for cause in causes[1:] if totals[cause] >= self.duration / 10]
        if len(causes) == 1:
            return causes[0].describe(longest[causes[0]])
        return ", ".join(f"{cause.describe(longest[cause])} ({totals[cause]:.3f}s)" for cause in causes)

    @property
    def name(self) -> str:
        return f"block-{self.block_id}"

    def place(self) -> tuple[str, int, str] | None:
        """File, line and qualified name to group it by: the culprit."""
        return self.culprit

    def labels(self) -> Mapping[str, Sequence[str]]:
        """What a suppression can match, as ``Leak.labels`` says; a block has no creator."""
        stack = self.blocking_stack or []
        culprit = self.culprit
        return {
            "name": [self.task] if self.task else [],
            "qualname": [self.callback] if self.callback else [],
            "stack": [qualified_name(frame) for frame in stack],
            "creator": [],
            "module": [] if culprit is None else [module_of(culprit[0])],
        }

    def headline(self) -> str:
        """Say in one line how long it took (seconds), at which line and why."""
        return f"block-{self.block_id}: {self.duration:.3f}s at {place_text(self.culprit)}, cause: {self.why}"

    def format_blocking_stack(self) -> str:
        """Format the blocking stack as a traceback does; where there is none, say why."""
        if not self.blocking_stack:
            return f"  No stack: {self.missing_reason or 'not recorded'}\n"
        stack = format_stack(self.blocking_stack)
        return f"{stack}  Beware: {self.missing_reason}\n" if self.missing_reason else stack

    def __str__(self) -> str:
        lines = [
            f"Event Loop Block: block-{self.block_id}",
            f"  Duration: {self.duration:.3f}s (threshold: {self.threshold:.3f}s)",
            f"  Timestamp: {self.timestamp:.3f}",
            f"  Cause: {self.why}",
        ]
        lines += [f"  {line}" for line in self._details()]
        lines.append("  Blocking Stack:")
        lines += _indented(self.format_blocking_stack())
        if self.holder_stack:
            lines.append(f"  Stack of thread {self.holder_thread!r}, which held the GIL:")
            lines += _indented(format_stack(self.holder_stack))
        return "\n".join(lines)

    def _details(self) -> list[str]:
        lines = []
        if self.task:
            lines.append(f"Task: {printable(self.task)}")
        elif self.callback:
            lines.append(f"Callback: {printable(self.callback)}")
        if self.request is not None:
            lines.append(f"Request: {request_text(self.request)}")
        if self.thread_name and self.thread_name != "MainThread":
            lines.append(f"Thread: {printable(self.thread_name)}")
        if self.scattered and self.heaviest is not None:
            lines.append(f"Callbacks: {callbacks_text(self)}")
        if self.starved >= self.duration / 10 > 0:
            lines.append(f"Starved: {self.starved:.3f}s of it, the CPU was busy with other work")
        if self.stopped >= self.duration / 10 > 0:
            lines.append(f"Stopped: {self.stopped:.3f}s of it, the process was stopped")
        omitted = max((segment.omitted for segment in self.segments), default=0)
        if omitted:
            lines.append(f"Depth: {omitted} frames in the middle of the stack are left out")
        return lines


def callbacks_text(block: EventLoopBlock) -> str:
    """How many callbacks there were, and the heaviest of them."""
    name, seconds = block.heaviest or ("?", 0.0)
    taken = f"{seconds:.3f}s" if seconds >= 0.001 else "under 1 ms"
    return f"{block.callbacks} in one iteration, heaviest {name!r} ({taken})"


def place_text(place: tuple[str, int, str] | None) -> str:
    """Format a culprit as ``file:line in name``, safe to print."""
    return "an unknown place" if place is None else f"{printable(place[0])}:{place[1]} in {printable(place[2])}"


def _place(frame: traceback.FrameSummary) -> tuple[str, int, str]:
    return frame.filename, frame.lineno or 0, qualified_name(frame)


def _indented(stack: str) -> list[str]:
    return [f"  {line}" for line in stack.splitlines()]
