"""What a thread does now, in words: the core's reading of it and its stack, put together."""

import os
import stat
import sys
import threading
import traceback
from collections.abc import Sequence
from traceback import FrameSummary

from loopwatch.stacks import is_library, qualified_name, user_frame

__all__ = ["clipped", "doing_text", "interpreters_stack"]

_SLEEPS = ("clock_nanosleep", "nanosleep")
_POLLS = ("epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6")
_ON_DESCRIPTOR = (
    *("read", "readv", "pread64", "recvfrom", "recvmsg", "write", "writev", "pwrite64", "sendto", "sendmsg"),
    *("accept", "accept4", "connect", "flock", "fsync", "fdatasync", "ioctl"),
)
# The standard library's functions that wait on a lock, and what for.
_WAITS = {
    "Event.wait": "an Event to be set",
    "Condition.wait": "a Condition to be notified",
    "Condition.wait_for": "a Condition to be notified",
    "Semaphore.acquire": "a Semaphore",
    "Barrier.wait": "the others at a Barrier",
    "Thread.join": "another thread to end",
    "Queue.get": "an item of a Queue",
    "Queue.put": "room in a Queue",
    "Queue.join": "a Queue to be worked off",
    "Future.result": "a Future's result",
    "Future.exception": "a Future's result",
    "_worker": "a job of its executor",
}


def doing_text(state: str, call: str | None, argument: int, holder: int, frames: Sequence[FrameSummary]) -> str:
    """Say what a thread does.  ``state`` as the core has it; ``frames`` its whole stack, outermost first."""
    if state == "new":
        return "has not begun to run"
    if state == "call" and call is not None:
        what = _call_text(call, argument, frames)
    elif state == "lock":
        what = f"waits for {_waited_for(frames)}"
    elif state == "gil":
        what = f"waits for the GIL{_holder_text(holder)}"
    else:
        what = {
            "python": "runs Python code",
            "c_call": "runs a C function that holds the GIL",
            "gc": "runs the garbage collector",
            "runs": "runs C code without the GIL",
            "asleep": "waits in the kernel",
        }.get(state, "cannot be told: the kernel does not say")
    frame = user_frame(frames)
    if frame is None or is_library(frame.filename):
        return what
    return f"{what}, {frame.filename}:{frame.lineno} in {qualified_name(frame)}"


def _call_text(call: str, argument: int, frames: Sequence[FrameSummary]) -> str:
    if call in _SLEEPS:
        return f"sleeps ({call})"
    if call in _POLLS:
        loop = any(frame.name in ("run_forever", "_run_once") for frame in frames)
        return f"{'runs an event loop, which waits' if loop else 'waits'} for I/O ({call})"
    if call in _ON_DESCRIPTOR:
        return f"in the system call {call}, on descriptor {argument}{_descriptor_text(argument)}"
    return f"in the system call {call}"


def _descriptor_text(number: int) -> str:
    try:
        mode = os.fstat(number).st_mode
        if stat.S_ISSOCK(mode):
            return " (a socket)"
        if stat.S_ISFIFO(mode):
            return " (a pipe)"
        return f" ({os.readlink(f'/proc/self/fd/{number}')})"
    except (OSError, OverflowError):
        return ""


def _waited_for(frames: Sequence[FrameSummary]) -> str:
    """What a lock is waited for: the outermost waiting function in the library's part at the inner end."""
    found = "a lock"
    for frame in reversed(frames):
        if not is_library(frame.filename):
            break
        found = _WAITS.get(qualified_name(frame), found)
    return found


def _holder_text(native_id: int) -> str:
    if not native_id:
        return ""
    names = [thread.name for thread in threading.enumerate() if thread.native_id == native_id]
    return f", which thread {names[0]!r} has" if names else f", which the thread with native id {native_id} has"


def clipped(frames: Sequence[FrameSummary]) -> list[FrameSummary]:
    """A stack without what every thread begins with and every start of one ends with."""
    first, last = 0, len(frames)
    while first < last and _of_threading(frames[first], "_bootstrap", "_bootstrap_inner", "run"):
        first += 1
    while last > first and _of_threading(frames[last - 1], "start", "_adjust_thread_count", "submit"):
        last -= 1
    return traceback.StackSummary(frames[first:last] or frames)


def _of_threading(frame: FrameSummary, *names: str) -> bool:
    return frame.name in names and frame.filename.endswith(("/threading.py", "/concurrent/futures/thread.py"))


def interpreters_stack(ident: int) -> list[FrameSummary]:
    """A thread's stack as the interpreter gives it, for where the core cannot read it."""
    frame = sys._current_frames().get(ident)
    return [] if frame is None else traceback.extract_stack(frame)
