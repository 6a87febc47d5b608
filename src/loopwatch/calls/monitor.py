"""``EventLoopMonitor`` and ``event_loop_monitor_ctx``."""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Literal, get_args

from loopwatch import _core
from loopwatch.autowatch import AutoWatch
from loopwatch.blocking import nanoseconds
from loopwatch.calls.exact import LOOP_NAMES, Listener, engine
from loopwatch.calls.info import BlockingCallInfo
from loopwatch.calls.paths import PathFilter
from loopwatch.calls.sampled import calls_of
from loopwatch.loops import LoopScope, open_scope
from loopwatch.stacks import is_runner

if TYPE_CHECKING:
    from loopwatch._core import RawBlock

__all__ = ["EventLoopMonitor", "event_loop_monitor_ctx"]

Callback = Callable[[BlockingCallInfo], object]
EngineName = Literal["sample", "exact"]
_SHORTEST_INTERVAL_NS = 1_000_000
_PERIODS = 20  # samples in a threshold
_logger = logging.getLogger("loopwatch")


class EventLoopMonitor:
    """Tells which synchronous calls keep an event loop from its work.

    threshold_ms: milliseconds from which on a call is told.  Default 50.
    include_paths: substrings of paths; only functions of files whose path holds one are told.  Default None: all.
    exclude_paths: substrings of paths whose functions are not told.  Default None: those of asyncio and of some modules
        around it (``loopwatch.calls.paths.DEFAULT_EXCLUDE_PATHS``); give ``[]`` to leave nothing out.
    on_blocking_call: called with a ``BlockingCallInfo`` for each call, on the loop's thread: with the engine "sample"
        after the loop was blocked, with "exact" when the call returns.  Its exceptions go to ``sys.unraisablehook``,
        never to the program.  Default None: a warning to ``logging.getLogger("loopwatch")``.
    engine: "sample" (default) looks at a blocked loop from outside and costs next to nothing; "exact" measures each
        call and costs a program that does nothing but call about as much again.

    Watched are the loop that runs where ``activate()`` is called, and every loop that starts later, in any thread.
    Raises TypeError or ValueError for settings that make no sense.
    """

    def __init__(
        self,
        threshold_ms: float = 50.0,
        include_paths: Iterable[str] | None = None,
        exclude_paths: Iterable[str] | None = None,
        on_blocking_call: Callback | None = None,
        *,
        engine: EngineName = "sample",
    ) -> None:
        if on_blocking_call is not None and not callable(on_blocking_call):
            raise TypeError(f"on_blocking_call must be callable or None, got {on_blocking_call!r}")
        if engine not in get_args(EngineName):
            raise ValueError(f'engine must be "sample" or "exact", got {engine!r}')
        self._threshold_ns = _milliseconds(threshold_ms)
        self._paths = PathFilter(include_paths, exclude_paths)
        self._callback: Callback = on_blocking_call or _log
        self._engine: EngineName = engine
        self._active: _Sampling | _Measuring | None = None
        self._lock = threading.Lock()

    @property
    def is_active(self) -> bool:
        """Whether it watches now."""
        return self._active is not None

    @property
    def engine(self) -> EngineName:
        return self._engine

    def activate(self) -> None:
        """Begin to watch; nothing happens where it does already.  Works inside of a running loop and outside of one.

        Raises RuntimeError where the engine "exact" finds another profiler in its place; nothing is changed then.
        """
        with self._lock:
            if self._active is None:
                kind = _Sampling if self._engine == "sample" else _Measuring
                watch = kind(self._threshold_ns, self._paths, self._callback)
                watch.start()
                self._active = watch

    def deactivate(self) -> None:
        """Watch no longer, and put everything back; nothing happens where it does not watch.

        A call that still runs is told up to now with the engine "sample", not at all with "exact".
        """
        with self._lock:
            watch, self._active = self._active, None
        if watch is not None:
            watch.stop()


