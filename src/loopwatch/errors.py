"""The exceptions that the action ``raise`` raises."""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from loopwatch.findings import EventLoopBlock
    from loopwatch.leaks.kinds import Leak

__all__ = [
    "AsyncGeneratorLeakError",
    "DescriptorLeakError",
    "DestroyedTaskError",
    "EventLoopBlockError",
    "ExecutorLeakError",
    "LeakError",
    "LeakErrorGroup",
    "LoopLeakError",
    "ProcessLeakError",
    "ScopeLeakError",
    "TaskExceptionError",
    "TaskLeakError",
    "ThreadLeakError",
    "TimerLeakError",
    "UnawaitedCoroutineError",
]


class LeakError(Exception):
    """Base of all errors raised for a finding."""


class EventLoopBlockError(LeakError):
    """The event loop was blocked and the action is ``raise``.

    ``blocking_events`` holds the blocks in the order in which they began, ``block_count`` how many.  Can be pickled.
    """

    what: ClassVar[str] = "event loop blocks"
    blocking_events: list["EventLoopBlock"]
    block_count: int

    def __init__(self, message: str, blocking_events: Sequence["EventLoopBlock"]) -> None:
        super().__init__(message)
        self.blocking_events = list(blocking_events)
        self.block_count = len(self.blocking_events)

    @classmethod
    def of(
        cls, blocking_events: Sequence["EventLoopBlock"], apart: Sequence[object] = (), reason: str | None = None
    ) -> Self:
        """Make the error for these blocks, with the message that counts them."""
        return cls(f"Detected {len(blocking_events)} {cls.what}", blocking_events)

    @property
    def leaks(self) -> list["EventLoopBlock"]:
        """The same as ``blocking_events``: the name that all other errors of a ``LeakErrorGroup`` have for theirs."""
        return self.blocking_events

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


class ScopeLeakError(LeakError):
    """A scope left something behind and the action is ``raise``.

    ``leaks`` holds what, ``apart`` what was seen meanwhile but is not this scope's fault, ``reason`` why waiting longer
    could not help, where that is known.  ``what`` names the kind in messages.  Can be pickled.
    """

    what: ClassVar[str] = "leaks"

    def __init__(
        self, message: str, leaks: Sequence["Leak"] = (), *, apart: Sequence["Leak"] = (), reason: str | None = None
    ) -> None:
        super().__init__(message)
        self.leaks = list(leaks)
        self.apart = list(apart)
        self.reason = reason

    @classmethod
    def of(cls, leaks: Sequence["Leak"], apart: Sequence["Leak"] = (), reason: str | None = None) -> Self:
        """Make the error for these leaks, with the message that counts them."""
        return cls(f"Detected {len(leaks)} {cls.what}", leaks, apart=apart, reason=reason)

    def get_stack_summary(self) -> str:
        """The full text of every leak, with its stacks."""
        return "\n".join(str(leak) for leak in self.leaks)

    def __str__(self) -> str:
        parts = [super().__str__()]
        if self.leaks:
            parts.append(self.get_stack_summary())
        if self.reason is not None:
            parts.append(f"Waiting longer could not help: {self.reason}")
        if self.apart:
            lines = [f"Seen meanwhile, not of this scope: {len(self.apart)} {self.what}"]
            parts.append("\n".join(lines + [f"  {leak.headline()}" for leak in self.apart]))
        return "\n\n".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.leaks), self.__dict__.copy()


class TaskLeakError(ScopeLeakError):
    """asyncio tasks outlived their scope: ``leaked_tasks``, ``task_count``."""

    what = "leaked asyncio tasks"

    @property
    def leaked_tasks(self) -> list["Leak"]:
        return self.leaks

    @property
    def task_count(self) -> int:
        return len(self.leaks)


class DestroyedTaskError(ScopeLeakError):
    """asyncio tasks were destroyed while pending: nobody held a reference to them."""

    what = "asyncio tasks destroyed while pending"


class TaskExceptionError(ScopeLeakError):
    """asyncio tasks ended with an exception that nobody retrieved."""

    what = "asyncio tasks whose exception nobody retrieved"


class UnawaitedCoroutineError(ScopeLeakError):
    """Coroutines were made and never awaited."""

    what = "coroutines never awaited"


class ThreadLeakError(ScopeLeakError):
    """Threads outlived their scope: ``leaked_threads``, ``thread_count``."""

    what = "leaked threads"

    @property
    def leaked_threads(self) -> list["Leak"]:
        return self.leaks

    @property
    def thread_count(self) -> int:
        return len(self.leaks)


class AsyncGeneratorLeakError(ScopeLeakError):
    """Async generators were neither exhausted nor closed."""

    what = "async generators left open"


class TimerLeakError(ScopeLeakError):
    """Timers (``call_later``, ``call_at``) are still scheduled."""

    what = "timers left scheduled"


class DescriptorLeakError(ScopeLeakError):
    """File descriptors or sockets were left open."""

    what = "file descriptors left open"


class ProcessLeakError(ScopeLeakError):
    """Child processes still run or were not reaped."""

    what = "child processes not reaped"


class LoopLeakError(ScopeLeakError):
    """Event loops were not closed."""

    what = "event loops not closed"


class ExecutorLeakError(ScopeLeakError):
    """Executors were not shut down."""

    what = "executors not shut down"


class LeakErrorGroup(ExceptionGroup[LeakError], LeakError):  # noqa: N818 - the name people catch
    """What ``no_leaks`` raises: one error for each kind that was found."""

    def __new__(cls, message: str, errors: Sequence[LeakError]) -> Self:
        return super().__new__(cls, message, list(errors))

    def __init__(self, message: str, errors: Sequence[LeakError]) -> None:
        super().__init__(message, list(errors))

    def derive(self, errors: Sequence[LeakError]) -> "LeakErrorGroup":  # type: ignore[override]
        return LeakErrorGroup(self.message, errors)


def add_note(error: BaseException, note: str) -> None:
    """Attach a note to an exception; one that takes no notes is left as it is."""
    # An exception type may refuse attributes: it must still pass unharmed.
    with contextlib.suppress(Exception):
        error.add_note(note)
