"""A time limit as part of a function's definition."""

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

__all__ = ["timeout_task"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Function = Callable[_P, Coroutine[Any, Any, _T]]


def timeout_task(seconds: float) -> Callable[[_Function[_P, _T]], _Function[_P, _T]]:
    """Decorate an async function: a call of it that takes longer than ``seconds`` is cancelled and raises TimeoutError.

    The error names the function and the limit.  A TimeoutError of the function's own goes through unchanged, and so
    does a cancellation from outside.  Where only some lines need a limit, ``asyncio.timeout`` around them is enough; it
    is what works here.

    Raises TypeError for what is no number or no async function, ValueError for a number that is not above zero.
    """
    if callable(seconds):
        raise TypeError("timeout_task needs its limit in seconds: write @timeout_task(30.0), not @timeout_task")
    if isinstance(seconds, bool | str) or not hasattr(seconds, "__float__"):
        raise TypeError(f"timeout_task() needs a number of seconds, got {seconds!r} of type {type(seconds).__name__}")
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"timeout_task() needs a number of seconds above 0, got {seconds!r}")

    def decorate(function: _Function[_P, _T]) -> _Function[_P, _T]:
        name = getattr(function, "__qualname__", repr(function))
        if not inspect.iscoroutinefunction(function):
            advice = (
                "is an async generator function: put `async with asyncio.timeout(...)` around the loop that uses it"
                if inspect.isasyncgenfunction(function)
                else "is not one: a function that never awaits cannot be interrupted"
            )
            raise TypeError(f"timeout_task() decorates async functions only; {name} {advice}")

        @functools.wraps(function)
        async def limited(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            limit = asyncio.timeout(seconds)
            try:
                async with limit:
                    return await function(*args, **kwargs)
            except TimeoutError as error:
                if not limit.expired() or not isinstance(error.__cause__, asyncio.CancelledError):
                    raise
                raise TimeoutError(f"{name} did not end within {seconds:g} s") from error.__cause__

        return limited

    return decorate
