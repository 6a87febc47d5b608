"""The tools that are compared: each runs a program on a fresh loop with that tool watching, and returns its seconds.

Every tool is entered before the clock starts and left after it stops, with its own defaults.  ``missing`` says why a
tool cannot take part.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Any

Program = Callable[[int], Awaitable[float]]
Tool = Callable[[Program, int], float]

missing: dict[str, str] = {}


def _on_loop(
    program: Program,
    units: int,
    watcher: Callable[[], AbstractAsyncContextManager[Any] | AbstractContextManager[Any]],
    *,
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop,
    debug: bool = False,
) -> float:
    async def main() -> float:
        scope = watcher()
        if isinstance(scope, AbstractAsyncContextManager):
            async with scope:
                return await program(units)
        with scope:
            return await program(units)

    with asyncio.Runner(loop_factory=new_loop, debug=debug) as runner:
        return runner.run(main())


def bare(program: Program, units: int) -> float:
    return _on_loop(program, units, nullcontext)


def debug_mode(program: Program, units: int) -> float:
    return _on_loop(program, units, nullcontext, debug=True)


def selector_tools() -> dict[str, Tool]:
    """The tools for asyncio's own loop, ``bare`` first."""
    tools: dict[str, Tool] = {"bare": bare}
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # debug mode talks about slow callbacks
    warnings.simplefilter("ignore", ResourceWarning)
    try:
        from loopwatch import no_event_loop_blocking as watch
    except ImportError as error:
        missing["loopwatch"] = str(error)
    else:
        tools["loopwatch"] = lambda program, units: _on_loop(program, units, lambda: watch(action=_ignore))
    tools["asyncio debug mode"] = debug_mode
    try:
        from pyleak import no_event_loop_blocking as pyleak_watch
    except ImportError as error:
        missing["pyleak"] = str(error)
    else:
        tools["pyleak"] = lambda program, units: _on_loop(program, units, pyleak_watch)
    try:
        from asyncio_event_loop_monitor import event_loop_monitor_ctx
    except ImportError as error:
        missing["asyncio-event-loop-monitor"] = str(error)
    else:
        tools["asyncio-event-loop-monitor"] = lambda program, units: _on_loop(program, units, event_loop_monitor_ctx)
    return tools


def uvloop_tools() -> dict[str, Tool]:
    """uvloop without and with loopwatch; empty when there is no uvloop."""
    try:
        import uvloop
    except ImportError as error:
        missing["uvloop"] = str(error)
        return {}

    def uv_bare(program: Program, units: int) -> float:
        return _on_loop(program, units, nullcontext, new_loop=uvloop.new_event_loop)

    tools: dict[str, Tool] = {"bare": uv_bare}
    try:
        from loopwatch import no_event_loop_blocking as watch
    except ImportError:
        return tools

    def uv_watched(program: Program, units: int) -> float:
        return _on_loop(program, units, lambda: watch(action=_ignore), new_loop=uvloop.new_event_loop)

    tools["loopwatch"] = uv_watched
    return tools


def _ignore(findings: object) -> None:
    """An action that does nothing: a machine that pauses during a run must not print."""
