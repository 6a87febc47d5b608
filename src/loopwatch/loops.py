"""Which loop runs here, and the one watch that all guards on it share.

A watch lives from the first scope opened on its loop to the last one closed.  Scopes of one loop are opened and closed
on the loop's own thread, so the table that all threads share needs no lock: each touches its own loop's entry only, by
single operations of a dict.  A lock here would line up the loops of a program with hundreds of them.
"""

import asyncio
import contextlib
import os
import selectors
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loopwatch import _core

if TYPE_CHECKING:
    from loopwatch._core import RawBlock, Scope, Watch

_watched: dict[int, "_Entry"] = {}


class TrioInstrument:
    """Tells a watch when a trio run waits for I/O and when it works."""

    def __init__(self, watch: "Watch") -> None:
        self._watch = watch

    def before_io_wait(self, timeout: float) -> None:
        self._watch.idle()

    def after_io_wait(self, timeout: float) -> None:
        self._watch.busy()


class _Entry:
    """A watched loop: owns the watch and, with trio, the instrument."""

    def __init__(self, loop: Any, watch: "Watch", instrument: TrioInstrument | None) -> None:
        self.loop = loop
        self.watch = watch
        self.instrument = instrument


class LoopScope:
    """An open scope on one loop.  ``close`` ends it, is idempotent, and gives back the blocks not yet handed out."""

    def __init__(self, entry: _Entry, scope: "Scope") -> None:
        self._entry = entry
        self._scope = scope
        self._pid = os.getpid()

    @property
    def loop(self) -> Any:
        return self._entry.loop

    @property
    def kind(self) -> str:
        return self._entry.watch.kind

    @property
    def exact(self) -> bool:
        return self._entry.watch.exact

    @property
    def watch(self) -> "Watch":
        """The loop's watch, which all scopes on it share."""
        return self._entry.watch

    @property
    def inherited(self) -> bool:
        """Whether it was opened before this process was forked off: what it found belongs to the parent."""
        return self._pid != os.getpid()

    def cut(self) -> None:
        """Take what the loop is busy with now for ended; the rest of it is another span.  From any thread."""
        self._scope.cut()

    def close(self) -> "list[RawBlock]":
        blocks = self._scope.close()  # builds and reports blocks: no other loop may have to wait for that
        _release(self._entry)
        return blocks


def open_scope(
    threshold_ns: int, interval_ns: int, on_block: "Callable[[RawBlock], object] | None" = None
) -> LoopScope:
    """Open a scope on the loop that runs in this thread.  Raises RuntimeError where none runs."""
    entry = _entry_of_running_loop()
    try:
        scope = entry.watch.open_scope(threshold_ns, interval_ns, on_block)
    except (RuntimeError, TypeError, AttributeError):
        if entry.watch.kind == "generic" or entry.watch.scopes:
            _release(entry)
            raise
        entry.watch = _core.Watch(entry.loop, "generic")
        scope = entry.watch.open_scope(threshold_ns, interval_ns, on_block)
    return LoopScope(entry, scope)


def watch_for_running_loop() -> "Watch":
    """The watch of the asyncio loop or trio run in this thread, shared by all its scopes.

    It is forgotten when its last scope is closed: open one.  Raises RuntimeError where no loop runs.
    """
    return _entry_of_running_loop().watch


def running_loop() -> Any:
    """The asyncio loop that runs in this thread, or the token of its trio run; None where neither runs."""
    loop = asyncio._get_running_loop()
    if loop is not None and not type(loop).__module__.startswith("trio_asyncio"):
        return loop
    lowlevel = _trio_lowlevel()
    if lowlevel is not None and _in_trio_run(lowlevel):
        return lowlevel.current_trio_token()
    return loop


def loop_kind(loop: Any) -> str:
    """The probe that fits a loop: selector-epoll, selector, uv, trio or generic."""
    modules = {base.__module__.partition(".")[0] for base in type(loop).__mro__}
    if "uvloop" in modules:
        return "uv"
    if "trio" in modules:
        return "trio"
    selector = getattr(loop, "_selector", None)
    if not isinstance(loop, asyncio.BaseEventLoop) or not callable(getattr(selector, "select", None)):
        return "generic"
    wrapped = "select" in getattr(selector, "__dict__", {})
    epoll = getattr(selectors, "EpollSelector", None)  # gevent takes it away
    return "selector-epoll" if type(selector) is epoll and not wrapped else "selector"


def _entry_of_running_loop() -> _Entry:
    loop = running_loop()
    if loop is None:
        raise RuntimeError(
            "no event loop runs in this thread, so there is nothing to watch: use the guard inside a coroutine "
            "(`async def`) that asyncio.run() or trio.run() runs, or decorate that coroutine's function with it"
        )
    entry = _watched.get(id(loop))
    if entry is None or entry.loop is not loop:
        entry = _watched[id(loop)] = _new_entry(loop)
    return entry


def _new_entry(loop: Any) -> _Entry:
    kind = loop_kind(loop)
    try:
        watch = _core.Watch(loop, kind)
    except (RuntimeError, TypeError, AttributeError):
        if kind == "generic":
            raise
        return _Entry(loop, _core.Watch(loop, "generic"), None)
    instrument = None
    if kind == "trio":
        instrument = TrioInstrument(watch)
        _trio_lowlevel().add_instrument(instrument)
    return _Entry(loop, watch, instrument)


def _release(entry: _Entry) -> None:
    """Forget a loop whose last scope is closed."""
    if entry.watch.scopes > 0:
        return
    if _watched.get(id(entry.loop)) is entry:
        _watched.pop(id(entry.loop), None)
    instrument, entry.instrument = entry.instrument, None
    if instrument is not None:
        with contextlib.suppress(KeyError, RuntimeError):  # trio dropped it already, or its run is over
            _trio_lowlevel().remove_instrument(instrument)


def _trio_lowlevel() -> Any:
    return sys.modules.get("trio.lowlevel")


def _in_trio_run(lowlevel: Any) -> bool:
    check = getattr(lowlevel, "in_trio_run", None)
    if check is not None:
        return bool(check())
    try:
        lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True


def _after_fork_in_child() -> None:
    """The child has one thread: the loops of others are not the child's."""
    running = {id(entry.loop): entry for entry in _watched.values() if entry.instrument is None}
    _watched.clear()
    _watched.update(running)


os.register_at_fork(after_in_child=_after_fork_in_child)
