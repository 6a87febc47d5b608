"""Tasks that ended badly: destroyed while pending, or with an exception that nobody retrieved.

asyncio itself notices both and tells the loop's exception handler, when the task is destroyed.  While a session is open
it tells us first; its own message appears as ever, and nothing is retrieved.  A task that still exists at the exit, has
an exception and would be reported by asyncio later is found by its record.
"""

import abc
import asyncio
import contextlib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from traceback import FrameSummary
from typing import Any, ClassVar, Protocol

from loopwatch import _core
from loopwatch.errors import DestroyedTaskError, TaskExceptionError
from loopwatch.findings import place_text
from loopwatch.leaks.kinds import Kind, Leak, Session
from loopwatch.leaks.task_findings import indented
from loopwatch.leaks.task_scopes import BornTasks, Scope, Token, check_scope
from loopwatch.loops import running_loop
from loopwatch.stacks import format_stack, making_module, qualified_name, summary_from_raw, user_frame

__all__ = ["DestroyedTask", "DestroyedTaskKind", "ExceptionTap", "TaskException", "TaskExceptionKind"]


@dataclass(frozen=True)
class _EndedTask(Leak):
    name: str
    task_id: int
    qualname: str
    creation_stack: list[FrameSummary] | None = None
    stack: list[FrameSummary] | None = None

    def place(self) -> tuple[str, int, str] | None:
        frame = user_frame(self.creation_stack or self.stack or ())
        return None if frame is None else (frame.filename, frame.lineno or 0, qualified_name(frame))

    def labels(self) -> Mapping[str, list[str]]:
        module = making_module(self.creation_stack or self.stack or ())
        return {
            "name": [self.name],
            "qualname": [self.qualname] if self.qualname else [],
            "stack": [qualified_name(frame) for frame in self.stack or ()],
            "creator": [qualified_name(frame) for frame in self.creation_stack or ()],
            "module": [module] if module else [],
        }

    def _stacks(self, heading: str) -> list[str]:
        lines = [f"  {heading}:", *indented(format_stack(self.stack))] if self.stack else []
        if self.creation_stack:
            lines += ["  Creation Stack:", *indented(format_stack(self.creation_stack))]
        return lines


@dataclass(frozen=True)
class DestroyedTask(_EndedTask):
    """A task that was destroyed while pending, because nobody held a reference to it.

    ``stack`` is the chain of awaits at which it stood, outermost first; None where its coroutine was destroyed first.
    Keep a reference to every task you create.
    """

    kind: ClassVar[str] = "destroyed_task"

    def headline(self) -> str:
        where = f", created at {place_text(self.place())}" if self.creation_stack else ""
        return f"task {self.name!r} of {self.qualname}(){where}, was destroyed while pending"

    def __str__(self) -> str:
        lines = [f"Task Destroyed While Pending: {self.name}", f"  ID: {self.task_id}", f"  Coroutine: {self.qualname}"]
        return "\n".join(lines + self._stacks("Last Stack"))


@dataclass(frozen=True)
class TaskException(_EndedTask):
    """A task that ended with an exception that nobody retrieved.

    ``exception`` is its type and message, ``stack`` its traceback, outermost first.
    """

    kind: ClassVar[str] = "task_exception"

    exception: str = ""

    def place(self) -> tuple[str, int, str] | None:
        frame = user_frame(self.stack or self.creation_stack or ())
        return None if frame is None else (frame.filename, frame.lineno or 0, qualified_name(frame))

    def headline(self) -> str:
        return f"task {self.name!r} of {self.qualname}() failed at {place_text(self.place())}: {self.exception}"

    def __str__(self) -> str:
        lines = [
            f"Task Exception Never Retrieved: {self.name}",
            f"  ID: {self.task_id}",
            f"  Coroutine: {self.qualname}",
            f"  Exception: {self.exception}",
        ]
        return "\n".join(lines + self._stacks("Raised At"))


class DestroyedTaskKind(Kind):
    """Tasks destroyed while pending.  scope: as in ``no_task_leaks``."""

    name: ClassVar[str] = "destroyed_tasks"
    needs_loop: ClassVar[bool] = True
    error = DestroyedTaskError
    grace_period: ClassVar[float] = 0.0
    refusal: ClassVar[str] = "A task that was destroyed cannot be cancelled."

    def __init__(self, *, scope: Scope = "descendants") -> None:
        self._scope = check_scope(scope)

    def begin(self) -> Session:
        return _DestroyedSession(self._scope)


class TaskExceptionKind(Kind):
    """Tasks that ended with an exception nobody retrieved.  scope: as in ``no_task_leaks``."""

    name: ClassVar[str] = "task_exceptions"
    needs_loop: ClassVar[bool] = True
    error = TaskExceptionError
    refusal: ClassVar[str] = "A task that has ended cannot be cancelled: await it, or look at its exception()."

    def __init__(self, *, scope: Scope = "descendants") -> None:
        self._scope = check_scope(scope)

    def begin(self) -> Session:
        return _ExceptionSession(self._scope)


