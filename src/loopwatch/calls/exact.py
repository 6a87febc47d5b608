"""The engine "exact": each call measured by the core, and told when it returns.

One for the process: the core measures with the shortest threshold asked for, and each monitor sees what is long enough
for it and stands in one of its paths.
"""

import asyncio
import functools
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType
from typing import Any

from loopwatch import _core
from loopwatch.blocks import thread_name
from loopwatch.calls.info import BlockingCallInfo
from loopwatch.calls.paths import PathFilter
from loopwatch.stacks import frames_from_raw, is_library, is_runner

_MS = 1e6
_COROUTINE = 0x80 | 0x100 | 0x200  # CO_COROUTINE, CO_ITERABLE_COROUTINE, CO_ASYNC_GENERATOR
_DEEPEST = 200  # frames of a stack told
LOOP_NAMES = ("_run_once", "run_forever", "run_until_complete", "unrolled_run")
_POLLS = ("select", "get_events")
_TOOL_IDS = (2, 4, 3, 5, 1, 0)  # of sys.monitoring: that for profilers first


class Listener:
    """One monitor's part: what it wants to be told."""

    def __init__(self, threshold_ns: int, paths: PathFilter, callback: Callable[[BlockingCallInfo], object]) -> None:
        self.threshold_ns = threshold_ns
        self.paths = paths
        self.callback = callback


class _Engine:
    """The process's listeners, and the hooks that are in place while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: tuple[Listener, ...] = ()
        self._tool: int | None = None
        self._hooks: tuple[Any, ...] = ()

    def add(self, listener: Listener) -> None:
        """Raises RuntimeError, and changes nothing, where there is no place left for another tool."""
        with self._lock:
            if not self._listeners and sys.version_info >= (3, 12):
                self._hook()
            self._set((*self._listeners, listener))

    def remove(self, listener: Listener) -> None:
        with self._lock:
            left = tuple(other for other in self._listeners if other is not listener)
            self._set(left)
            if not left and sys.version_info >= (3, 12):
                self._unhook()

    def _set(self, listeners: tuple[Listener, ...]) -> None:
        self._listeners = listeners
        if listeners:
            _core.calls_report(self._ended, min(listener.threshold_ns for listener in listeners))
        else:
            _core.calls_report(None)

    def _hook(self) -> None:
        monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        events = monitoring.events
        self._tool = _free_tool(monitoring)
        self._hooks = self._hooks or _core.calls_hooks(monitoring.DISABLE)
        begin, end, c_begin, c_end = self._hooks
        callbacks = {
            events.PY_START: begin,
            events.PY_RESUME: begin,
            events.PY_THROW: begin,
            events.PY_RETURN: end,
            events.PY_YIELD: end,
            events.PY_UNWIND: end,
            events.CALL: c_begin,
            events.C_RETURN: c_end,
            events.C_RAISE: c_end,
        }
        for event, hook in callbacks.items():
            monitoring.register_callback(self._tool, event, hook)
        given = {events.C_RETURN, events.C_RAISE}  # these come with CALL
        monitoring.set_events(self._tool, functools.reduce(int.__or__, set(callbacks) - given))
        monitoring.restart_events()  # lines that an earlier monitor no longer wanted to hear of

    def _unhook(self) -> None:
        monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        tool, self._tool = self._tool, None
        if tool is None or monitoring.get_tool(tool) != "loopwatch":
            return
        monitoring.set_events(tool, 0)
        names = ("START", "RESUME", "THROW", "RETURN", "YIELD", "UNWIND")
        for name in (*(f"PY_{name}" for name in names), "CALL", "C_RETURN", "C_RAISE"):
            monitoring.register_callback(tool, getattr(monitoring.events, name), None)
        monitoring.free_tool_id(tool)

    def _ended(self, what: Any, is_c: int, duration_ns: int, covered_ns: int) -> bool:
        """A call took long, in the frame that called this: whether it was told to anybody."""
        return self._tell(sys._getframe(1), what, is_c, duration_ns, covered_ns)

    def _tell(self, frame: FrameType, what: Any, is_c: int, duration_ns: int, covered_ns: int) -> bool:
        bare = _called_by_the_loop(what, frame) if is_c else None
        if bare is not None:
            return self._tell_bare(bare, frame, duration_ns)
        if _is_poll(frame):
            return False
        info: BlockingCallInfo | None = None
        for listener in self._listeners:
            own = not is_c and bool(frame.f_code.co_flags & _COROUTINE)
            taken = duration_ns - covered_ns if own else duration_ns
            place = _place(frame, listener.paths) if is_c else _called_at(frame, listener.paths, own)
            if taken < listener.threshold_ns or place is None or (is_c and not _is_c_function(what)):
                continue
            info = _info(what if is_c else frame.f_code, frame, taken, bool(is_c), own, place)
            _core.call_guarded(listener.callback, info)
        return info is not None

    def _tell_bare(self, function: Any, frame: FrameType, taken_ns: int) -> bool:
        """A C function that the loop called by itself took long."""
        info: BlockingCallInfo | None = None
        for listener in self._listeners:
            place = _place(frame, listener.paths)
            if taken_ns >= listener.threshold_ns and (place is not None or not listener.paths.include):
                info = _info(function, frame, taken_ns, True, False, place)
                _core.call_guarded(listener.callback, info)
        return info is not None


engine = _Engine()


def _free_tool(monitoring: Any) -> int:
    for number in _TOOL_IDS:
        if monitoring.get_tool(number) is None:
            monitoring.use_tool_id(number, "loopwatch")
            return number
    users = ", ".join(repr(monitoring.get_tool(number)) for number in sorted(_TOOL_IDS))
    raise RuntimeError(
        f'engine="exact" needs one of the six places of sys.monitoring, and all are in use (by {users}): end one of '
        'these tools first, or use engine="sample"'
    )


def _is_loop(frame: FrameType) -> bool:
    code = frame.f_code
    return code.co_name in LOOP_NAMES and is_library(code.co_filename)


def _is_poll(frame: FrameType | None) -> bool:
    """Whether it is the loop's own code, or its wait for I/O."""
    if frame is None or _is_loop(frame):
        return True
    while frame is not None:
        back = frame.f_back
        if back is not None and frame.f_code.co_name in _POLLS and _is_loop(back):
            return True
        frame = None if back is None or _is_loop(back) else back
    return False


