"""Asking what tasks wait for, and whether anything can wake them, leaves no object behind."""

import asyncio
import gc
import sys

from loopwatch import _core
from loopwatch.leaks.waits import quiescent, stuck, wait_of


async def deep(n: int) -> None:
    if n:
        await deep(n - 1)
    else:
        await asyncio.sleep(60)


def test_looking_at_tasks_keeps_nothing() -> None:
    async def main() -> tuple[int, list[int]]:
        create = asyncio.get_running_loop().create_task
        tasks = [create(deep(4)), create(asyncio.Event().wait()), create(asyncio.Queue().get())]
        await asyncio.sleep(0)

        def look() -> None:
            for task in tasks:
                wait_of(task)
                _core.await_site(task)
            _core.await_hashes(tasks)
            quiescent(asyncio.get_running_loop())

        def measure() -> tuple[int, list[int]]:
            gc.collect()
            return sys.getallocatedblocks(), [sys.getrefcount(task) for task in tasks]

        for _ in range(20):
            look()
        stuck(tasks)
        blocks, counts = measure()
        for _ in range(300):
            look()
        for _ in range(5):
            stuck(tasks)
        blocks_after, counts_after = measure()
        for task in tasks:
            task.cancel()
        return blocks_after - blocks, [after - before for before, after in zip(counts, counts_after, strict=True)]

    drift, references = asyncio.run(main())
    assert references == [0, 0, 0] and drift < 50
