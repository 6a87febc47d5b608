"""The kind "blocking": what ``no_event_loop_blocking`` finds, as one kind among those of ``no_leaks``."""

import copy
import logging
from typing import Any

from loopwatch.blocking import NOT_CANCELLABLE, close_scope, interval_ns, nanoseconds
from loopwatch.errors import EventLoopBlockError
from loopwatch.findings import CallerContext
from loopwatch.leaks.kinds import Kind, Session
from loopwatch.loops import LoopScope, open_scope, running_loop

__all__ = ["BlockingKind"]


class BlockingKind(Kind):
    """Blocks of the loop that runs here.  ``threshold`` and ``check_interval`` are seconds."""

    name = "blocking"
    needs_loop = True
    error = EventLoopBlockError
    grace_period = 0.0
    refusal = NOT_CANCELLABLE

    def __init__(
        self,
        threshold: float = 0.2,
        check_interval: float = 0.05,
        caller_context: CallerContext | None = None,
    ) -> None:
        if caller_context is not None and not isinstance(caller_context, CallerContext):
            raise TypeError(f"caller_context must be a loopwatch.CallerContext or None, got {caller_context!r}")
        self._threshold_ns = nanoseconds("threshold", threshold)
        self._interval_ns = interval_ns(check_interval, self._threshold_ns)
        self._caller = caller_context

    def seen_from(self, caller: CallerContext) -> "BlockingKind":
        """The same, with stacks that begin at this function."""
        other = copy.copy(self)
        other._caller = caller
        return other

    def can_begin(self) -> bool:
        return running_loop() is not None

    def begin(self) -> "_BlockingSession":
        return _BlockingSession(open_scope(self._threshold_ns, self._interval_ns), self._caller)


class _BlockingSession(Session):
    """An open scope; the first look closes it, so that the exit itself is no part of it."""

    def __init__(self, scope: LoopScope, caller: CallerContext | None) -> None:
        self._scope = scope
        self._caller = caller
        self._blocks: list[Any] | None = None

    def look(self) -> list[Any]:
        if self._blocks is None:
            self._blocks, stalls = close_scope(self._scope, self._caller)
            for stall in stalls:
                logging.getLogger("loopwatch").info("Not a block of the program: %s", stall)
        return self._blocks

    def end(self) -> None:
        self._scope.close()
