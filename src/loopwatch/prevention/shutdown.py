"""An orderly end of a service: on a signal, everything it tracks is asked to stop, and what does not is named."""

import asyncio
import logging
import signal
import threading
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from loopwatch.prevention.managers import cancel_and_wait, check_seconds

__all__ = ["GracefulShutdown"]

_T = TypeVar("_T")
_log = logging.getLogger("loopwatch")


class GracefulShutdown:
    """Ends the tasks it tracks when SIGTERM or SIGINT comes, within a deadline.

    Usage: ``setup_handlers()``, ``track_task(...)`` for each long-lived task, then ``await wait()`` in the main
    coroutine, which comes back when the shutdown is over.  As a context manager it also puts the signal handlers back.
    ``shutdown_event`` is set when the shutdown begins, so that a worker can end by itself.

    A second signal is not held back: it does what it did before ``setup_handlers``.  The loop is not stopped:
    ``asyncio.run`` ends when its main coroutine does.

    deadline: seconds that tasks have to end after they were cancelled.  Default 30.
    grace: seconds between the event and the cancellation, for workers that look at the event.  Default 0.
    """

    def __init__(self, *, deadline: float = 30.0, grace: float = 0.0) -> None:
        check_seconds("deadline", deadline)
        check_seconds("grace", grace)
        self.shutdown_event = asyncio.Event()
        self.tasks: set[asyncio.Task[Any]] = set()
        self._deadline = deadline
        self._grace = grace
        self._before: dict[signal.Signals, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[list[asyncio.Task[Any]]] | None = None

    def setup_handlers(self, signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)) -> None:
        """Begin the shutdown when one of these signals comes.

        Raises RuntimeError outside of the main thread, where Python takes no signals, or where no loop runs.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "signals reach the main thread only: call setup_handlers() in the loop that runs there, "
                "and have it call shutdown() of others"
            )
        loop = self._loop = asyncio.get_running_loop()
        for number in signals:
            before = signal.getsignal(number)
            loop.add_signal_handler(number, self._signalled, number)
            self._before.setdefault(number, before)

    def track_task(self, task: "Coroutine[Any, Any, _T] | asyncio.Task[_T]") -> asyncio.Task[_T]:
        """Start a coroutine as a task, or take one that runs, and end it at the shutdown.  A failure is logged at once.

        Raises RuntimeError once the shutdown has begun (a coroutine is closed then), TypeError for anything else.
        """
        if not isinstance(task, asyncio.Task) and not asyncio.iscoroutine(task):
            raise TypeError(f"track_task() needs a coroutine or a task, got {task!r} of type {type(task).__name__}")
        if self.shutdown_event.is_set():
            if not isinstance(task, asyncio.Task):
                task.close()
            raise RuntimeError("the shutdown has begun: no new task can be tracked")
        tracked = task if isinstance(task, asyncio.Task) else asyncio.get_running_loop().create_task(task)
        self.tasks.add(tracked)
        tracked.add_done_callback(self._ended)
        return tracked

    async def shutdown(self) -> list[asyncio.Task[Any]]:
        """End all tracked tasks but the one that calls; return those that did not end in time, each logged.

        Calls made while it is under way, and later ones, give the same result.
        """
        if self._ending is None:
            self.shutdown_event.set()
            caller = asyncio.current_task()
            self._ending = asyncio.get_running_loop().create_task(self._end(caller), name="loopwatch shutdown")
        return await asyncio.shield(self._ending)

    async def wait(self) -> list[asyncio.Task[Any]]:
        """Wait for a shutdown to begin and to be over; return the tasks that did not end in time."""
        await self.shutdown_event.wait()
        return await self.shutdown()

    def close(self) -> None:
        """Put back the signal handlers that were there before.  Idempotent."""
        for number in list(self._before):
            self._restore(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _restore(self, number: signal.Signals) -> None:
        before = self._before.pop(number, None)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_signal_handler(number)
        if before is not None:
            signal.signal(number, before)

    def _signalled(self, number: signal.Signals) -> None:
        _log.info("%s: shutting down", number.name)
        for each in list(self._before):
            self._restore(each)
        self.shutdown_event.set()
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end(None), name="loopwatch shutdown")

    async def _end(self, caller: "asyncio.Task[Any] | None") -> list[asyncio.Task[Any]]:
        others = self.tasks - {caller}
        if self._grace > 0 and others:
            await asyncio.wait(others, timeout=self._grace)
        return await cancel_and_wait(self.tasks - {caller}, self._deadline)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("Task %r failed", task.get_name(), exc_info=error)
