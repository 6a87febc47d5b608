"""Can anything on a loop make progress any more?  The cheap answer, for the end of a test.

A loop is quiescent when nothing is ready, no timer is armed, no descriptor but its own wake-up pipe is watched, no
signal handler or child is expected, and no thread lives that could call in.  Then nothing can wake what is pending.
Every question that has no sure answer is answered "not quiescent".
"""

import asyncio
import concurrent.futures.thread as pools
import os
import signal
import sys
import threading
from collections import deque
from types import FrameType
from typing import Any

from loopwatch import _core
from loopwatch.leaks.owners import instances_of


def quiescent(loop: asyncio.AbstractEventLoop) -> str | None:
    """Give the reason why nothing on this loop can make progress any more, or None if something may.

    Called from a task of that loop (the one that runs now: a guard that leaves its scope), which is left out.  Known
    for asyncio's own selector loops; for others, such as uvloop's, the answer is None.  Sound: loops of other threads,
    threads of any kind that are not idle executor workers, native threads, running or queued executor jobs,
    subprocesses, watched descriptors and handlers of signals all make it None.  Not foreseen: what finalizers of
    garbage that is not collected yet may do, and what a main task that Ctrl-C cancels under ``asyncio.Runner`` does
    then.
    """
    if not _is_plain_selector_loop(loop) or loop.is_closed():
        return None
    if loop._ready or _armed(loop) or _watches(loop) or getattr(loop, "_signal_handlers", None):  # type: ignore[attr-defined]
        return None
    if _may_be_interrupted() or _other_threads_may_call():
        return None
    return (
        "nothing on this loop can wake it: no callback is ready, no timer is armed, no descriptor is watched, "
        "and no other thread runs"
    )


def _is_plain_selector_loop(loop: Any) -> bool:
    """asyncio's own class, with nothing replaced that could be one more source of events."""
    kind = type(loop)
    return (
        kind.__module__.startswith("asyncio.")
        and isinstance(loop, asyncio.SelectorEventLoop)
        and getattr(kind._run_once, "__module__", "") == "asyncio.base_events"
        and type(loop._selector).__module__ == "selectors"  # type: ignore[attr-defined]
        and isinstance(loop._ready, deque)  # type: ignore[attr-defined]
        and isinstance(loop._scheduled, list)  # type: ignore[attr-defined]
    )


def _armed(loop: Any) -> bool:
    return any(not handle.cancelled() for handle in loop._scheduled)


def _watches(loop: Any) -> bool:
    own = loop._ssock.fileno() if loop._ssock is not None else -1
    return any(fd != own for fd in loop._selector.get_map() or ())


def _may_be_interrupted() -> bool:
    """Python-level handlers of signals could set a future; the default one of SIGINT only raises."""
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if handler is None or handler is signal.default_int_handler or isinstance(handler, signal.Handlers):
            continue
        inner = getattr(handler, "func", handler)
        if getattr(inner, "__qualname__", "") != "Runner._on_sigint":  # it cancels its main task, no more
            return True
    return any(signal.getitimer(which)[0] for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF))


def _other_threads_may_call() -> bool:
    """Every thread that is neither this one, nor the core's, nor an idle worker of a pool may do anything."""
    try:
        native = len(os.listdir("/proc/self/task")) - int(_core.watchdog_info()["running"] > 0)
    except OSError:
        return True
    if native == 1:
        return False
    frames = sys._current_frames()
    frames.pop(threading.get_ident(), None)
    if native != len(frames) + 1:
        return True  # some of C code's
    workers = {thread.ident for thread in list(pools._threads_queues)}
    if not all(ident in workers and _waits_for_work(frame) for ident, frame in frames.items()):
        return True
    # A worker that has just taken its job looks idle still; the job itself shows.
    return any(not item.future.done() for item in instances_of(pools._WorkItem))


def _waits_for_work(frame: FrameType) -> bool:
    return frame.f_code is pools._worker.__code__
