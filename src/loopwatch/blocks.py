"""From what the core measured (``RawBlock``) to findings (``EventLoopBlock``).

The blocking stack is found from the outside inwards: at each depth the frame that took most of the time is followed.  A
loop body whose time is spread over ten lines is so not outweighed by one slow line elsewhere.
"""

import contextlib
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from loopwatch import _core, requests
from loopwatch.findings import CallerContext, Cause, EventLoopBlock, Segment
from loopwatch.requests import RequestInfo
from loopwatch.stacks import Frame, below_loop, frames_from_raw, is_runner, launcher_frames, qualified_name

if TYPE_CHECKING:
    from loopwatch._core import RawBlock, RawFrame, RawSegment

_SECOND = 1e9
_Stack = Sequence[traceback.FrameSummary]
_Key = tuple[str, int | None, str] | None  # None: the stack ends above this depth


def block_from_raw(
    raw: "RawBlock", block_id: int, *, loop: str | None = None, caller: CallerContext | None = None
) -> EventLoopBlock:
    """Make a finding of what the core measured.

    ``loop`` is the loop's repr; with ``caller``, stacks begin at the caller's frame if they hold it.
    """
    segments = tuple(_segment(part, caller) for part in raw["segments"])
    main = _heaviest_stack(segments, lambda part: part.stack)
    cause = _main_cause(segments)
    if raw["stall"]:  # the machine kept it from running: whatever it was about to do is not to blame
        cause = Cause.STOPPED if raw["stopped_ns"] >= raw["starved_ns"] else Cause.STARVED
    held = [part for part in segments if part.cause is cause is Cause.GIL]
    holder = _heaviest_stack(held, lambda part: part.holder_stack or ())
    first = main or max(segments, key=lambda part: part.duration, default=None)
    callbacks, heaviest, scattered = _callbacks(raw["segments"], segments)
    return EventLoopBlock(
        block_id=block_id,
        duration=raw["duration_ns"] / _SECOND,
        threshold=raw["threshold_ns"] / _SECOND,
        timestamp=raw["wall_ns"] / _SECOND,
        blocking_stack=list(main.stack) if main else None,
        segments=segments,
        cause=cause,
        callback=first.callback if first else None,
        task=first.task if first else None,
        thread_name=thread_name(raw["thread_native_id"], raw["thread_ident"]),
        thread_id=raw["thread_ident"],
        loop=loop,
        callbacks=callbacks,
        heaviest=heaviest,
        holder_thread=holder.holder_thread if holder else None,
        holder_stack=list(holder.holder_stack or ()) if holder else None,
        scattered=scattered,
        stopped=raw["stopped_ns"] / _SECOND,
        starved=raw["starved_ns"] / _SECOND,
        stall=raw["stall"],
        missing_reason=_captured_reason(raw) if main else _missing_reason(raw),
        request=_request(holder or first, segments),
    )


def thread_name(native_id: int | None, ident: int | None = None, comm: str | None = None) -> str | None:
    """Name of a thread of this process: Python's, else the kernel's, else ``thread-ID``; None without any id."""
    thread = getattr(threading, "_active", {}).get(ident)  # by ident: a search costs much among hundreds of threads
    if thread is not None and thread.native_id == native_id:
        return str(thread.name)
    for thread in threading.enumerate():
        if (native_id and thread.native_id == native_id) or (ident and thread.ident == ident):
            return thread.name
    comm = comm or _kernels_name(f"/proc/self/task/{native_id}/comm" if native_id else None)
    if comm and comm != _kernels_name("/proc/self/comm"):  # which every thread begins with: nobody named this one
        return comm
    known = native_id or ident
    return f"thread-{known}" if known else None


def _kernels_name(path: str | None) -> str | None:
    with contextlib.suppress(OSError):
        if path is not None:
            with open(path, errors="replace") as file:
                return file.read().rstrip("\n")
    return None


def _request(main: Segment | None, segments: Sequence[Segment]) -> RequestInfo | None:
    """The request of the main segment; where its first moments lay before it, that of its task's longest segment."""
    if main is None or main.request is not None:
        return None if main is None else main.request
    same = [part for part in segments if part.request and part.task is not None and part.task == main.task]
    return max(same, key=lambda part: part.duration).request if same else None


def _segment(raw: "RawSegment", caller: CallerContext | None) -> Segment:
    holder = None
    if raw["holder_id"] is not None:
        holder = thread_name(raw["holder_id"], comm=raw["holder_comm"])
    holder_frames = raw["holder_frames"]
    frames = _frames(raw["frames"])
    callback = callback_name(raw["callback"], frames)
    if callback is None and raw["task"] is None and raw["callback_total"] is not None and not raw["callback_framed"]:
        callback = _called_by_loop(frames)  # uvloop's
    try:
        cause = Cause(raw["cause"])
    except ValueError:
        cause = Cause.UNKNOWN
    return Segment(
        stack=_from_caller(frames, caller),
        duration=raw["duration_ns"] / _SECOND,
        cause=cause,
        syscall=raw["syscall"],
        holder_thread=holder,
        holder_thread_id=raw["holder_id"],
        holder_stack=None if holder_frames is None else _frames(holder_frames),
        task=raw["task"],
        callback=callback,
        callback_index=raw["callback_index"],
        callback_total=raw["callback_total"],
        samples=raw["samples"],
        omitted=raw["omitted"],
        request=requests.by_number(raw.get("request", 0)),
    )


