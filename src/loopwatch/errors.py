"""The exceptions that the action ``raise`` raises."""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopwatch.findings import EventLoopBlock

__all__ = ["EventLoopBlockError", "LeakError"]


class LeakError(Exception):
    """Base of all errors raised for a finding."""


class EventLoopBlockError(LeakError):
    """The event loop was blocked and the action is ``raise``.

    ``blocking_events`` holds the blocks in the order in which they began, ``block_count`` how many.  Can be pickled.
    """

    blocking_events: list["EventLoopBlock"]
    block_count: int

    def __init__(self, message: str, blocking_events: Sequence["EventLoopBlock"]) -> None:
        super().__init__(message)
        self.blocking_events = list(blocking_events)
        self.block_count = len(self.blocking_events)

    def get_block_summary(self) -> str:
        """Say in one line for each block how long it took (seconds), at which line and why."""
        lines = [f"Detected {self.block_count} event loop blocks"]
        lines += [f"  {block.headline()}" for block in self.blocking_events]
        return "\n".join(lines)

    def __str__(self) -> str:
        message = super().__str__()
        if not self.blocking_events:
            return message
        return f"{message}\n\n" + "\n".join(str(block) for block in self.blocking_events)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.blocking_events), self.__dict__.copy()


def add_note(error: BaseException, note: str) -> None:
    """Attach a note to an exception; one that takes no notes is left as it is."""
    # An exception type may refuse attributes: it must still pass unharmed.
    with contextlib.suppress(Exception):
        error.add_note(note)