class _HandlerSession(Session):
    """What asyncio tells the exception handler of one loop."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._found: list[Leak] = []
        self._apart: list[Leak] = []
        self._born = BornTasks(process=scope == "process")
        self._token = Token()
        self._handler = ExceptionTap.of(running_loop())
        self._handler.sessions.append(self)

    def look(self) -> list[Leak]:
        return list(self._found)

    def settled(self) -> str | None:
        return "what was destroyed stays destroyed" if self._found else None

    def apart(self) -> list[Leak]:
        return list(self._apart)

    def end(self) -> None:
        with contextlib.suppress(Exception):
            self._handler.leave(self)
        with contextlib.suppress(Exception):
            self._token.close()
        with contextlib.suppress(Exception):
            self._born.close()

    @abc.abstractmethod
    def told(self, context: Mapping[str, Any]) -> None: ...

    def mine(self, task: Any) -> bool:
        return self._scope != "descendants" or self._token.covers_task(task)


class _DestroyedSession(_HandlerSession):
    def told(self, context: Mapping[str, Any]) -> None:
        task = context.get("task")
        if not isinstance(task, asyncio.Task) or task.done() or "destroyed" not in str(context.get("message")):
            return
        coroutine = _core.task_coroutine(task)
        closed = getattr(coroutine, "cr_frame", task) is None  # the garbage collector came to the coroutine first
        stack: list[FrameSummary] = [] if closed else summary_from_raw(_core.await_chain(task)[0])
        leak = DestroyedTask(*_names(task), creation_stack=_creation(task), stack=stack or None)
        (self._found if self.mine(task) else self._apart).append(leak)


class _ExceptionSession(_HandlerSession):
    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self._waiting: list[Leak] = []
        self._reported: set[int] = set()

    def look(self) -> list[Leak]:
        waiting: list[Leak] = []
        for task, _record in self._born.pairs(pending=False):
            if task.done() and not task.cancelled() and getattr(task, "_log_traceback", False) and self.mine(task):
                waiting.append(_failed(task, getattr(task, "_exception", None)))
        return self._found + waiting

    def settled(self) -> str | None:
        return None

    def told(self, context: Mapping[str, Any]) -> None:
        task, error = context.get("future"), context.get("exception")
        if not isinstance(task, asyncio.Task) or not isinstance(error, BaseException) or not task.done():
            return
        (self._found if self.mine(task) else self._apart).append(_failed(task, error))


def _failed(task: Any, error: BaseException | None) -> TaskException:
    text = "".join(traceback.format_exception_only(error)).strip() if error is not None else "unknown"
    trace = None if error is None else error.__traceback__
    name, task_id, function = _names(task)
    if not function and trace is not None:  # it ended in its first step, without its coroutine
        function = trace.tb_frame.f_code.co_qualname
    stack = list(traceback.extract_tb(trace)) or None
    return TaskException(name, task_id, function, creation_stack=_creation(task), stack=stack, exception=text)


def _names(task: Any) -> tuple[str, int, str]:
    from loopwatch.leaks.tasks import coroutine_names, task_name

    return task_name(task), id(task), coroutine_names(task)[0]


def _creation(task: Any) -> list[FrameSummary] | None:
    raw = _core.task_frames(task)
    return None if raw is None else summary_from_raw(raw)


class ExceptionListener(Protocol):
    """Who wants to know what a loop's exception handler is told.  Must not keep what is in the context."""

    def told(self, context: Mapping[str, Any]) -> None: ...


class ExceptionTap:
    """Stands before one loop's ``call_exception_handler`` while sessions are open on it."""

    _all: ClassVar[dict[int, "ExceptionTap"]] = {}

    def __init__(self, loop: Any) -> None:
        self.sessions: list[ExceptionListener] = []
        self._loop = loop
        self._own = vars(loop).get("call_exception_handler") if hasattr(loop, "__dict__") else None
        self._below = loop.call_exception_handler
        self._hook = self._told  # one bound method, to be told again
        with contextlib.suppress(AttributeError):  # a loop of a make that takes no attributes
            loop.call_exception_handler = self._hook

    @classmethod
    def of(cls, loop: Any) -> "ExceptionTap":
        handler = cls._all.get(id(loop))
        if handler is None:
            handler = cls._all[id(loop)] = cls(loop)
        return handler

    def leave(self, session: ExceptionListener) -> None:
        if session in self.sessions:
            self.sessions.remove(session)
        if self.sessions or self._all.get(id(self._loop)) is not self:
            return
        del self._all[id(self._loop)]
        if vars(self._loop).get("call_exception_handler") is self._hook:
            if self._own is None:
                del self._loop.call_exception_handler
            else:
                self._loop.call_exception_handler = self._own

    def _told(self, context: Any) -> Any:
        for session in list(self.sessions):
            with contextlib.suppress(Exception):  # the program's own handler must be told, whatever becomes of us
                session.told(context)
        return self._below(context)
