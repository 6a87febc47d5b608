"""The guard ``no_event_loop_blocking``."""

import logging
import math
from collections.abc import Callable

from loopwatch.actions import Action, LeakAction, Report, Site, dispatch, parse_action
from loopwatch.blocks import block_from_raw
from loopwatch.errors import EventLoopBlockError
from loopwatch.findings import CallerContext, EventLoopBlock
from loopwatch.loops import LoopScope, open_scope
from loopwatch.visits import Guard, Visit, check_async, decorate_bare, decorated_function

__all__ = ["BlockingGuard", "no_event_loop_blocking"]

_SECOND = 1_000_000_000
_SHORTEST_INTERVAL_NS = 1_000_000
_LONGEST_S = 1e9
NOT_CANCELLABLE = "A blocked event loop cannot be cancelled: nothing runs on it until the blocking call returns."


def no_event_loop_blocking(
    action: Action = LeakAction.WARN,
    logger: logging.Logger | None = None,
    *,
    threshold: float = 0.2,
    check_interval: float = 0.05,
    caller_context: CallerContext | None = None,
) -> "BlockingGuard":
    """Find what blocks the event loop while the guarded code runs.

    Use it as ``with`` or ``async with`` inside a coroutine, or as a decorator of an async function, with or without
    parentheses.

    action: what happens to the blocks found: "warn" (default), "log", "cancel" (which warns: a block cannot be
        cancelled), "raise", a callable that takes the list of blocks, or a sequence of several.
    logger: where "log" writes; default ``logging.getLogger("loopwatch")``.
    threshold: seconds that the loop may be busy without a break; longer is a block.  Default 0.2.
    check_interval: seconds between two looks at the stack of a busy loop, at most; a tenth of the threshold where that
        is shorter, at least 0.001.  Default 0.05, so 0.02 at the default threshold.
    caller_context: stacks are cut to begin at this function; default None: whole stacks.

    Raises ValueError for a misspelt action, a duration that is not above zero, or a decorated function that is not
    async; TypeError for a value of the wrong type; RuntimeError when entered where no event loop runs; at the exit,
    with the action "raise", EventLoopBlockError.  An exception of the guarded code is never replaced: it carries the
    findings as a note.
    """
    if decorated_function(action):
        return decorate_bare(no_event_loop_blocking(), action)
    return BlockingGuard(action, logger, threshold, check_interval, caller_context)


class _Visit(Visit):
    """One time through a guard: an open scope, and who opened it."""

    def __init__(self, scope: LoopScope) -> None:
        super().__init__()
        self.scope = scope


class BlockingGuard(Guard[_Visit]):
    """What ``no_event_loop_blocking`` returns.

    ``blocks`` are the findings of the exit last made; ``stalls`` are the stretches told apart from them, in which the
    process was stopped or the CPU busy with other work.
    """

    name = "no_event_loop_blocking"

    def __init__(
        self,
        action: Action,
        logger: logging.Logger | None,
        threshold: float,
        check_interval: float,
        caller_context: CallerContext | None,
    ) -> None:
        super().__init__()
        self._actions = parse_action(action)
        if logger is not None and not callable(getattr(logger, "warning", None)):
            raise TypeError(f"logger must be a logging.Logger or None, got {logger!r}")
        if caller_context is not None and not isinstance(caller_context, CallerContext):
            raise TypeError(f"caller_context must be a loopwatch.CallerContext or None, got {caller_context!r}")
        self._logger = logger
        self._threshold_ns = nanoseconds("threshold", threshold)
        self._interval_ns = interval_ns(check_interval, self._threshold_ns)
        self._caller = caller_context
        self.blocks: list[EventLoopBlock] = []
        self.stalls: list[EventLoopBlock] = []

    def _check_function(self, function: object) -> None:
        check_async(self.name, function)

    def _enter(self) -> _Visit:
        return _Visit(open_scope(self._threshold_ns, self._interval_ns))

    def _leave(self, visit: _Visit, body: BaseException | None, site: Callable[[], Site]) -> None:
        blocks, stalls = close_scope(visit.scope, self._caller)
        if visit.scope.inherited:
            return
        self.blocks, self.stalls = blocks, stalls
        for stall in stalls:
            (self._logger or logging.getLogger("loopwatch")).info("Not a block of the program: %s", stall)
        if blocks:
            error = EventLoopBlockError.of(blocks)
            dispatch(self._actions, Report(blocks, error, lambda: NOT_CANCELLABLE, self._logger), site, body)


def close_scope(scope: LoopScope, caller: CallerContext | None) -> tuple[list[EventLoopBlock], list[EventLoopBlock]]:
    """End a scope: the blocks found in it, and the stretches told apart from them.  A fork's child finds nothing."""
    raw_blocks = scope.close()
    blocks: list[EventLoopBlock] = []
    stalls: list[EventLoopBlock] = []
    if raw_blocks and not scope.inherited:
        name = repr(scope.loop)
        for raw in raw_blocks:
            found = stalls if raw["stall"] else blocks
            found.append(block_from_raw(raw, len(found) + 1, loop=name, caller=caller))
    return blocks, stalls


def interval_ns(check_interval: float, threshold_ns: int) -> int:
    """The check interval in nanoseconds: a tenth of the threshold if that is shorter, at least a millisecond."""
    return max(min(nanoseconds("check_interval", check_interval), threshold_ns // 10), _SHORTEST_INTERVAL_NS)


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
