"""What threads are for: executors and their owners, timers, helpers of the standard library.

A worker that a running event loop owns and ends itself is no leak while it is idle: asyncio's default executor (the
loop's ``shutdown_default_executor``, which ``asyncio.run`` calls, ends it) and anyio's workers (they end with the root
task).  A busy one is reported: its job outlived the scope.
"""

import asyncio
import functools
import gc
import sys
import threading
import time
from collections.abc import Callable, Sequence
from traceback import FrameSummary
from typing import Any

from loopwatch.stacks import qualified_name

__all__ = [
    "executor_of",
    "has_work",
    "is_harmless",
    "is_idle",
    "is_worker",
    "loops_own",
    "older_workers",
    "role_of",
    "target_of",
]

# Module and beginning of the qualified name of what runs in a thread; what it is, and what ends it.
_ROLES = (
    ("concurrent.futures.process", "_ExecutorManagerThread", "manages a ProcessPoolExecutor, whose shutdown() ends it"),
    ("multiprocessing.queues", "Queue._feed", "feeds a multiprocessing.Queue, whose close() and join_thread() end it"),
    ("multiprocessing.pool", "Pool._handle", "serves a multiprocessing.Pool, whose terminate(), or `with`, ends it"),
    ("multiprocessing.pool", "worker", "a worker of a ThreadPool, whose terminate(), or `with`, ends it"),
    ("multiprocessing", "Server.", "serves a multiprocessing manager, whose shutdown() ends it"),
    ("logging.handlers", "QueueListener", "listens to a logging queue: stop() of its QueueListener ends it"),
    ("socketserver", "BaseServer.serve_forever", "serves a socket server, whose shutdown() ends it"),
    ("socketserver", "ThreadingMixIn", "serves one request of a socket server, whose server_close() waits for it"),
    ("asyncio.unix_events", "ThreadedChildWatcher", "waits for a child process of asyncio to end"),
    ("asyncio.base_events", "BaseEventLoop._do_shutdown", "shuts an event loop's executor down"),
    ("anyio", "WorkerThread", "a worker of anyio.to_thread, which ends with its loop's root task"),
    ("aiosqlite", "", "serves an aiosqlite connection, whose close() ends it"),
    ("queue", "", "serves a queue"),
)
_HARMLESS = (
    ("pytest_timeout", "the timer that pytest-timeout sets around each test and cancels itself"),
    ("pydevd", "the debugger's"),
    ("_pydevd_bundle", "the debugger's"),
    ("debugpy", "the debugger's"),
)


def target_of(thread: threading.Thread) -> tuple[str, str]:
    """Qualified name and module of what runs in a thread: its target, a timer's function, or its class's ``run``."""
    function: Any = getattr(thread, "_target", None)
    if isinstance(thread, threading.Timer):
        function = getattr(thread, "function", None)
    while isinstance(function, functools.partial):
        function = function.func
    if function is None:
        kind = type(thread)
        return f"{kind.__qualname__}.run", kind.__module__
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None) or type(function).__module__
    return str(name), str(module)


def role_of(thread: threading.Thread, born_ns: int | None) -> str | None:
    """What a thread is for and what ends it; None where that is not known.  born_ns: CLOCK_MONOTONIC, of its start."""
    if isinstance(thread, threading.Timer):
        return f"a Timer{_due(thread, born_ns)}, which cancel() ends"
    target, module = target_of(thread)
    for where, name, role in _ROLES:
        if (module == where or module.startswith(f"{where}.")) and target.startswith(name):
            return role
    return None


def _due(timer: threading.Timer, born_ns: int | None) -> str:
    interval = getattr(timer, "interval", None)
    if born_ns is None or not isinstance(interval, int | float) or timer.finished.is_set():
        return ""
    left = interval - (time.monotonic_ns() - born_ns) / 1e9
    return f", due in {left:.1f} s" if left > 0 else ", due"


def is_harmless(thread: threading.Thread) -> bool:
    """Whether a thread is a tool's that watches the test and ends by itself: pytest-timeout's, a debugger's."""
    module = target_of(thread)[1].partition(".")[0]
    return any(module == name for name, _reason in _HARMLESS)


def is_worker(thread: threading.Thread) -> bool:
    """Whether it is a worker of a ThreadPoolExecutor."""
    module = sys.modules.get("concurrent.futures.thread")
    worker: Callable[..., object] | None = getattr(module, "_worker", None)
    return worker is not None and getattr(thread, "_target", None) is worker


def executor_of(thread: threading.Thread) -> Any:
    """The executor of a worker; None where it is gone, which ends the worker."""
    arguments = getattr(thread, "_args", ())
    reference = arguments[0] if arguments else None
    return reference() if callable(reference) else None


def older_workers(executor: Any, new: Sequence[threading.Thread | None]) -> bool:
    """Whether an executor has living workers besides the new ones: it was in use before."""
    threads = list(getattr(executor, "_threads", ()))
    return any(thread.is_alive() and thread not in new for thread in threads)


def is_idle(thread: threading.Thread | None, state: str, frames: Sequence[FrameSummary]) -> bool:
    """Whether a worker waits for a job; ``frames`` its stack, outermost first."""
    if not frames:
        return state in ("lock", "asleep")
    name, plain = qualified_name(frames[-1]), frames[-1].name
    if thread is not None and _is_anyios(thread):
        inner = [qualified_name(frame) for frame in frames]
        own = [at for at, qualname in enumerate(inner) if qualname == "WorkerThread.run"]
        return bool(own) and inner[own[-1] + 1 : own[-1] + 2] == ["Queue.get"] and not has_work(thread)
    return plain == "_worker" or name.endswith("_worker")


def has_work(thread: threading.Thread | None) -> bool:
    """Whether a worker of anyio runs a call: one may wait at a Queue too, or in a C function, which has no frame."""
    queue = getattr(thread, "queue", None)
    return bool(getattr(queue, "unfinished_tasks", 0))


def _is_anyios(thread: threading.Thread) -> bool:
    kind = type(thread)
    return kind.__name__ == "WorkerThread" and kind.__module__.startswith("anyio.")


def loops_own(thread: threading.Thread, executor: Any) -> bool:
    """Whether a running event loop owns a worker: of anyio's, or of the default executor of the loop that runs here."""
    if _is_anyios(thread):
        loop = getattr(thread, "loop", None)
        return isinstance(loop, asyncio.AbstractEventLoop) and loop.is_running()
    here = asyncio._get_running_loop()
    if here is None or executor is None:
        return False
    if isinstance(here, asyncio.BaseEventLoop):
        return getattr(here, "_default_executor", None) is executor
    return any(held is executor for held in gc.get_referents(here))  # uvloop keeps it where Python cannot see
