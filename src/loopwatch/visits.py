"""What all guards share: entering, leaving and decorating.

A guard object holds no state of one visit outside its list of open visits, so one object may be entered many times at
once: nested, by many tasks, in many threads.  A visit is found again at the exit by its task, else (a fixture that is
entered in one task and left in another) by its thread.
"""

import abc
import asyncio
import functools
import inspect
import os
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType, FunctionType, TracebackType
from typing import Any, Generic, Self, TypeVar

from loopwatch.actions import Site
from loopwatch.errors import add_note

__all__ = ["Guard", "Visit", "current_task"]

_F = TypeVar("_F", bound=Callable[..., Any])


class Visit:
    """One time through a guard: who entered it."""

    def __init__(self) -> None:
        task = current_task()
        self._task = _reference(task)
        self.in_task = task is not None
        self.thread = threading.get_ident()
        self._pid = os.getpid()
        self.spoiled: str | None = None

    @property
    def inherited(self) -> bool:
        """Whether this process was forked off since: what is found belongs to the parent."""
        return self._pid != os.getpid()

    def entered_by(self, task: object, thread: int) -> bool:
        return self.thread == thread and self._task() is task

    def left_over(self) -> bool:
        """Whether the task that entered has ended, so that only another one can leave."""
        task = self._task()
        return task is None or (isinstance(task, asyncio.Future) and task.done())

    def owner(self) -> str:
        """Who entered, for a message."""
        return f"task {_task_name(self._task())!r}" if self.in_task else "code outside of any task"

    def abandon(self) -> None:
        """Undo what the visit holds open, without judging it.  Never raises."""


V = TypeVar("V", bound=Visit)
_G = TypeVar("_G", bound="Guard[Any]")


class Guard(abc.ABC, Generic[V]):
    """A scope that can be entered with ``with`` and ``async with`` and decorate functions.

    ``name`` is the function that users call, for messages.  A subclass says what a visit is and how it ends.  A
    ``strict`` guard must be left by the task that entered it, unless that task has ended.
    """

    name: str
    strict = False

    def __init__(self) -> None:
        self._open: list[V] = []
        self._lock = threading.Lock()

    @abc.abstractmethod
    def _enter(self) -> V: ...

    @abc.abstractmethod
    def _leave(self, visit: V, body: BaseException | None, site: Callable[[], Site]) -> None: ...

    async def _leave_async(self, visit: V, body: BaseException | None, site: Callable[[], Site]) -> None:
        self._leave(visit, body, site)

    def _check_function(self, function: object) -> None:
        check_decorable(self.name, function)

    def _check_sync(self) -> None:
        """Raise RuntimeError where a sync ``with`` cannot do."""

    def __call__(self, function: _F) -> _F:
        """Decorate a function: each call of it is guarded on its own.  Raises ValueError for what cannot be."""
        self._check_function(function)

        def site() -> Site:
            return Site.of_function(function)

        if is_async(function):

            @functools.wraps(function)
            async def guarded_async(*args: Any, **kwargs: Any) -> Any:
                visit = self._enter()
                try:
                    result = await function(*args, **kwargs)
                except BaseException as error:
                    await self._leave_async(visit, error, site)
                    raise
                await self._leave_async(visit, None, site)
                return result

            return guarded_async  # type: ignore[return-value]

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            visit = self._enter()
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                self._leave(visit, error, site)
                raise
            self._leave(visit, None, site)
            return result

        return guarded  # type: ignore[return-value]

    def __enter__(self) -> Self:
        self._check_sync()
        return self._begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        visit = self._take(error)
        if visit is not None:
            self._leave(visit, error, Site.of_caller)

    async def __aenter__(self) -> Self:
        return self._begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        visit = self._take(error)
        if visit is not None:
            await self._leave_async(visit, error, Site.of_caller)

    def _begin(self) -> Self:
        visit = self._enter()
        with self._lock:
            self._open.append(visit)
        return self

    def _take(self, body: BaseException | None) -> V | None:
        """The visit that ends here.  Misuse raises RuntimeError, or becomes a note on the body's exception."""
        try:
            return self._find()
        except RuntimeError as misuse:
            if body is None:
                raise
            add_note(body, str(misuse))
            return None

    def _find(self) -> V:
        task, thread = current_task(), threading.get_ident()
        with self._lock:
            if self._open:
                visit = self._open[-1]
                if visit.spoiled is None and visit.entered_by(task, thread):
                    return self._open.pop()
            here = [visit for visit in self._open if visit.thread == thread]
            mine = [visit for visit in here if visit.entered_by(task, thread)]
            if not mine:
                mine = [visit for visit in here if not self.strict or visit.left_over() or visit.inherited]
            if mine:
                visit = mine[-1]
                self._open.remove(visit)
                if visit.spoiled is not None:
                    raise RuntimeError(visit.spoiled)
                return visit
            foreign = [visit for visit in (here or self._open) if visit.spoiled is None]
            if foreign and self.strict:
                foreign[-1].spoiled = (
                    f"this {self.name}() guard was left already, by another task or thread ({_who(task)}) than entered "
                    "it, so nothing could be checked here"
                )
        if not foreign:
            raise RuntimeError(f"this {self.name}() guard was left without having been entered")
        if self.strict:
            foreign[-1].abandon()
        if here:
            raise RuntimeError(
                f"this {self.name}() guard was entered by {foreign[-1].owner()}, which still runs, and left by "
                f"{_who(task)}: leave it in the task that entered it, or write one guard for each task"
            )
        raise RuntimeError(
            f"this {self.name}() guard was entered in another thread: leave it in the thread that entered it, which "
            "is the one that runs the event loop"
        )