class _EachLoop(AutoWatch):
    """Finds the loops, those that run here and those that start later."""

    def __init__(self, threshold_ns: int, paths: PathFilter, callback: Callback) -> None:
        interval = max(threshold_ns // _PERIODS, _SHORTEST_INTERVAL_NS)
        super().__init__(threshold_ns, interval, lambda raw, name: None, lambda kind, exact: None, _failed)
        self._paths = paths
        self._callback = callback
        self._over = False

    def start(self) -> None:
        self.install(own=True)

    def stop(self) -> None:
        """Close the scopes: that of this thread at once, those of other loops on their own threads."""
        self.loop_stopped(None)
        self._over = True
        for loop, _scope in list(self._open.values()):
            with contextlib.suppress(Exception):  # it is closed, or not to be told: its end closes the scope
                call = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
                call(self.loop_stopped, loop)
        self.remove()


class _Sampling(_EachLoop):
    """The engine "sample": a scope on every loop, and the calls of each of its blocks."""

    def _scope(self, name: str) -> LoopScope:
        base = _frames_below(sys._getframe(1))

        def on_block(raw: "RawBlock") -> None:
            self._told(raw, base)

        return open_scope(self._threshold_ns, self._interval_ns, on_block)

    def loop_stopped(self, loop: Any) -> None:
        entry = self._open.pop(threading.get_ident(), None)
        if entry is not None:
            for raw in entry[1].close():
                self._told(raw, 0)

    def _told(self, raw: "RawBlock", base: int) -> None:
        if not self._over:
            for info in calls_of(raw, self._threshold_ns, self._paths, base):
                _core.call_guarded(self._callback, info)


class _Measuring(_EachLoop):
    """The engine "exact": tells the core which threads run loops."""

    def __init__(self, threshold_ns: int, paths: PathFilter, callback: Callback) -> None:
        super().__init__(threshold_ns, paths, callback)
        self._listener = Listener(threshold_ns, paths, callback)
        self._starting = True
        self._refused: str | None = None

    def start(self) -> None:
        engine.add(self._listener)
        try:
            super().start()
            if self._refused:
                raise RuntimeError(self._refused)
        except BaseException:
            self.stop()
            raise
        finally:
            self._starting = False

    def stop(self) -> None:
        engine.remove(self._listener)
        super().stop()

    def loop_started(self, loop: Any) -> None:
        try:
            _measured.enter()
        except RuntimeError as error:
            if self._starting:  # it is the caller's
                self._refused = str(error)
            else:
                self._on_failure(str(error))
        else:
            self._open[threading.get_ident()] = (loop, None)

    def loop_stopped(self, loop: Any) -> None:
        if self._open.pop(threading.get_ident(), None) is not None:
            _measured.leave()


class _Measured(threading.local):
    """How many monitors measure this thread."""

    count = 0

    def enter(self) -> None:
        if self.count == 0:
            _core.calls_enter()
        self.count += 1

    def leave(self) -> None:
        self.count -= 1
        if self.count == 0:
            _core.calls_leave()


_measured = _Measured()


def _frames_below(frame: FrameType | None) -> int:
    """How many frames lie below what the loop of this thread calls: those up to its own innermost one, and up to the
    first coroutine beyond that; all of them where the loop has no frame and runs no coroutine yet."""
    codes: list[CodeType] = []
    while frame is not None:
        codes.append(frame.f_code)
        frame = frame.f_back
    codes.reverse()
    loops = [depth for depth, code in enumerate(codes) if code.co_name in LOOP_NAMES and is_runner(code.co_filename)]
    begin = loops[-1] + 1 if loops else 0
    coroutines = (depth for depth in range(begin, len(codes)) if codes[depth].co_flags & 0x80)  # CO_COROUTINE
    return next(coroutines, begin or len(codes))


def _milliseconds(value: float) -> int:
    try:
        return nanoseconds("threshold_ms", value / 1000)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"threshold_ms must be a number of milliseconds above 0, got {value!r}") from None


def _log(info: BlockingCallInfo) -> None:
    _logger.warning("Event loop blocked: %s", info)


def _failed(reason: str) -> None:
    _logger.warning("Calls on an event loop cannot be watched: %s", reason)


class _Shared:
    """The monitors of open ``event_loop_monitor_ctx`` scopes, by their settings: equal ones share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[tuple[object, ...], tuple[EventLoopMonitor, int]] = {}

    def acquire(self, key: tuple[object, ...], make: Callable[[], EventLoopMonitor]) -> EventLoopMonitor:
        with self._lock:
            monitor, count = self._held.get(key, (None, 0))
            if monitor is None:
                monitor = make()
                monitor.activate()
            self._held[key] = (monitor, count + 1)
            return monitor

    def release(self, key: tuple[object, ...]) -> None:
        with self._lock:
            monitor, count = self._held[key]
            if count > 1:
                self._held[key] = (monitor, count - 1)
                return
            del self._held[key]
        monitor.deactivate()


_shared = _Shared()


@contextlib.contextmanager
def event_loop_monitor_ctx(
    threshold_ms: float = 50.0,
    include_paths: Iterable[str] | None = None,
    exclude_paths: Iterable[str] | None = None,
    on_blocking_call: Callback | None = None,
    *,
    enabled: bool = True,
    engine: EngineName = "sample",
) -> Iterator[EventLoopMonitor | None]:
    """Watch for blocking calls while the body runs; gives the active ``EventLoopMonitor``.

    Scopes may be nested and open in many tasks at once: those with equal settings (the same callback too) share one
    monitor, which ends with the last of them, so that no call is told twice.  With ``enabled=False`` nothing happens,
    and None is given.  The other settings are those of ``EventLoopMonitor``.
    """
    if not enabled:
        yield None
        return
    include, exclude = _kept(include_paths), _kept(exclude_paths)
    key = (threshold_ms, include, exclude, on_blocking_call, engine)
    monitor = _shared.acquire(
        key, lambda: EventLoopMonitor(threshold_ms, include, exclude, on_blocking_call, engine=engine)
    )
    try:
        yield monitor
    finally:
        _shared.release(key)


def _kept(paths: Iterable[str] | None) -> Iterable[str] | None:
    """A list as a tuple, which can be part of a key; what is wrong is left for the monitor to refuse."""
    return tuple(paths) if isinstance(paths, Iterable) and not isinstance(paths, str | bytes) else paths
