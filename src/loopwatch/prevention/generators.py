"""An async generator that is closed when its block ends, however much of it was used."""

import contextlib
import inspect
from collections.abc import AsyncGenerator, Callable
from typing import Any, ParamSpec, TypeVar

__all__ = ["managed_generator"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def managed_generator(
    source: AsyncGenerator[_T, Any] | Callable[_P, AsyncGenerator[_T, Any]], *args: _P.args, **kwargs: _P.kwargs
) -> "contextlib.aclosing[AsyncGenerator[_T, Any]]":
    """Give an ``async with`` block an async generator and close it when the block ends.

    ``source`` is an async generator, or the function that makes one, with its arguments.  A ``break`` out of
    ``async for`` leaves a generator suspended with all it holds, until the garbage collector finds it; here its
    ``finally`` blocks run, in this task, before the block is left.  ``contextlib.aclosing`` does the same for a
    generator at hand and is what this returns; the checks are what it adds.

    Raises TypeError for anything that is no async generator, and for arguments beside a generator that exists already.
    """
    given: Any = source
    if inspect.isasyncgen(given):
        if args or kwargs:
            raise TypeError(
                f"managed_generator() got the generator {given.__qualname__} and arguments for it; a generator has "
                "its arguments already: pass the function that makes it instead"
            )
    elif callable(given):
        given = given(*args, **kwargs)
    if hasattr(given, "aclose") and hasattr(given, "__anext__"):
        return contextlib.aclosing(given)
    if inspect.iscoroutine(given):
        given.close()  # else Python says, besides, that it was never awaited
    raise TypeError(
        "managed_generator() needs an async generator or the function that makes one (`async def` with `yield`), got "
        f"{given!r} of type {type(given).__name__}"
    )
