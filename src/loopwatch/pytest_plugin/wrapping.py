"""Puts guards around functions so that they run inside the event loop that a plugin runs these functions in.

pytest-asyncio, anyio and pytest-trio recognise async functions by ``inspect``: what replaces one is one of the same
kind, with its attributes.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Stretch", "is_async", "wrap_async_fixture", "wrap_test"]


class Stretch(Protocol):
    """The guarded code of one owner, from its begin to its end."""

    def begin(self) -> None: ...

    async def leave(self, error: BaseException | None) -> None:
        """The owner's code ended, in its loop; with this exception, if any."""

    def leave_now(self, error: BaseException | None) -> None:
        """The same where nothing can be awaited."""

    def clean_up(self) -> None:
        """The owner begins to clean up, in its loop."""

    async def over(self, error: BaseException | None) -> None:
        """The owner cleaned up, in its loop; with this exception, if any."""


def is_async(function: object) -> bool:
    """Whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(function)


def wrap_test(function: Callable[..., Any], make: Callable[[], Stretch]) -> Callable[..., Any]:
    """Guard each call of a test function, sync or async."""
    if is_async(function):

        @functools.wraps(function)
        async def guarded_async_test(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            stretch = make()
            stretch.begin()
            try:
                result = await function(*args, **kwargs)
            except Exception as error:
                await stretch.leave(error)
                raise
            except BaseException as error:  # skipped, cancelled, interrupted, closed: no time to wait
                stretch.leave_now(error)
                raise
            await stretch.leave(None)
            return result

        return guarded_async_test

    @functools.wraps(function)
    def guarded_test(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        stretch = make()
        stretch.begin()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            stretch.leave_now(error)
            raise
        stretch.leave_now(None)
        return result

    return guarded_test


def wrap_async_fixture(function: Callable[..., Any], instance: object, stretch: Stretch) -> Callable[..., Any]:
    """Guard an async fixture; ``instance`` is the test's, for fixtures that are methods."""
    bound = _rebind(function, instance)
    if is_async(function):

        @functools.wraps(function)
        async def guarded_fixture(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            stretch.begin()
            try:
                value = await bound(*args, **kwargs)
            except BaseException as error:
                stretch.leave_now(error)
                raise
            stretch.leave_now(None)
            return value

        return guarded_fixture

    @functools.wraps(function)
    async def guarded_generator(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        stretch.begin()
        generator = bound(*args, **kwargs)
        step = generator.__anext__()
        first = True
        while True:
            try:
                value = await step
            except StopAsyncIteration:
                break
            except BaseException as error:
                if not first:
                    await stretch.over(error)
                raise
            finally:
                if first:
                    first = False
                    stretch.leave_now(None)
            try:
                sent = yield value
            except GeneratorExit:
                await generator.aclose()
                raise
            except BaseException as thrown:
                step = generator.athrow(thrown)
            else:
                stretch.clean_up()
                step = generator.asend(sent)
        await stretch.over(None)

    return guarded_generator


def _rebind(function: Callable[..., Any], instance: object) -> Callable[..., Any]:
    """A fixture that is a method belongs to the instance of the test that asks for it, as pytest has it."""
    owner = getattr(function, "__self__", None)
    if inspect.ismethod(function) and instance is not None and isinstance(instance, type(owner)):
        rebound: Callable[..., Any] = function.__func__.__get__(instance)
        return rebound
    return function
