"""The guards of resources leak nothing themselves, whether they find something or not."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from loopwatch import _core
from loopwatch.leaks import resources

GUARDS = [getattr(resources, name) for name in resources.__all__ if name.startswith("no_")]
KINDS = [getattr(resources, name) for name in resources.__all__ if name.endswith("Kind")]
ROUNDS, REPEATS = 4, 40


async def numbers() -> Any:
    yield 1
    yield 2


async def everything() -> None:
    loop = asyncio.get_running_loop()
    # sessions, not guards: the text of a finding shows source lines, and CPython's formatting of these drifts by itself
    sessions = [kind().begin() for kind in KINDS]
    kept = numbers()
    await anext(kept)
    dropped = numbers()
    await anext(dropped)
    del dropped
    ran = asyncio.Event()
    loop.call_later(0.02, ran.set)  # one that is cancelled would stay in the loop's heap
    number = os.open("/dev/null", os.O_RDONLY)
    other = asyncio.SelectorEventLoop()
    pool = ThreadPoolExecutor(1)
    pool.submit(int).result()
    for session in reversed(sessions):
        found = session.look()
        session.apart()
        assert found or type(session).__module__.endswith("processes")
        session.end()
    del found
    await kept.aclose()
    await ran.wait()
    os.close(number)
    other.close()
    pool.shutdown()


def test_no_drift() -> None:
    async def main() -> list[tuple[int, int, int]]:
        seen = []
        for _ in range(ROUNDS + 2):
            for _ in range(REPEATS):
                await everything()
            for _ in range(REPEATS):
                for make in GUARDS:
                    async with make("raise"):
                        await asyncio.sleep(0)
            gc.collect()
            seen.append((sys.getallocatedblocks(), len(os.listdir("/proc/self/fd")), _core.creation_info()["stacks"]))
        return seen

    seen = asyncio.run(main())[2:]
    for column, allowed in ((0, REPEATS), (1, 1), (2, 1)):
        steps = [after[column] - before[column] for before, after in zip(seen, seen[1:], strict=False)]
        assert min(steps) < allowed, f"column {column} drifted: {steps}"
