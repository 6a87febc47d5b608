"""A tracked loop's create_task() against an untracked one's: in every situation the same outcome."""

import asyncio
import contextlib
import contextvars
import gc
import inspect
import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from loopwatch import no_task_leaks

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def answer() -> str:
    return variable.get()


class Special(asyncio.Task):  # type: ignore[type-arg]
    """A Task that is not asyncio's."""


class Loop(asyncio.SelectorEventLoop):
    """A loop with a create_task() of its own."""

    def create_task(self, coro: Any, **keywords: Any) -> Any:  # type: ignore[override]
        task = super().create_task(coro, **keywords)
        task.set_name("by the class")
        return task


class Closing(asyncio.SelectorEventLoop):
    """A loop that looks for more before it makes a task."""

    def _check_closed(self) -> None:
        super()._check_closed()  # type: ignore[misc]
        if variable.get() == "refuse":
            raise RuntimeError("refused")


def plain(loop: Any) -> Any:
    return loop.create_task(answer())


def named(loop: Any) -> Any:
    return loop.create_task(answer(), name="given")


def named_and_in_context(loop: Any) -> Any:
    context = contextvars.copy_context()
    context.run(variable.set, "of the context")
    return loop.create_task(answer(), context=context, name="given")


def no_name(loop: Any) -> Any:
    return loop.create_task(answer(), name=None)


def a_name_that_is_no_string(loop: Any) -> Any:
    return loop.create_task(answer(), name=17)


def no_argument(loop: Any) -> Any:
    return loop.create_task()


def two_arguments(loop: Any) -> Any:
    coroutine = answer()
    try:
        return loop.create_task(coroutine, "name")
    finally:
        coroutine.close()


def an_unknown_keyword(loop: Any) -> Any:
    coroutine = answer()
    try:
        return loop.create_task(coroutine, nonsense=1)
    finally:
        coroutine.close()


def no_coroutine(loop: Any) -> Any:
    return loop.create_task(12)


def in_debug_mode(loop: Any) -> Any:
    loop.set_debug(True)
    try:
        return loop.create_task(answer())
    finally:
        loop.set_debug(False)


def under_a_factory(loop: Any) -> Any:
    loop.set_task_factory(lambda loop, coro, **keywords: Special(coro, loop=loop, **keywords))
    try:
        return loop.create_task(answer(), name="made by the factory")
    finally:
        loop.set_task_factory(None)


def with_another_task_class(loop: Any) -> Any:
    own, asyncio.tasks.Task = asyncio.tasks.Task, Special  # type: ignore[misc]
    try:
        return loop.create_task(answer(), name="of another class")
    finally:
        asyncio.tasks.Task = own  # type: ignore[misc]


def refused(loop: Any) -> Any:
    coroutine, token = answer(), variable.set("refuse")
    try:
        return loop.create_task(coroutine)
    except RuntimeError:
        coroutine.close()
        raise
    finally:
        variable.reset(token)


def by_the_function(loop: Any) -> Any:
    return asyncio.create_task(answer(), name="function")


def by_ensure_future(loop: Any) -> Any:
    return asyncio.ensure_future(answer())


def kept_method(loop: Any) -> Any:
    make = loop.create_task
    return make(answer(), name="by a method that was kept")


SITUATIONS = [
    plain,
    named,
    named_and_in_context,
    no_name,
    a_name_that_is_no_string,
    no_argument,
    two_arguments,
    an_unknown_keyword,
    no_coroutine,
    in_debug_mode,
    under_a_factory,
    with_another_task_class,
    refused,
    by_the_function,
    by_ensure_future,
    kept_method,
]


async def outcome(situation: Callable[[Any], Any]) -> tuple[object, ...]:
    """What came of it: the class, name and result of the task, or the error."""
    try:
        task = situation(asyncio.get_running_loop())
    except Exception as error:
        return type(error), str(error)
    name = "unnamed" if task.get_name().startswith("Task-") else task.get_name()
    made_at = [frame.name for frame in getattr(task, "_source_traceback", None) or []][-2:]  # in debug mode only
    return type(task), name, await task, type(task.get_context()) if hasattr(task, "get_context") else None, made_at


