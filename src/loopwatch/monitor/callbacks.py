"""What happens to an exception of a callback while the C ``Handle._run`` stands in asyncio's place."""

import asyncio
import inspect
from asyncio import format_helpers
from typing import Any

__all__ = ["report_exception"]

_source = format_helpers._format_callback_source
_takes_debug = "debug" in inspect.signature(_source).parameters


def report_exception(handle: asyncio.Handle, error: BaseException) -> None:
    """Hand it to the loop's exception handler, with the words of this release of asyncio."""
    state: Any = handle
    options = {"debug": state._loop.get_debug()} if _takes_debug else {}
    context = {
        "message": f"Exception in callback {_source(state._callback, state._args, **options)}",
        "exception": error,
        "handle": handle,
    }
    if state._source_traceback:
        context["source_traceback"] = state._source_traceback
    state._loop.call_exception_handler(context)
