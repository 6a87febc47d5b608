"""What ``loopwatch run`` prints: each block as it ends, and the table at exit."""

import contextlib
import os
import traceback
from collections.abc import Callable, Mapping, Sequence

from loopwatch.findings import Cause, EventLoopBlock, Segment, callbacks_text
from loopwatch.printable import printable
from loopwatch.stacks import format_stack, is_library, is_runner, qualified_name, user_frame
from loopwatch.summary import Place, Summary

SHOWN_FRAMES = 3
SHOWN_GROUPS = 20
SHOWN_OTHERS = 5

Paint = Callable[[str, str], str]
_CODES = {"bad": "1;31", "place": "1", "dim": "2"}


class Terminal:
    """A file descriptor that text is written to; never raises, never buffers, colours only on a terminal.

    Each text goes out in one piece, so that reports of two threads do not mix.  Where the program closed the descriptor
    (a daemon closes all of them) and has its number again for a file of its own, nothing is written there; but to
    stderr, if that is still what this one led to.
    """

    def __init__(self, descriptor: int, environ: Mapping[str, str] = os.environ) -> None:
        self.descriptor = descriptor
        self._identity = _identity(descriptor)
        self.colour = wants_colour(descriptor, environ)

    def write(self, text: str) -> None:
        """Write text; if it cannot be written it is lost."""
        if self._identity is None:
            return
        if _identity(self.descriptor) != self._identity:
            if _identity(_STDERR) != self._identity:
                return
            self.descriptor = _STDERR
        data = text.encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self.descriptor, data) :]

    def paint(self, style: str, text: str) -> str:
        """Colour text as ``bad``, ``place`` or ``dim``, if this terminal shows colours."""
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self.colour else text


_STDERR = 2


def _identity(descriptor: int) -> tuple[int, int] | None:
    """What file a descriptor leads to; None where it is closed."""
    try:
        status = os.fstat(descriptor)
    except (OSError, OverflowError):
        return None
    return status.st_dev, status.st_ino


