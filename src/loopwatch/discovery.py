"""Finds the event loops of a process: those that run now, and those that start later, in any thread.

asyncio's loops announce themselves through ``asyncio._set_running_loop``: it is replaced by a function that calls it
and then tells the listeners.  uvloop looks that name up when it is imported; where that has happened, its loop class
gets a ``run_forever`` that does the same.  trio has no such place: see ``discovery_trio``.

The hooks stand while there is a listener, once for all of them.  Listeners are called in the loop's own thread, and
must not raise; what they raise is dropped.
"""

import asyncio
import asyncio.events
import contextlib
import functools
import gc
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, Protocol

from loopwatch import _core
from loopwatch.discovery_trio import TrioHook
from loopwatch.loops import running_loop

__all__ = ["LoopListener", "call_in_loop", "subscribe", "unsubscribe"]


class LoopListener(Protocol):
    """Who wants to know of loops.  A loop is asyncio's, or the token of a trio run."""

    def loop_started(self, loop: Any) -> None: ...
    def loop_stopped(self, loop: Any) -> None: ...
    def loop_unseen(self, reason: str) -> None: ...


class _Hooks:
    """What stands in other libraries' places while there are listeners."""

    def __init__(self) -> None:
        self.listeners: list[LoopListener] = []
        self.running: dict[int, Any] = {}  # by the thread's ident
        self.lock = threading.RLock()
        self._original: Callable[[Any], None] | None = None
        self._replacement: Callable[[Any], None] | None = None
        self._uvloop: tuple[Any, Any] | None = None
        self._trio: TrioHook | None = None

    def install(self) -> None:
        current = asyncio.events._set_running_loop
        if self._replacement is None or current is self._original:
            self._replace_setter(current)
        uvloop = sys.modules.get("uvloop")
        if uvloop is not None and self._uvloop is None:
            self._replace_run_forever(uvloop)
        self._trio = TrioHook(self.started, self.stopped, self.unseen, self.running)
        self._trio.install()

    def remove(self) -> None:
        if self._original is not None and asyncio.events._set_running_loop is self._replacement:
            _set_everywhere(self._original)
            self._original = self._replacement = None
        if self._uvloop is not None:
            kind, ours = self._uvloop
            if vars(kind).get("run_forever") is ours:
                del kind.run_forever
                self._uvloop = None
        if self._trio is not None:
            self._trio.remove()
            self._trio = None
        self.running.clear()

    def _replace_setter(self, original: Callable[[Any], None]) -> None:
        @functools.wraps(original)
        def _set_running_loop(loop: Any) -> None:
            original(loop)
            if self.listeners:
                self.changed(loop)

        self._original, self._replacement = original, _set_running_loop
        _set_everywhere(_set_running_loop)

    def _replace_run_forever(self, uvloop: Any) -> None:
        kind = getattr(uvloop, "Loop", None)
        original = getattr(kind, "run_forever", None)
        if kind is None or original is None or "run_forever" in vars(kind):
            return

        @functools.wraps(original)
        def run_forever(loop: Any) -> Any:
            ident = threading.get_ident()
            if self.listeners and not loop.is_running() and not loop.is_closed():
                _before_all(loop, loop.call_soon(self._begun, ident, loop))
            try:
                return original(loop)
            finally:
                if self.running.get(ident) is loop:
                    self.changed(None)

        kind.run_forever = run_forever
        self._uvloop = kind, run_forever

    def _begun(self, ident: int, loop: Any) -> None:
        if threading.get_ident() == ident:
            self.changed(loop)

    def changed(self, loop: Any) -> None:
        """The loop that runs in this thread is now this one; None: none."""
        ident = threading.get_ident()
        before = self.running.get(ident)
        if before is loop:
            return
        if before is not None:
            self.stopped(ident, before)
        if loop is not None:
            self.started(ident, loop)

    def started(self, ident: int, loop: Any) -> None:
        self.running[ident] = loop
        for listener in list(self.listeners):
            with contextlib.suppress(Exception):
                listener.loop_started(loop)

    def stopped(self, ident: int, loop: Any) -> None:
        self.running.pop(ident, None)
        for listener in list(self.listeners):
            with contextlib.suppress(Exception):
                listener.loop_stopped(loop)

    def unseen(self, reason: str) -> None:
        for listener in list(self.listeners):
            with contextlib.suppress(Exception):
                listener.loop_unseen(reason)