def _called(frame: FrameType) -> list[FrameType]:
    """The frames from FRAME outwards to what the loop called."""
    frames: list[FrameType] = []
    at: FrameType | None = frame
    while at is not None and not _is_loop(at) and len(frames) < _DEEPEST:
        frames.append(at)
        at = at.f_back
    while len(frames) > 1 and is_runner(frames[-1].f_code.co_filename):
        frames.pop()
    return frames


def _place(frame: FrameType, paths: PathFilter) -> FrameType | None:
    """The innermost frame whose file the paths let pass."""
    return next((found for found in _called(frame) if paths.passes(found.f_code.co_filename)), None)


def _called_at(frame: FrameType, paths: PathFilter, own: bool) -> FrameType | None:
    """Where a Python function was called, if it is to be told at all: its caller's frame, else its own."""
    if not paths.passes(frame.f_code.co_filename):
        return None
    back = frame.f_back
    if own or back is None or _is_loop(back) or not paths.passes(back.f_code.co_filename):
        return frame
    return back


def _called_by_the_loop(what: Any, frame: FrameType) -> Any:
    """The C function that a handle had its context run, as after ``call_soon(time.sleep, 1)``; None for any other.

    A handle runs it in a frame of its own, or in the loop's where a ``Monitor`` counts callbacks.
    """
    name, code = getattr(what, "__name__", None), frame.f_code
    if (code.co_name, name) not in (("_run", "run"), ("_run_once", "_run")) or not is_runner(code.co_filename):
        return None
    handle = frame.f_locals.get("self" if name == "run" else "handle")
    callback = getattr(handle, "_callback", None)
    while isinstance(callback, functools.partial):
        callback = callback.func
    step = isinstance(getattr(callback, "__self__", None), asyncio.Future)  # of a task: its coroutine's calls are told
    return callback if _is_c_function(callback) and not step else None


def _is_c_function(what: Any) -> bool:
    """Whether it is written in C itself; a class or an object whose method is Python's was told as that method."""
    if isinstance(what, type):
        return not isinstance(getattr(what, "__init__", None), FunctionType) and not what.__flags__ & (1 << 9)
    return type(what).__name__ in _C_FUNCTIONS


_C_FUNCTIONS = frozenset(
    {
        "builtin_function_or_method",
        "builtin_method",
        "method_descriptor",
        "classmethod_descriptor",
        "wrapper_descriptor",
        "method-wrapper",
        "cython_function_or_method",
        "fused_cython_function",
    }
)


def _info(
    what: Any, frame: FrameType, taken_ns: int, is_c: bool, own: bool, place: FrameType | None
) -> BlockingCallInfo:
    stack = [
        (found.f_code.co_filename, found.f_code.co_qualname, found.f_lineno or 0, 0, -1, -1)
        for found in reversed(_called(frame))
    ]
    return BlockingCallInfo(
        method_name=_c_name(what) if is_c else _python_name(what, frame),
        duration_ms=taken_ns / _MS,
        is_c_call=is_c,
        file=None if place is None else place.f_code.co_filename,
        line=None if place is None else place.f_lineno,
        stack=frames_from_raw(stack),
        thread=thread_name(threading.get_native_id(), threading.get_ident()),
        task=_task_name(),
        own_code=own,
    )


def _python_name(code: CodeType, frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '?')}.{code.co_qualname}"


def _c_name(function: Any) -> str:
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or repr(type(function))
    owner = getattr(function, "__objclass__", None)
    bound = getattr(function, "__self__", None)
    if owner is None and isinstance(bound, type):
        owner = bound
    elif owner is None and bound is not None and type(bound) is not type(sys):
        owner = type(bound)
    if owner is not None:
        return f"{owner.__module__}.{owner.__qualname__}.{name.rpartition('.')[2]}"
    return f"{getattr(function, '__module__', None) or 'builtins'}.{name}"


def _task_name() -> str | None:
    if asyncio._get_running_loop() is None:
        return None
    task = asyncio.current_task()
    return None if task is None else task.get_name()
