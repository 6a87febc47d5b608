"""Background tasks with an owner."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextvars import Context
from typing import Any, Self, TypeVar

__all__ = ["TaskManager", "cancel_and_wait", "check_seconds"]

_T = TypeVar("_T")
_log = logging.getLogger("loopwatch")


class TaskManager:
    """Owns background tasks: keeps them alive, tells when one dies, and ends them all when asked.

    Two ways to use it.  ``async with TaskManager().task_scope() as manager``: the tasks are those of an
    ``asyncio.TaskGroup``; one that fails ends the scope with an ExceptionGroup, and those that still run when the block
    ends are cancelled and waited for.  Or without a scope, for tasks that live as long as an object: ``create_task``
    when needed and ``await cancel_all()`` at the end; a task that fails is logged at once, or handed to ``on_error``.
    For tasks that should all run to their end, ``asyncio.TaskGroup`` alone is enough.

    on_error: called with a task that failed and its exception, outside of a scope; default: logged as an error.
    deadline: seconds for which ``cancel_all`` waits for cancelled tasks to end.  Default 10.
    """

    def __init__(
        self, *, on_error: Callable[[asyncio.Task[Any], BaseException], object] | None = None, deadline: float = 10.0
    ) -> None:
        if on_error is not None and not callable(on_error):
            raise TypeError(f"on_error must be callable or None, got {on_error!r}")
        check_seconds("deadline", deadline)
        self._on_error = on_error
        self._deadline = deadline
        self._tasks: set[asyncio.Task[Any]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._closed: str | None = None
        self._cancelling = 0

    @property
    def tasks(self) -> frozenset[asyncio.Task[Any]]:
        """The tasks that have not ended."""
        return frozenset(self._tasks)

    def create_task(
        self, coro: Coroutine[Any, Any, _T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[_T]:
        """Start a task and own it.

        Raises RuntimeError where the scope is closed, its tasks are being cancelled, or no loop runs; the coroutine is
        closed then, so that nothing else complains of it.  Raises TypeError for what is no coroutine.
        """
        if not asyncio.iscoroutine(coro):
            raise TypeError(f"create_task() needs a coroutine, got {coro!r} of type {type(coro).__name__}")
        try:
            if self._closed is not None or self._cancelling:
                why = self._closed or "cancel_all() is cancelling those it has"
                raise RuntimeError(f"this TaskManager takes no new tasks: {why}")
            if self._group is not None:
                task = self._group.create_task(coro, name=name, context=context)
            else:
                task = asyncio.get_running_loop().create_task(coro, name=name, context=context)
        except BaseException:
            coro.close()
            raise
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def cancel_all(self, *, deadline: float | None = None) -> list[asyncio.Task[Any]]:
        """Cancel all tasks but the one that calls, wait for them to end, and return those that did not in time.

        Each of these is logged with what it waits for.  Tasks cannot be created meanwhile.  A cancellation from outside
        goes through: the tasks stay cancelled, and go on ending.
        """
        self._cancelling += 1
        try:
            return await cancel_and_wait(self._tasks, self._deadline if deadline is None else deadline)
        finally:
            self._cancelling -= 1

    @contextlib.asynccontextmanager
    async def task_scope(self) -> AsyncIterator[Self]:
        """A block whose tasks end with it.

        When the block ends, or raises, or is cancelled, what still runs is cancelled and waited for.  Exceptions of
        tasks come out as an ExceptionGroup, as they do from the ``asyncio.TaskGroup`` that this is.  The manager takes
        no task afterwards.  Raises RuntimeError where it has a scope, or had one.
        """
        if self._closed is not None or self._group is not None or self._cancelling:
            raise RuntimeError("this TaskManager is cancelling its tasks, has, or had, a scope: make a TaskManager for each")
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                yield self
            finally:
                self._closed = "its scope is closed"
                for task in list(self._tasks):
                    task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if self._group is not None or task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        if self._on_error is not None:
            self._on_error(task, error)
        else:
            _log.error("Task %r of a TaskManager failed", task.get_name(), exc_info=error)


async def cancel_and_wait(tasks: Iterable[asyncio.Task[Any]], deadline: float) -> list[asyncio.Task[Any]]:
    """Cancel tasks, all but the one that runs here, and return those that have not ended ``deadline`` seconds later."""
    waiting = set(tasks) - {asyncio.current_task()}
    for task in waiting:
        task.cancel()
    if not waiting:
        return []
    _, left = await asyncio.wait(waiting, timeout=deadline)
    for task in left:
        _log.warning("%s", hanging(task, deadline))
    return sorted(left, key=lambda task: task.get_name())


def hanging(task: asyncio.Task[Any], seconds: float) -> str:
    """Say that a task did not end after it was cancelled, what it waits for and where."""
    from loopwatch.leaks.waits import wait_of
    from loopwatch.stacks import user_frame

    wait = wait_of(task)
    frame = user_frame(wait.frames)
    place = "" if frame is None else f", at {frame.filename}:{frame.lineno} in {frame.name}"
    return f"Task {task.get_name()!r} did not end within {seconds:g} s of its cancellation: it {wait.text}{place}"


def check_seconds(name: str, value: object) -> None:
    """Raise ValueError unless a value is a number of seconds, at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{name} must be a number of seconds, at least 0, got {value!r}")
