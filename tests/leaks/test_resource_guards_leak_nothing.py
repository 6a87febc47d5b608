"""The guards of resources leak nothing themselves, whether they find something or not.

A leak of one object a run shows in every round; the interpreter's free lists and tables, which grow by chance, show in
ever fewer.  So rounds go on until two of them kept nothing, and a leak is where none do.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from loopwatch import _core
from loopwatch.leaks import resources

GUARDS = [getattr(resources, name) for name in resources.__all__ if name.startswith("no_")]
KINDS = [getattr(resources, name) for name in resources.__all__ if name.endswith("Kind")]
ROUNDS, REPEATS = 30, 40


async def numbers() -> Any:
    yield 1
    yield 2


async def everything_is_left() -> None:
    loop = asyncio.get_running_loop()
    # sessions, not guards: the text of a finding shows source lines, and CPython's formatting of these drifts by itself
    sessions = [kind().begin() for kind in KINDS]
    kept = numbers()
    await anext(kept)
    dropped = numbers()
    await anext(dropped)
    del dropped
    ran = asyncio.Event()
    loop.call_later(0.005, ran.set)  # one that is cancelled would stay in the loop's heap
    number = os.open("/dev/null", os.O_RDONLY)
    other = asyncio.SelectorEventLoop()
    pool = ThreadPoolExecutor(1)
    pool.submit(int).result()
    for session in reversed(sessions):
        found = session.look()
        session.apart()
        assert found or type(session).__module__.endswith(("processes", "timers"))
        session.end()
    del found
    await kept.aclose()
    await ran.wait()
    os.close(number)
    other.close()
    pool.shutdown()


async def nothing_is_left() -> None:
    for make in GUARDS:
        async with make("raise"):
            await asyncio.sleep(0)


def kept_by(program: Callable[[], Awaitable[None]]) -> list[tuple[int, int, int]]:
    """What each round kept: memory blocks, descriptors, creation stacks; until two rounds kept nothing."""

    async def main() -> list[tuple[int, int, int]]:
        steps: list[tuple[int, int, int]] = []
        before = (0, 0, 0)
        for number in range(ROUNDS):
            for _ in range(REPEATS):
                await program()
            gc.collect()
            now = (sys.getallocatedblocks(), len(os.listdir("/proc/self/fd")), _core.creation_info()["stacks"])
            if number > 0:
                steps.append((now[0] - before[0], now[1] - before[1], now[2] - before[2]))
            before = now
            if sum(blocks < REPEATS * 3 // 4 and files <= 0 and stacks <= 0 for blocks, files, stacks in steps) == 2:
                break
        return steps

    return asyncio.run(main())


@pytest.mark.slow
def test_what_is_found_is_not_kept() -> None:
    steps = kept_by(everything_is_left)
    assert len(steps) < ROUNDS - 1, f"every round of {REPEATS} kept something: {steps}"


def test_guards_that_find_nothing_keep_nothing() -> None:
    steps = kept_by(nothing_is_left)
    assert len(steps) < ROUNDS - 1, f"every round of {REPEATS} kept something: {steps}"
