"""Async generators that were begun and neither exhausted nor closed."""

import asyncio
import gc
import types
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from traceback import FrameSummary
from typing import TYPE_CHECKING, Any, ClassVar

from loopwatch import _core
from loopwatch.errors import AsyncGeneratorLeakError
from loopwatch.findings import place_text
from loopwatch.leaks.kinds import Kind, Leak, Session
from loopwatch.leaks.origins import Resource, ResourceSession, creation_of, merged, one_frame
from loopwatch.stacks import format_stack, is_library, qualified_name

if TYPE_CHECKING:
    from loopwatch._core import Origin

__all__ = ["AsyncGeneratorKind", "LeakedAsyncGenerator"]


@dataclass(frozen=True)
class LeakedAsyncGenerator(Resource):
    """An async generator that was begun, and neither run to its end nor closed.

    name: its qualified name.  creation_stack: where it was first iterated.  current_stack: the line at which it is
    suspended; for one that was dropped the line at which it was then.
    finalised: it was dropped, so that only the garbage collector closed it, at a time of its own.
    user: the task that still iterates it, where there is one.
    generator_ref: the generator; None where it is gone, and in a pickled copy.
    """

    kind: ClassVar[str] = "async_generator"
    title: ClassVar[str] = "Async Generator"
    made: ClassVar[str] = "first iterated"
    live: ClassVar[tuple[str, ...]] = ("generator_ref",)

    current_stack: list[FrameSummary] | None = None
    finalised: bool = False
    user: str | None = None
    generator_ref: Any = field(default=None, compare=False)

    def format_current_stack(self) -> str:
        """The line at which it is suspended, as a traceback shows it."""
        return format_stack(self.current_stack) if self.current_stack else "No current stack available"

    def tail(self) -> str:
        if self.finalised:
            return "dropped before its end: finalised by the garbage collector, not by its user"
        user = f", in use by {self.user}" if self.user else ": neither exhausted nor closed"
        if not self.current_stack:
            return f"suspended{user}"
        frame = self.current_stack[-1]
        return f"suspended at {place_text((frame.filename, frame.lineno or 0, qualified_name(frame)))}{user}"

    def facts(self) -> Iterable[tuple[str, str | None]]:
        if self.finalised:
            state = "dropped before its end: finalised by the garbage collector, not by its user"
        elif self.user:
            state = f"in use by {self.user}"
        else:
            state = "suspended; only aclose() or the garbage collector can end it"
        yield "State", state
        yield "Close it with", None if self.user else "aclose(), or contextlib.aclosing() around its use"
        frame = self.current_stack[-1] if self.current_stack else None
        if frame is not None:
            where = place_text((frame.filename, frame.lineno or 0, qualified_name(frame)))
            yield ("Stood at" if self.finalised else "Suspended at"), where

    def labels(self) -> Mapping[str, Sequence[str]]:
        frames = self.current_stack or []
        return merged(super().labels(), qualname=[self.name], stack=[qualified_name(frame) for frame in frames])


class AsyncGeneratorKind(Kind):
    """Async generators that were first iterated under the guard, in its thread, and not brought to an end."""

    name: ClassVar[str] = "async_generators"
    error = AsyncGeneratorLeakError
    refusal: ClassVar[str] = "An async generator that was dropped, or is running, cannot be closed from outside."

    def begin(self) -> Session:
        return _Session()


class _Session(ResourceSession):
    def __init__(self) -> None:
        self._hook: Any = _core.asyncgens_begin()
        super().__init__()
        self._apart: list[Leak] = []
        self._dropped_only = False

    def look(self) -> list[Leak]:
        self.looks += 1
        if self._hook is None:
            return []
        left: list[Leak] = []
        apart: list[Leak] = []
        self._apart = apart
        open_ones = [
            (generator, origin)
            for generator, origin, finalised in _core.asyncgens_since(self.serial)
            if not finalised and generator.ag_frame is not None
        ]
        users = _users([generator for generator, _ in open_ones])
        for generator, origin in open_ones:
            leak = _open_leak(generator, origin, users.get(id(generator)))
            (apart if leak.user or self.foreign(origin) else left).append(leak)
        dropped, _more = _core.asyncgens_dropped(self.serial)
        for origin, name, filename, line in dropped:
            gone = _dropped_leak(origin, name, filename, line)
            (apart if self.foreign(origin) or _iterated_by_library(gone) else left).append(gone)
        self._dropped_only = not open_ones
        return left

    def settled(self) -> str | None:
        return "a generator that was dropped cannot be closed by its user any more" if self._dropped_only else None

    def cancel(self, leaks: Sequence[Leak]) -> list[Leak]:
        loop = asyncio._get_running_loop()
        refused = []
        for leak in leaks:
            generator = getattr(leak, "generator_ref", None)
            if loop is None or generator is None or generator.ag_running:
                refused.append(leak)
            else:
                loop.create_task(_close(generator))
        return refused

    def apart(self) -> list[Leak]:
        return list(self._apart)

    def end(self) -> None:
        hook, self._hook = self._hook, None
        if hook is not None:
            _core.asyncgens_end(hook)
        super().end()


async def _close(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()


def _open_leak(generator: Any, origin: "Origin", user: str | None) -> LeakedAsyncGenerator:
    frame = generator.ag_frame
    name = str(generator.__qualname__)
    line = frame.f_lineno if frame is not None else 0
    return LeakedAsyncGenerator(
        name=name,
        creation_stack=creation_of(origin),
        current_stack=[one_frame(generator.ag_code.co_filename, name, line or 0)],
        user=user,
        generator_ref=generator,
    )


def _dropped_leak(origin: "Origin", name: str, filename: str, line: int) -> LeakedAsyncGenerator:
    return LeakedAsyncGenerator(
        name=name,
        creation_stack=creation_of(origin),
        current_stack=[one_frame(filename, name, line)],
        finalised=True,
    )


def _iterated_by_library(leak: LeakedAsyncGenerator) -> bool:
    """Whether an installed library, not the program, iterated it and let it go."""
    stack = leak.creation_stack
    return bool(stack) and is_library(stack[-1].filename) if stack else False


def _users(generators: Sequence[Any]) -> dict[int, str]:
    """By id, the pending tasks in whose coroutines open generators are being iterated."""
    if not generators:
        return {}
    wanted = {id(generator) for generator in generators}
    try:
        tasks = asyncio.all_tasks()
        current = asyncio.current_task()
    except RuntimeError:
        return {}
    users: dict[int, str] = {}
    for task in tasks:
        if task is current:
            continue
        for held in _reached(_core.task_coroutine(task)):
            if id(held) in wanted:
                users.setdefault(id(held), f"pending task {task.get_name()!r}")
    return users


_AWAITED = ("cr_await", "ag_await", "gi_yieldfrom")


def _reached(coroutine: Any) -> Iterable[Any]:
    """The async generators that the frames of a suspended coroutine hold."""
    seen: set[int] = set()
    todo = [coroutine]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, types.AsyncGeneratorType):
            yield one
        for name in _AWAITED:
            todo.append(getattr(one, name, None))
        if isinstance(one, types.CoroutineType | types.GeneratorType | types.AsyncGeneratorType):
            # its locals and its stack of values, where `async for` keeps what it iterates
            todo += [held for held in gc.get_referents(one) if isinstance(held, types.AsyncGeneratorType)]
        elif type(one).__name__.startswith(("async_generator_", "coroutine_wrapper")):
            todo += [
                held
                for held in gc.get_referents(one)
                if isinstance(held, types.AsyncGeneratorType | types.CoroutineType)
            ]
