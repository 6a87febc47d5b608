"""loopwatch itself leaks nothing: repeat, drop the warm-ups, then require no drift.

The idea is CPython's regrtest -R: references (where the build counts them),
memory blocks, descriptors and threads, after rounds of everything.  A round
runs its program many times, so that a leak of one object a run stands far
above the interpreter's free lists, which fill slowly.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from array import array

import pytest

from loopwatch import EventLoopBlockError, _core, no_event_loop_blocking
from loopwatch.leaks.guard import LeakGuard
from loopwatch.leaks.tasks import CoroutineKind, DestroyedTaskKind, TaskExceptionKind, no_task_leaks

WARM_UPS, ROUNDS = 3, 5


WHAT = ("blocks", "fds", "threads", "python threads", "references")


def measure(into: array[int], at: int) -> None:
    """Write the numbers of WHAT into room that is there already: measuring must not add up."""
    gc.collect()
    into[at + 1] = len(os.listdir("/proc/self/fd"))
    into[at + 2] = len(os.listdir("/proc/self/task"))
    into[at + 3] = threading.active_count()
    into[at + 4] = sys.gettotalrefcount() if hasattr(sys, "gettotalrefcount") else 0
    into[at] = sys.getallocatedblocks()


async def blocks_and_raises() -> None:
    guard = no_event_loop_blocking(action="raise", threshold=0.001)
    try:
        async with guard:
            await asyncio.sleep(0)
            time.sleep(0.002)
            await asyncio.sleep(0)
    except EventLoopBlockError as error:
        str(error)
    assert guard.blocks or guard.stalls  # on a crowded machine so short a block may be the machine's own


@no_event_loop_blocking(action="raise")
async def decorated() -> None:
    await asyncio.sleep(0)


def nested_callback_and_bad_input() -> None:
    async def main() -> None:
        watch = _core.Watch(asyncio.get_running_loop(), "selector-epoll")
        outer = watch.open_scope(10**7, 10**6, lambda block: None)
        inner = watch.open_scope(10**7, 10**6)
        time.sleep(0.015)
        await asyncio.sleep(0.001)
        inner.close()
        outer.close()
        for bad in ((0, 1), (1, 0)):
            with pytest.raises(ValueError):
                watch.open_scope(*bad)
        with pytest.raises(TypeError):
            watch.open_scope(1, 1, 3)  # type: ignore[arg-type]

    asyncio.run(main())


async def bare() -> None:
    await asyncio.sleep(0)


async def tasks_under_guard() -> None:
    """Clean and leaking scopes, tasks past the factory, a parent's name, a decoded creation stack."""
    found: list[object] = []
    async with no_task_leaks(action=found.extend, grace_period=0, enable_creation_tracking=True):
        await asyncio.gather(*(asyncio.create_task(bare()) for _ in range(5)), asyncio.Task(bare()))
        held = [asyncio.create_task(asyncio.sleep(60)), asyncio.Task(asyncio.sleep(60), name="direct")]
    assert len(found) == 2 and str(found[0])
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def all_that_can_end_badly() -> None:
    kinds = [DestroyedTaskKind(), TaskExceptionKind(), CoroutineKind()]
    async with LeakGuard("guard", kinds, lambda found: None, grace_period=0):
        await asyncio.sleep(0)


PROGRAMS = {
    "tasks": (lambda: asyncio.run(tasks_under_guard()), 100),
    "ends": (lambda: asyncio.run(all_that_can_end_badly()), 100),
    "bare": (lambda: asyncio.run(bare()), 200),
    "raise": (lambda: asyncio.run(blocks_and_raises()), 200),
    "decorator": (lambda: asyncio.run(decorated()), 200),
    "core": (nested_callback_and_bad_input, 20),
    "stack": (lambda: _core.stack_of(threading.get_native_id()), 200),
}
SLOW = ("raise", "tasks")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.slow) if one in SLOW else one for one in PROGRAMS]
)
def test_no_drift(name: str) -> None:
    program, repeats = PROGRAMS[name]
    for _ in range(1500):
        PROGRAMS["decorator"][0]()  # fills the free lists that every program draws on
    seen = array("q", [0] * (len(WHAT) * ROUNDS))
    for number in range(-WARM_UPS, ROUNDS):
        for _ in range(repeats):
            program()
        measure(seen, max(number, 0) * len(WHAT))
    for column, what in enumerate(WHAT):
        values = seen[column :: len(WHAT)]
        steps = [after - before for before, after in zip(values, values[1:], strict=False)]
        assert min(steps) < repeats / 2, f"{name}: {what} drifted by {steps} in rounds of {repeats}"
        if what in ("fds", "threads", "python threads"):
            assert min(steps) <= 0, f"{name}: {what} drifted by {steps} in rounds of {repeats}"
