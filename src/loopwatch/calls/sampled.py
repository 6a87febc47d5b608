"""The engine "sample": the calls of a block, out of the watchdog's samples of it.

Told is every call that may have lasted for the threshold, innermost last; what of a coroutine's time is left without
them is told as the coroutine's own, if that is long enough by itself.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loopwatch.blocks import thread_name
from loopwatch.calls import source
from loopwatch.calls.info import ONE, ONE_OR_SEVERAL, BlockingCallInfo
from loopwatch.calls.paths import PathFilter
from loopwatch.calls.runs import FROM_C, Run, is_c_call, main_cause, runs_of, spent_in_c
from loopwatch.findings import Cause
from loopwatch.stacks import frames_from_raw, is_library, is_runner, module_of

if TYPE_CHECKING:
    from loopwatch._core import RawBlock, RawFrame, RawSegment

_MS = 1e6
_LOOP_NAMES = ("_run_once", "run_forever", "run_until_complete", "Runner.run", "unrolled_run")


def calls_of(raw: "RawBlock", threshold_ns: int, paths: PathFilter, base: int) -> list[BlockingCallInfo]:
    """The calls of a block that were at least so long.  ``base``: how many frames lie below what the loop calls."""
    if raw["stall"] or not raw["segments"]:
        return []
    runs = list(runs_of(raw["segments"]))
    first = {id(part): _first_depth(part, base) for part in raw["segments"]}
    told = [run for run in runs if _is_told(run, threshold_ns, paths, first[id(run.segments[0])])]
    covered = {id(part) for run in told for part in run.segments}
    own = _own_code(runs, covered, threshold_ns, paths, first)
    bare = _by_the_loop(raw["segments"], covered, threshold_ns, paths, first)
    thread = thread_name(raw["thread_native_id"], raw["thread_ident"])
    found = [_call_info(run, paths, first[id(run.segments[0])], thread) for run in reversed(told)]
    found += [_own_info(run, parts, first[id(parts[0])], thread) for run, parts in own]
    return found + [_bare_info(parts, first[id(parts[0])], thread) for parts in bare]


def _first_depth(segment: "RawSegment", base: int) -> int:
    """The index of the outermost frame that the loop called."""
    frames = segment["frames"]
    for index in range(len(frames) - 1, -1, -1):
        if frames[index][1].endswith(_LOOP_NAMES) and is_library(frames[index][0]):
            return max(index + 1, base)
    return base


def _is_told(run: Run, threshold_ns: int, paths: PathFilter, first: int) -> bool:
    if run.is_coroutine or run.depth < first or run.duration_ns + run.precision_ns // 2 < threshold_ns:
        return False
    if not run.is_c:
        return paths.passes(run.frame[0])
    shifts = sum(part["shifts"] for part in run.segments)  # so often it returned: short calls are their caller's
    if run.duration_ns < threshold_ns * (shifts + 1):
        return False
    return is_c_call(run) and any(paths.passes(frame[0]) for frame in run.segments[0]["frames"][first:])


def _by_the_loop(
    segments: "Sequence[RawSegment]", covered: set[int], threshold_ns: int, paths: PathFilter, first: dict[int, int]
) -> "list[list[RawSegment]]":
    """The C functions that the loop called itself, as in ``call_soon(time.sleep, 1)``: no file of the program's made
    the call, so only a choice of files (``include_paths``) leaves them out."""
    found: dict[tuple[object, object], list[RawSegment]] = {}
    for part in segments:
        inner = part["frames"][first[id(part)] :]
        alone = all(frame[1].endswith("Handle._run") and is_runner(frame[0]) for frame in inner)
        if alone and part["callback_is_c"] and id(part) not in covered and not paths.include:
            found.setdefault((part["callback_index"], part["callback"]), []).append(part)
    return [
        parts
        for parts in found.values()
        if sum(part["duration_ns"] for part in parts) >= threshold_ns and spent_in_c(parts)
    ]


def _own_code(
    runs: Sequence[Run], covered: set[int], threshold_ns: int, paths: PathFilter, first: dict[int, int]
) -> "list[tuple[Run, list[RawSegment]]]":
    """The coroutines that took long by themselves, with the segments that no told call explains.

    The innermost one is asked first; what is too short for it is left to the one that awaits it.
    """
    found = []
    coroutines = [run for run in runs if run.is_coroutine and paths.passes(run.frame[0])]
    for run in sorted(coroutines, key=lambda run: -run.depth):
        parts = [part for part in run.segments if id(part) not in covered and run.depth >= first[id(part)]]
        if sum(part["duration_ns"] for part in parts) >= threshold_ns:
            found.append((run, parts))
            covered.update(map(id, parts))
    return found


def _call_info(run: Run, paths: PathFilter, first: int, thread: str | None) -> BlockingCallInfo:
    heaviest = run.heaviest()
    if run.is_c:
        name = source.call_name(run.frame) or f"a C call in {_qualified(run.frame)}"
        stack = heaviest["frames"][first:]
        place = _line_to_fix(stack, paths) or run.frame
    else:
        name = _qualified(run.frame)
        stack = heaviest["frames"][first:]
        place = run.call if run.call is not None and run.depth > first and paths.passes(run.call[0]) else run.frame
    return _info(
        name, run.duration_ns, heaviest, place, stack, thread, run.main_cause(), run.precision_ns, run.is_c, run
    )


def _own_info(run: Run, parts: "list[RawSegment]", first: int, thread: str | None) -> BlockingCallInfo:
    heaviest = max(parts, key=lambda part: part["duration_ns"])
    spent = sum(part["duration_ns"] for part in parts)
    cause = main_cause(parts)
    stack = heaviest["frames"][first:]
    index = run.depth - (heaviest["omitted"] if run.depth >= len(heaviest["frames"]) else 0)
    place = heaviest["frames"][index] if 0 <= index < len(heaviest["frames"]) else run.frame
    slack = max(part["slack_ns"] for part in parts)
    return _info(_qualified(run.frame), spent, heaviest, place, stack, thread, cause, slack, False, None)


def _bare_info(parts: "list[RawSegment]", first: int, thread: str | None) -> BlockingCallInfo:
    heaviest = max(parts, key=lambda part: part["duration_ns"])
    spent = sum(part["duration_ns"] for part in parts)
    stack = heaviest["frames"][first:]
    slack = max(part["slack_ns"] for part in parts)
    name = heaviest["callback"] or "a C function"
    return _info(name, spent, heaviest, None, stack, thread, main_cause(parts), slack, True, None)


def _info(
    name: str,
    duration_ns: int,
    heaviest: "RawSegment",
    place: "RawFrame | None",
    stack: "Sequence[RawFrame]",
    thread: str | None,
    cause: str,
    precision_ns: int,
    is_c: bool,
    run: Run | None,
) -> BlockingCallInfo:
    why = Cause(cause)
    return BlockingCallInfo(
        method_name=name,
        duration_ms=duration_ns / _MS,
        is_c_call=is_c,
        file=None if place is None else place[0],
        line=None if place is None else place[2] or None,
        stack=frames_from_raw(stack),
        cause=why,
        detail=_detail(why, heaviest),
        thread=thread,
        task=heaviest["task"],
        own_code=run is None and not is_c,
        precision_ms=precision_ns / _MS,
        calls=ONE if run is None or _is_one(run) else ONE_OR_SEVERAL,
    )


def _detail(cause: Cause, segment: "RawSegment") -> str:
    if cause is Cause.SYSCALL and segment["syscall"]:
        return f"system call {segment['syscall']}"
    if cause is Cause.GIL and segment["holder_id"] is not None:
        return f"GIL held by thread {thread_name(segment['holder_id'], comm=segment['holder_comm'])!r}"
    return cause.describe()


def _qualified(frame: "RawFrame") -> str:
    return f"{module_of(frame[0])}.{frame[1]}"


def _line_to_fix(stack: "Sequence[RawFrame]", paths: PathFilter) -> "RawFrame | None":
    return next((frame for frame in reversed(stack) if paths.passes(frame[0])), None)


def _is_one(run: Run) -> bool:
    """Whether it is proven that a run was a single call, not short ones made one after the other.

    Either the thread never ran between its samples, or no loop of the program's repeats the line it was called from,
    nor the lines from which its callers were.
    """
    if run.is_c and any(part["shifts"] for part in run.segments):
        return False
    return run.advances <= 0 or _once(run)


def _once(run: Run) -> bool:
    caller = run.caller
    if caller is None or _is_callback(run):
        return run.is_coroutine or run.callback_known
    if run.call is None or source.in_loop(run.call) is not False:
        return False
    called_straight = (
        run.is_c or run.is_coroutine or not run.marks & FROM_C or source.calls_by_name(run.call, _bare(run))
    )
    return called_straight and _once(caller)


def _is_callback(run: Run) -> bool:
    """Whether the loop itself called it."""
    return run.caller is not None and is_runner(run.caller.frame[0]) and not is_runner(run.frame[0])


def _bare(run: Run) -> str:
    return run.frame[1].rpartition(".")[2]
