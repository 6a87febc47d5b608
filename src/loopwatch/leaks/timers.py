"""Timers, made by ``loop.call_later`` and ``loop.call_at``, that are still scheduled."""

import asyncio
import functools
import sys
import types
from asyncio import futures, tasks, timeouts
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from loopwatch import _core
from loopwatch.errors import TimerLeakError
from loopwatch.leaks.kinds import Kind, Leak, Session
from loopwatch.leaks.origins import Resource, ResourceSession, creation_of, merged
from loopwatch.leaks.timerhandles import callback_of
from loopwatch.stacks import module_of, qualified_name

if TYPE_CHECKING:
    from loopwatch._core import Origin

__all__ = ["LeakedTimer", "TimerKind"]

_LOOKS_TO_SETTLE = 4  # closing a transport takes loop iterations, in which its timers go
_DEEPEST_WRAPPING = 100


@dataclass(frozen=True)
class LeakedTimer(Resource):
    """A timer that is still scheduled.

    name: the callback's qualified name.  creation_stack: where it was scheduled.  due: in how many seconds it runs,
    below 0 if it is late.
    times: how often this callback was scheduled under the guards open now, each time before it was done with the last.
    reschedules_itself: it was scheduled from within its own callback: it goes on until somebody cancels it.
    handle_ref: the ``asyncio.TimerHandle``; None in a pickled copy.
    """

    kind: ClassVar[str] = "timer"
    title: ClassVar[str] = "Timer"
    made: ClassVar[str] = "scheduled"
    live: ClassVar[tuple[str, ...]] = ("handle_ref",)

    due: float | None = None
    times: int = 1
    reschedules_itself: bool = False
    callback_module: str | None = None
    handle_ref: Any = field(default=None, compare=False)

    def _due_text(self) -> str:
        if self.due is None:
            return "still scheduled"
        return f"due in {_seconds(self.due)}" if self.due >= 0 else f"due since {_seconds(-self.due)}"

    def _again(self) -> str | None:
        if not self.reschedules_itself:
            return None
        return f"yes, {self.times - 1} times so far" if self.times > 1 else "yes"

    def tail(self) -> str:
        if not self.reschedules_itself:
            return self._due_text()
        count = f" ({self.times - 1} times so far)" if self.times > 1 else ""
        return f"{self._due_text()}, and schedules itself again{count}"

    def facts(self) -> Iterable[tuple[str, str | None]]:
        yield "Due", self._due_text().removeprefix("due ")
        yield "Schedules itself again", self._again()
        yield "End it with", "cancel() of the handle that call_later() returned"

    def labels(self) -> Mapping[str, Sequence[str]]:
        modules = [self.callback_module] if self.callback_module else []
        return merged(super().labels(), qualname=[self.name], module=modules)


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 100 else f"{value:.3g} s"


class TimerKind(Kind):
    """Timers scheduled under the guard, on its loop, that still wait.

    A timer that only wakes a task (``asyncio.sleep``, ``asyncio.timeout``) is none: the pending task is what was left.
    """

    name: ClassVar[str] = "timers"
    needs_loop: ClassVar[bool] = True
    error = TimerLeakError

    def begin(self) -> Session:
        return _Session(asyncio.get_running_loop())


def passing_functions() -> tuple[Any, ...]:
    """The functions by which a timer does no more than wake, or cancel, a task that waits."""
    global _passing
    anyio = sys.modules.get("anyio._backends._asyncio")
    if not _passing or (anyio is not None and _passing[-1] is not anyio):
        scope = getattr(anyio, "CancelScope", None)
        found = (
            getattr(futures, "_set_result_unless_cancelled", None),  # asyncio.sleep
            getattr(tasks, "_release_waiter", None),  # asyncio.wait; asyncio.wait_for before 3.12
            getattr(timeouts.Timeout, "_on_timeout", None),  # asyncio.timeout; asyncio.wait_for
            getattr(scope, "_timeout", None),  # anyio.move_on_after, anyio.fail_after
        )
        _passing = (*(function for function in found if function is not None), anyio)
    return _passing


_passing: tuple[Any, ...] = ()


