"""The guard ``no_event_loop_blocking``.

A guard object holds no state of one visit outside its list of open visits, so one object may be entered many times at
once: nested, by many tasks, in many threads.  A visit is found again at the exit by its task, else (a fixture that is
entered in one task and left in another) by its thread.
"""

import asyncio
import functools
import inspect
import logging
import math
import sys
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from loopwatch.actions import Action, LeakAction, Report, Site, dispatch, parse_action
from loopwatch.blocks import block_from_raw
from loopwatch.errors import EventLoopBlockError, add_note
from loopwatch.findings import CallerContext, EventLoopBlock
from loopwatch.loops import LoopScope, open_scope

__all__ = ["BlockingGuard", "no_event_loop_blocking"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_SECOND = 1_000_000_000
_SHORTEST_INTERVAL_NS = 1_000_000
_LONGEST_S = 1e9
_NOT_CANCELLABLE = "A blocked event loop cannot be cancelled: nothing runs on it until the blocking call returns."


def no_event_loop_blocking(
    action: Action = LeakAction.WARN,
    logger: logging.Logger | None = None,
    *,
    threshold: float = 0.2,
    check_interval: float = 0.05,
    caller_context: CallerContext | None = None,
) -> "BlockingGuard":
    """Find what blocks the event loop while the guarded code runs.

    Use it as ``with`` or ``async with`` inside a coroutine, or as a decorator of an async function.

    action: what happens to the blocks found: "warn" (default), "log", "cancel" (which warns: a block cannot be
        cancelled), "raise", a callable that takes the list of blocks, or a sequence of several.
    logger: where "log" writes; default ``logging.getLogger("loopwatch")``.
    threshold: seconds that the loop may be busy without a break; longer is a block.  Default 0.2.
    check_interval: seconds between two looks at the stack of a busy loop, at most; a tenth of the threshold where that
        is shorter, at least 0.001.  Default 0.05.
    caller_context: stacks are cut to begin at this function; default None: whole stacks.

    Raises ValueError for a misspelt action, a duration that is not above zero, or a decorated function that is not
    async; TypeError for a value of the wrong type; RuntimeError when entered where no event loop runs; at the exit,
    with the action "raise", EventLoopBlockError.  An exception of the guarded code is never replaced: it carries the
    findings as a note.
    """
    return BlockingGuard(action, logger, threshold, check_interval, caller_context)


class _Visit:
    """One time through a guard: an open scope, and who opened it."""

    def __init__(self, scope: LoopScope) -> None:
        self.scope = scope
        self.task = _current_task()
        self.thread = threading.get_ident()


class BlockingGuard:
    """What ``no_event_loop_blocking`` returns.

    ``blocks`` are the findings of the exit last made; ``stalls`` are the stretches told apart from them, in which the
    process was stopped or the CPU busy with other work.
    """

    def __init__(
        self,
        action: Action,
        logger: logging.Logger | None,
        threshold: float,
        check_interval: float,
        caller_context: CallerContext | None,
    ) -> None:
        self._actions = parse_action(action)
        if logger is not None and not callable(getattr(logger, "warning", None)):
            raise TypeError(f"logger must be a logging.Logger or None, got {logger!r}")
        if caller_context is not None and not isinstance(caller_context, CallerContext):
            raise TypeError(f"caller_context must be a loopwatch.CallerContext or None, got {caller_context!r}")
        self._logger = logger
        self._threshold_ns = nanoseconds("threshold", threshold)
        interval_ns = min(nanoseconds("check_interval", check_interval), self._threshold_ns // 10)
        self._interval_ns = max(interval_ns, _SHORTEST_INTERVAL_NS)
        self._caller = caller_context
        self._open: list[_Visit] = []
        self._lock = threading.Lock()
        self.blocks: list[EventLoopBlock] = []
        self.stalls: list[EventLoopBlock] = []

    def __call__(self, function: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
        """Decorate an async function: each call of it is watched on its own.  Raises ValueError for any other."""
        check_async(function)

        @functools.wraps(function)
        async def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            visit = self._enter()
            try:
                result = await function(*args, **kwargs)
            except BaseException as error:
                self._leave(visit, error, lambda: Site.of_function(function))
                raise
            self._leave(visit, None, lambda: Site.of_function(function))
            return result

        return guarded

    def __enter__(self) -> Self:
        visit = self._enter()
        with self._lock:
            self._open.append(visit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            visit = self._find_visit()
        except RuntimeError as misuse:
            if error is None:
                raise
            add_note(error, str(misuse))
            return
        self._leave(visit, error, Site.of_caller)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _enter(self) -> _Visit:
        return _Visit(open_scope(self._threshold_ns, self._interval_ns))

    def _find_visit(self) -> _Visit:
        task, thread = _current_task(), threading.get_ident()
        with self._lock:
            here = [visit for visit in self._open if visit.thread == thread]
            mine = [visit for visit in here if visit.task is task] or here
            if mine:
                self._open.remove(mine[-1])
                return mine[-1]
            elsewhere = bool(self._open)
        if elsewhere:
            raise RuntimeError(
                "this no_event_loop_blocking() guard was entered in another thread: leave it in the thread that "
                "entered it, which is the one that runs the event loop"
            )
        raise RuntimeError("this no_event_loop_blocking() guard was left without having been entered")

    def _leave(self, visit: _Visit, body: BaseException | None, site: Callable[[], Site]) -> None:
        raw_blocks = visit.scope.close()
        if visit.scope.inherited:
            return
        self.blocks, self.stalls = [], []
        if not raw_blocks:
            return
        name = repr(visit.scope.loop)
        for raw in raw_blocks:
            found = self.stalls if raw["stall"] else self.blocks
            found.append(block_from_raw(raw, len(found) + 1, loop=name, caller=self._caller))
        blocks = self.blocks
        for stall in self.stalls:
            (self._logger or logging.getLogger("loopwatch")).info("Not a block of the program: %s", stall)
        if blocks:
            error = EventLoopBlockError(f"Detected {len(blocks)} event loop blocks", blocks)
            dispatch(self._actions, Report(blocks, error, lambda: _NOT_CANCELLABLE, self._logger), site, body)


def nanoseconds(name: str, seconds: float) -> int:
    """Check a duration in seconds and turn it into nanoseconds.

    Raises TypeError for what is no number, ValueError for what is not finite and above zero.
    """
    if isinstance(seconds, bool | str | bytes) or not hasattr(seconds, "__float__"):
        raise TypeError(f"{name} must be a number of seconds, got {seconds!r} of type {type(seconds).__name__}")
    try:
        value = float(seconds)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a number of seconds above 0, got {seconds!r}")
    return max(round(min(value, _LONGEST_S) * _SECOND), 1)


def check_async(function: object) -> None:
    """Raise ValueError, with what to do instead, unless a function is one that a coroutine guard can decorate."""
    if inspect.iscoroutinefunction(function):
        return
    if inspect.iscoroutinefunction(getattr(type(function), "__call__", None)):  # noqa: B004
        return
    name = getattr(function, "__qualname__", None) or repr(function)
    if inspect.isasyncgenfunction(function):
        advice = "is an async generator function: write `with no_event_loop_blocking():` around the loop that uses it"
    elif isinstance(function, staticmethod | classmethod):
        advice = f"is a {type(function).__name__}: write @{type(function).__name__} above this decorator, not below"
    elif inspect.isclass(function):
        advice = "is a class: decorate its async methods"
    else:
        advice = "is not async: make it `async def`, or decorate the async function that calls it"
    raise ValueError(f"no_event_loop_blocking() decorates async functions only; {name} {advice}")


def _current_task() -> object:
    """The asyncio or trio task that runs here; None where there is none."""
    if asyncio._get_running_loop() is not None:
        return asyncio.current_task()
    lowlevel = sys.modules.get("trio.lowlevel")
    if lowlevel is not None:
        try:
            return lowlevel.current_task()
        except RuntimeError:
            return None
    return None