def wants_colour(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Tell whether to colour: only on a terminal that can, and not where NO_COLOR is set."""
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return False
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def plain(style: str, text: str) -> str:
    """Leave text uncoloured."""
    return text


def short_path(filename: str) -> str:
    """The path relative to the current folder where the file lies in it, else as it is."""
    try:
        inside = os.path.relpath(filename)
    except (OSError, ValueError):
        return filename
    outside = inside.startswith("..") or filename == f"/{inside}"  # where that folder is /, too
    return filename if outside or filename.startswith("<") else inside


def short_place(place: Place | None) -> str:
    """Format a line to fix as ``app.py:42 in handler``."""
    if place is None:
        return "unknown place"
    filename, line, name = place
    return printable(f"{short_path(filename)}:{line} in {name}")


def block_text(block: EventLoopBlock, paint: Paint = plain, process: int | None = None) -> str:
    """Format one block for a person at a terminal: what, where, why, and the lines that led there.

    ``process`` is the id of the process, where it is not the one that was started.
    """
    who = []
    if block.task:
        who.append(f"task {block.task!r}")
    elif block.callback:
        who.append(f"callback {block.callback!r}")
    if block.thread_name:
        who.append(f"thread {block.thread_name!r}")
    if process is not None:
        who.append(f"process {process}")
    head = paint("bad", f"BLOCK {block.duration:.3f}s") + "  " + paint("place", short_place(block.culprit))
    lines = [f"{head}  cause: {block.why}" + (f"  [{', '.join(who)}]" if who else "")]
    if block.scattered and block.heaviest is not None:
        lines.append(f"  callbacks: {callbacks_text(block)}")
    lines += [f"  also {seconds:.3f}s  {short_place(place)}: {why}" for place, seconds, why in other_places(block)]
    if block.blocking_stack:
        lines.append(format_stack(shown_frames(block.blocking_stack)).rstrip("\n"))
        if block.missing_reason:
            lines.append(f"  Beware: {block.missing_reason}")
    else:
        lines.append(f"  No stack: {block.missing_reason or 'not recorded'}")
    if block.holder_stack:
        lines.append(f"  Thread {block.holder_thread!r} held the GIL at:")
        lines.append(format_stack(shown_frames(block.holder_stack)).rstrip("\n"))
    return "\n".join(lines) + "\n"


def other_places(block: EventLoopBlock) -> list[tuple[Place, float, str]]:
    """Other places that had a tenth of the block or more, the most time first: line, seconds and cause.

    Python code is one place a function, however many of its lines were met; a call is one a line.
    """
    found: dict[tuple[str, str, int], list[Segment]] = {}
    own = user_frame(block.blocking_stack or ())
    for segment in block.segments:
        frame = user_frame(segment.stack)
        if frame is None:
            continue
        line = 0 if segment.cause is Cause.PYTHON else frame.lineno or 0
        same = own is not None and (own.filename, qualified_name(own)) == (frame.filename, qualified_name(frame))
        if not same or (line and own is not None and line != own.lineno):
            found.setdefault((frame.filename, qualified_name(frame), line), []).append(segment)
    others = []
    for (filename, name, _line), segments in found.items():
        seconds = sum(segment.duration for segment in segments)
        longest = max(segments, key=lambda segment: segment.duration)
        frame = user_frame(longest.stack)
        if frame is not None and seconds >= block.duration / 10:
            others.append(((filename, frame.lineno or 0, name), seconds, longest.detail))
    return sorted(others, key=lambda other: -other[1])[:SHOWN_OTHERS]


def shown_frames(stack: Sequence[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """The frames a person needs: the last few of the program's own, and the innermost one."""
    own = [frame for frame in stack if not is_library(frame.filename)]
    if not own:
        own = [frame for frame in stack if not is_runner(frame.filename)] or list(stack)
    shown = own[-SHOWN_FRAMES:]
    if stack[-1] is not shown[-1]:
        shown.append(stack[-1])
    return shown


def summary_text(summary: Summary, paint: Paint = plain, process: int | None = None) -> str:
    """Format the table at exit: one line for each line to fix, the most time first.

    ``process`` is the id of the process, where it is not the one that was started.
    """
    name = "loopwatch" if process is None else f"loopwatch: process {process}"
    length = f"{summary.threshold:.3f}s or longer"
    if summary.count:
        number = "1 block" if summary.count == 1 else f"{summary.count} blocks"
        head = paint("bad", f"{name}: {number} of {length}")
    else:
        head = f"{name}: no block of {length}"
    lines = [f"{name}: NOT WATCHED: {printable(reason)}" for reason in summary.unwatched]
    lines.append(f"{head} in {summary.elapsed:.1f}s; {_loops_text(summary)}")
    if summary.count:
        lines.append(paint("dim", f"{'count':>7}  {'total':>9}  {'longest':>9}  where, and why"))
    groups = summary.groups
    for group in groups[:SHOWN_GROUPS]:
        place = paint("place", short_place(group.place))
        lines.append(f"{group.count:>7}  {group.total:>8.3f}s  {group.longest:>8.3f}s  {place}: {group.why}")
    if len(groups) > SHOWN_GROUPS:
        rest = groups[SHOWN_GROUPS:]
        total = sum(group.total for group in rest)
        lines.append(f"{sum(group.count for group in rest):>7}  {total:>8.3f}s  {'':>9}  in {len(rest)} more lines")
    if summary.excluded:
        lines.append(f"  not shown: {summary.excluded} left out by --include and --exclude")
    if summary.stall_count:
        number = "1 stall" if summary.stall_count == 1 else f"{summary.stall_count} stalls"
        lines.append(
            f"  not the program's fault: {number} (mostly stopped or without a CPU, the rest below the threshold)"
        )
    if summary.dropped_samples:
        lines.append(f"  dropped: {summary.dropped_samples} samples found no room")
    return "\n".join(lines) + "\n"


def _loops_text(summary: Summary) -> str:
    total = sum(summary.loops.values())
    if not total:
        return "no event loop ran"
    kinds = [f"{count} {kind}{'' if exact else ', sampled'}" for (kind, exact), count in sorted(summary.loops.items())]
    return f"{total} {'loop' if total == 1 else 'loops'} watched ({'; '.join(kinds)})"