@functools.cache
def scheduling_names(kind: Any) -> tuple[str, ...]:
    """Which methods of a loop to see: call_later goes through call_at in asyncio's own."""
    if issubclass(kind, asyncio.BaseEventLoop) and kind.call_later is asyncio.BaseEventLoop.call_later:
        return ("call_at",)
    return ("call_at", "call_later")


class _Session(ResourceSession):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        kind: Any = type(loop)
        self._loop = loop
        self._timers: Any = _core.timers_begin(loop, scheduling_names(kind), passing_functions())
        super().__init__()
        self._apart: list[Leak] = []
        self._soonest = 0.0

    def look(self) -> list[Leak]:
        self.looks += 1
        self._apart = []
        if self._timers is None or self._loop.is_closed():
            return []
        left: list[Leak] = []
        for handle, origin, times in self._timers.since(self.serial):
            callback = _pending_callback(self._loop, handle)
            if callback is None:
                continue
            leak = _leak(self._loop, handle, callback, origin, times)
            (self._apart if self.foreign(origin) else left).append(leak)
        self._soonest = min((leak.due or 0.0 for leak in left if isinstance(leak, LeakedTimer)), default=0.0)
        return left

    def settled(self) -> str | None:
        if self.looks < _LOOKS_TO_SETTLE or self._soonest < TimerKind.grace_period:
            return None
        return f"the next of these timers is due in {_seconds(self._soonest)}"

    def cancel(self, leaks: Sequence[Leak]) -> list[Leak]:
        refused = []
        for leak in leaks:
            handle = getattr(leak, "handle_ref", None)
            if handle is None:
                refused.append(leak)
            else:
                handle.cancel()
        return refused

    def apart(self) -> list[Leak]:
        return list(self._apart)

    def end(self) -> None:
        timers, self._timers = self._timers, None
        if timers is not None:
            timers.end()
        super().end()


def _pending_callback(loop: Any, handle: Any) -> Callable[..., Any] | None:
    """The callback of a handle that is still to run; None for one that ran or was cancelled."""
    if handle.cancelled():
        return None
    scheduled = getattr(handle, "_scheduled", None)
    if scheduled is False and not any(one is handle for one in list(getattr(loop, "_ready", ()))):
        return None  # asyncio's: one that is due was taken from the heap, and waits for its turn in this iteration
    return callback_of(handle)


def _leak(loop: Any, handle: Any, callback: Callable[..., Any], origin: "Origin", times: int) -> LeakedTimer:
    creation = creation_of(origin)
    function = plain_function(callback)
    code = code_of(function)
    inside = {(frame.filename, qualified_name(frame)) for frame in creation or ()}
    own = code is not None and (code.co_filename, code.co_qualname) in inside
    when = getattr(handle, "when", None)
    return LeakedTimer(
        name=name_of(function),
        creation_stack=creation,
        due=when() - loop.time() if callable(when) else None,
        times=times,
        reschedules_itself=own,
        callback_module=module_of(code.co_filename) if code is not None else None,
        handle_ref=handle,
    )


def code_of(function: Any) -> types.CodeType | None:
    """The code of a function written in Python; of a class, which has a descriptor of that name, none."""
    code = getattr(function, "__code__", None)
    return code if isinstance(code, types.CodeType) else None


def name_of(function: Any) -> str:
    """The qualified name of what ``plain_function`` found."""
    name = getattr(function, "__qualname__", None)
    return name if isinstance(name, str) and name else type(function).__qualname__


def plain_function(callback: Any) -> Any:
    """The function that runs in the end: inside of partials, decorators, methods; or an object's ``__call__``.

    Where there is none written in Python: the C function, or the class.  Only types are asked, never the object
    itself: it may answer anything, or raise.
    """
    for _ in range(_DEEPEST_WRAPPING):
        kind = type(callback)
        if kind is functools.partial:
            callback = callback.func
        elif kind is types.MethodType:
            callback = callback.__func__
        elif kind is types.FunctionType or kind is functools._lru_cache_wrapper:
            inner = callback.__dict__.get("__wrapped__")
            if inner is None:
                return callback
            callback = inner
        elif issubclass(kind, types.BuiltinFunctionType | type) or kind.__name__ == "cython_function_or_method":
            return callback
        else:
            called = next((vars(base)["__call__"] for base in kind.__mro__ if "__call__" in vars(base)), None)
            return called if type(called) is types.FunctionType else kind
    return type(callback)