@pytest.mark.parametrize("make_loop", [asyncio.SelectorEventLoop, Loop, Closing])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_outcome_is_the_same(situation: Callable[[Any], Any], make_loop: Callable[[], Any]) -> None:
    async def main() -> tuple[tuple[object, ...], tuple[object, ...]]:
        bare = await outcome(situation)
        async with no_task_leaks(action="raise"):
            tracked = await outcome(situation)
        return bare, tracked

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with asyncio.Runner(loop_factory=make_loop) as runner:
            bare, tracked = runner.run(main())
    assert tracked == bare


def test_a_class_that_is_changed_while_it_is_tracked_is_obeyed() -> None:
    class Changing(asyncio.SelectorEventLoop):
        pass

    def create_task(self: Any, coro: Any, **keywords: Any) -> Any:
        return Special(coro, loop=self, **keywords)

    async def main() -> list[type]:
        loop, made = asyncio.get_running_loop(), []
        async with no_task_leaks(action="raise"):
            for change in (None, create_task, None):
                if change is not None:
                    Changing.create_task = change  # type: ignore[assignment,method-assign]
                elif made:
                    del Changing.create_task
                task = loop.create_task(answer())
                made.append(type(task))
                await task
        return made

    with asyncio.Runner(loop_factory=Changing) as runner:
        assert runner.run(main()) == [asyncio.Task, Special, asyncio.Task]


def test_it_looks_like_the_method_and_goes_with_the_guard() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        signature, name = inspect.signature(loop.create_task), loop.create_task.__name__
        assert "create_task" not in vars(loop)
        async with no_task_leaks(action="raise"):
            assert "create_task" in vars(loop)
            assert inspect.signature(loop.create_task) == signature
            assert loop.create_task.__name__ == name
            kept = loop.create_task
        assert "create_task" not in vars(loop)
        assert await kept(answer(), name="after") == "unset"

    asyncio.run(main())


def test_an_attribute_that_others_put_there_stays() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()

        def theirs(coro: Any, **keywords: Any) -> Any:
            return Special(coro, loop=loop, **keywords)

        loop.create_task = theirs
        async with no_task_leaks(action="raise"):
            assert loop.create_task is theirs
            task = loop.create_task(answer())
            assert type(task) is Special
            await task
        assert loop.create_task is theirs
        del loop.create_task
        async with no_task_leaks(action="raise"):
            loop.create_task = theirs  # on top of ours
            await loop.create_task(answer())
        assert loop.create_task is theirs
        del loop.create_task

    asyncio.run(main())


def test_a_closed_loop_refuses_as_before() -> None:
    loop = asyncio.new_event_loop()

    async def keeps() -> Any:
        async with no_task_leaks(action="raise"):
            return loop.create_task

    kept = loop.run_until_complete(keeps())
    loop.close()
    coroutine = answer()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        kept(coroutine)
    coroutine.close()


def test_a_guard_left_open_keeps_no_loop_alive() -> None:
    loop = asyncio.new_event_loop()

    async def enters() -> None:
        await no_task_leaks(action="warn").__aenter__()

    with contextlib.suppress(RuntimeError):
        loop.run_until_complete(enters())
    loop.close()
    gone = weakref.ref(loop)
    del loop
    for _ in range(3):
        gc.collect()
    assert gone() is None


def test_making_tasks_leaves_no_reference() -> None:
    async def main() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        async with no_task_leaks(action="raise"):
            for _ in range(100):
                await loop.create_task(answer())
            before = sys.getrefcount(loop), sys.getrefcount(asyncio.Task)
            for _ in range(1000):
                await loop.create_task(answer())
                with contextlib.suppress(TypeError):
                    loop.create_task(12)  # type: ignore[arg-type]
            after = sys.getrefcount(loop), sys.getrefcount(asyncio.Task)
        return abs(after[0] - before[0]), abs(after[1] - before[1])

    loop, task = asyncio.run(main())
    assert loop < 10
    assert task < 10