def _frames(raw: "Sequence[RawFrame]") -> tuple[Frame, ...]:
    frames = frames_from_raw(raw)
    return frames[launcher_frames(frames) :]


def _from_caller(frames: tuple[Frame, ...], caller: CallerContext | None) -> tuple[Frame, ...]:
    if caller is not None:
        for depth, frame in enumerate(frames):
            if caller.matches(frame):
                return frames[depth:]
    return frames


def _heaviest_stack(segments: Sequence[Segment], stack_of: Callable[[Segment], _Stack]) -> Segment | None:
    """The segment whose stack took most of the time, found frame by frame from the outermost."""
    left = [segment for segment in segments if stack_of(segment)]
    depth = 0
    while left:
        shares: dict[_Key, float] = {}
        for segment in left:
            key = _frame_key(stack_of(segment), depth)
            shares[key] = shares.get(key, 0.0) + segment.duration
        best = max(shares, key=lambda key: shares[key])
        left = [segment for segment in left if _frame_key(stack_of(segment), depth) == best]
        if best is None or len(left) == 1:
            return max(left, key=lambda segment: segment.duration)
        depth += 1
    return None


def _frame_key(stack: _Stack, depth: int) -> _Key:
    if depth >= len(stack):
        return None
    frame = stack[depth]
    return frame.filename, frame.lineno, frame.name


def _main_cause(segments: Sequence[Segment]) -> Cause:
    totals: dict[Cause, float] = {}
    for segment in segments:
        totals[segment.cause] = totals.get(segment.cause, 0.0) + segment.duration
    return max(totals, key=lambda cause: totals[cause], default=Cause.UNKNOWN)


def _callbacks(
    raw: "Sequence[RawSegment]", segments: Sequence[Segment]
) -> tuple[int | None, tuple[str, float] | None, bool]:
    """How many callbacks the iteration ran, the heaviest with its seconds, and whether none took over half of it.

    uvloop's callbacks for I/O and timers are not counted: where they took most of it, nothing is known.
    """
    total = max((part.callback_total for part in segments if part.callback_total is not None), default=None)
    covered = sum(part.duration for part in segments)
    uncounted = (part.duration for part in segments if part.callback_index is None and part.callback_total is not None)
    if sum(uncounted) > covered / 2:
        return None, None, False
    shares: dict[int, float] = {}
    names: dict[int, str] = {}
    before = -1
    for sampled, part in zip(raw, segments, strict=True):
        index = part.callback_index
        if index is not None:
            # Those that ran between two samples share the time between them: they were all short.  From its first
            # sample to its last it was this one.
            own = min(sampled["steady_ns"] / _SECOND, part.duration)
            shares[index] = shares.get(index, 0.0) + own + (part.duration - own) / max(index - before, 1)
            before = index
            names.setdefault(index, part.task or part.callback or f"callback {index}")
    if not shares:
        return total, None, False
    worst = max(shares, key=lambda index: shares[index])
    scattered = len(shares) > 1 and shares[worst] <= covered / 2
    return total if total is not None else len(shares), (names[worst], shares[worst]), scattered


def callback_name(callback: str | None, frames: tuple[Frame, ...]) -> str | None:
    """The name of what the loop called; uvloop.run() wraps the coroutine that it is given: then that one's."""
    return callback if callback != "run.<locals>.wrapper" else _called_by_loop(frames) or callback


def _called_by_loop(frames: tuple[Frame, ...]) -> str | None:
    """The function of the program that a loop of C code called; None where it called C code, or nobody knows."""
    called = below_loop(frames)
    if len(called) == len(frames):
        return None
    return next((qualified_name(frame) for frame in called if not is_runner(frame.filename)), None)


def _captured_reason(raw: "RawBlock") -> str | None:
    """What the reader of a stack must know about it; None where it was read as it was."""
    if not raw.get("captured"):
        return None
    return (
        "the stack was captured under the GIL, as it cannot be read from outside: it may be later than the block's "
        f"start, and of a C call that holds the GIL it shows the moment after ({_core.LAYOUT})"
    )


def _missing_reason(raw: "RawBlock") -> str:
    if raw["dropped"]:
        return f"no sample was kept: {raw['dropped']} found no room in the watchdog's buffer"
    layout = str(getattr(_core, "LAYOUT", "exact"))
    if layout != "exact":
        return f"stacks of this Python ({sys.version.split()[0]}) cannot be read from outside: {layout}"
    if raw["segments"] and not any(part["samples"] for part in raw["segments"]):
        return "no sample was taken: so many loops were busy that the watchdog did not come to this one"
    if raw["segments"]:
        return "samples were taken, but no frame could be read in any of them"
    return "no sample was taken: the block ended before the watchdog looked at it"