def _before_all(loop: Any, handle: Any) -> None:
    """Have the callback that was scheduled last run first: a loop is watched from its first step on.

    Out and in again, as both are counted (``loopqueue.h``), and turning a queue is not: a watch that outlives the run
    takes them for two callbacks of the first iteration.
    """
    queue = _core.loop_ready(loop)
    if isinstance(queue, deque) and queue and queue[-1] is handle:
        queue.appendleft(queue.pop())


_hooks = _Hooks()


def subscribe(listener: LoopListener, *, existing: bool | Literal["own"] = False) -> None:
    """Tell a listener of all loops that start from now on; with ``existing``, of those that run now as well.

    ``"own"``: only of the one that runs in this thread, which takes no search.

    A loop that runs in another thread is told of once it comes to run its callbacks.
    """
    with _hooks.lock:
        if not _hooks.listeners:
            _hooks.install()
        _hooks.listeners.append(listener)
    if not existing:
        return
    own = running_loop()
    if own is not None:
        _hooks.running[threading.get_ident()] = own
        listener.loop_started(own)
    for loop in () if existing == "own" else _loops_of_other_threads():
        if loop is not own:
            call_in_loop(loop, functools.partial(_tell_existing, listener))


def unsubscribe(listener: LoopListener) -> None:
    """Tell it of no loop any more.  What stands in other libraries' places goes with the last listener."""
    with _hooks.lock:
        if listener in _hooks.listeners:
            _hooks.listeners.remove(listener)
            if not _hooks.listeners:
                _hooks.remove()


def call_in_loop(loop: Any, function: Callable[[], object]) -> bool:
    """Have a loop, or a trio run, of another thread call a function soon; False where it cannot any more."""
    post = getattr(loop, "call_soon_threadsafe", None) or getattr(loop, "run_sync_soon", None)
    try:
        if post is None:
            return False
        post(function)
    except Exception:  # closed, or trio.RunFinishedError
        return False
    return True


def _tell_existing(listener: LoopListener) -> None:
    loop = running_loop()
    if listener in _hooks.listeners and loop is not None:
        _hooks.running.setdefault(threading.get_ident(), loop)
        listener.loop_started(loop)


def _loops_of_other_threads() -> list[Any]:
    """Running loops, or what takes calls for a trio run.  A search of all objects, where there are other threads."""
    if threading.active_count() < 2:
        return []
    found = {id(loop): loop for ident, loop in list(_hooks.running.items()) if ident != threading.get_ident()}
    kinds: set[type] = set()
    left: list[type] = [asyncio.AbstractEventLoop]
    while left:
        kind = left.pop()
        kinds.add(kind)
        children: list[type] = type.__subclasses__(kind)
        left += [child for child in children if child not in kinds]
    runner: Any = getattr(sys.modules.get("trio._core._run"), "Runner", None)
    if runner is not None:
        kinds.add(runner)
    for entry in [entry for entry in gc.get_objects() if type(entry) in kinds]:
        with contextlib.suppress(Exception):
            if type(entry) is runner:  # its token may not have been asked for yet
                found[id(entry)] = entry.entry_queue
            elif entry.is_running():
                found[id(entry)] = entry
    return list(found.values())


def _set_everywhere(function: Callable[[Any], None]) -> None:
    for module in (asyncio, asyncio.events):
        setattr(module, "_set_running_loop", function)  # noqa: B010 - unknown to the stubs of asyncio


def _after_fork_in_child() -> None:
    """The child has one thread."""
    _hooks.lock = threading.RLock()
    ident = threading.get_ident()
    for other in [known for known in _hooks.running if known != ident]:
        del _hooks.running[other]


os.register_at_fork(after_in_child=_after_fork_in_child)