def is_async(function: object) -> bool:
    """Whether calling it gives a coroutine: an async function, or an object whose ``__call__`` is one."""
    if inspect.iscoroutinefunction(function):
        return True
    return inspect.iscoroutinefunction(getattr(type(function), "__call__", None))  # noqa: B004


def check_async(guard: str, function: object) -> None:
    """Raise ValueError, with what to do instead, unless a function is one that a coroutine guard can decorate."""
    if is_async(function):
        return
    advice = (
        _advice(guard, function) or "is not async: make it `async def`, or decorate the async function that calls it"
    )
    raise ValueError(f"{guard}() decorates async functions only; {_name(function)} {advice}")


def check_decorable(guard: str, function: object) -> None:
    """Raise ValueError, with what to do instead, unless a function, sync or async, is one that a guard can decorate."""
    if is_async(function):
        return
    advice = _advice(guard, function)
    if advice is None and not callable(function):
        advice = f"is none: write @{guard}() above `def` or `async def`"
    if advice is not None:
        raise ValueError(f"{guard}() decorates functions; {_name(function)} {advice}")


def _advice(guard: str, function: object) -> str | None:
    if inspect.isasyncgenfunction(function):
        return f"is an async generator function: write `with {guard}():` around the loop that uses it"
    if inspect.isgeneratorfunction(function):
        return f"is a generator function: write `with {guard}():` around the loop that uses it"
    if isinstance(function, staticmethod | classmethod):
        return f"is a {type(function).__name__}: write @{type(function).__name__} above this decorator, not below"
    if inspect.isclass(function):
        return "is a class: decorate its async methods"
    return None


def decorated_function(action: object) -> bool:
    """Whether what stands in the place of ``action`` is the function below a decorator without parentheses.

    An async function is never an action; a plain one is none where it stands below the line that runs now (the
    decorator's), or where it cannot be called with a list of findings.  For functions that users call, directly.
    A guard then says ``return decorate_bare(no_things(), action)``.
    """
    if action is None or isinstance(action, str | list | tuple):  # the usual ones, at once
        return False
    if is_async(action):
        return True
    if not inspect.isfunction(action):
        return False
    return _stands_below(action, sys._getframe(2)) or not _takes_findings(action)


def _takes_findings(function: FunctionType) -> bool:
    """Whether it can be called with one positional argument."""
    if function.__dict__:  # __wrapped__ or __signature__ may say otherwise
        try:
            inspect.signature(function).bind([])
        except TypeError:
            return False
        return True
    code = function.__code__
    room = code.co_argcount or code.co_flags & inspect.CO_VARARGS
    needed = code.co_argcount - len(function.__defaults__ or ())
    by_name = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    return bool(room) and needed <= 1 and set(by_name) <= (function.__kwdefaults__ or {}).keys()


def _stands_below(function: FunctionType, frame: FrameType) -> bool:
    """Whether a frame decorates a function: it makes that function, and is at one of the lines of its definition."""
    code = function.__code__
    if code.co_name == "<lambda>" or code not in frame.f_code.co_consts:
        return False
    last = max((line for _start, _end, line in code.co_lines() if line is not None), default=0)
    return code.co_firstlineno <= frame.f_lineno <= last


def decorate_bare(guard: _G, function: Any) -> _G:
    """What a decorator without parentheses gives: the guarded function, which stands where a guard would."""
    decorated: Any = guard(function)
    return decorated  # type: ignore[no-any-return]


def current_task() -> object:
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


def _reference(task: object) -> Callable[[], object]:
    """A weak reference: an open guard must not keep a task alive, whose loss would be a finding."""
    try:
        return weakref.ref(task)
    except TypeError:
        return lambda: task


def _task_name(task: object) -> str:
    get_name = getattr(task, "get_name", None)
    return str(get_name() if callable(get_name) else getattr(task, "name", "?"))


def _who(task: object) -> str:
    return f"task {_task_name(task)!r}" if task is not None else "code outside of any task"


def _name(function: object) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
