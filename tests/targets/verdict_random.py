"""Random programs of tasks that share futures, locks, queues and each other, run to their end.

``run(seed)`` asks half-way which tasks are stuck and goes on: timers fire, whatever a global holds is used, garbage is
collected.  A task that was called stuck and then moved, or ended, is a false proof.
"""

import asyncio
import gc
import random
import weakref
from typing import Any

from loopwatch import _core

LOCKS = (asyncio.Lock, asyncio.Semaphore)


def make(rng: random.Random) -> Any:
    kind = rng.choice(["future", "event", "queue", "lock", "semaphore", "condition"])
    return {
        "future": asyncio.get_running_loop().create_future,
        "event": asyncio.Event,
        "queue": asyncio.Queue,
        "lock": asyncio.Lock,
        "semaphore": asyncio.Semaphore,
        "condition": asyncio.Condition,
    }[kind]()


def wake(thing: Any) -> None:
    if isinstance(thing, weakref.ref):
        thing = thing()
    if isinstance(thing, asyncio.Task):
        thing.cancel()
    elif isinstance(thing, asyncio.Future):
        if not thing.done():
            thing.set_result(None)
    elif isinstance(thing, asyncio.Event):
        thing.set()
    elif isinstance(thing, asyncio.Queue):
        thing.put_nowait(1)
    elif isinstance(thing, asyncio.Lock):
        if thing.locked():
            thing.release()
    elif isinstance(thing, asyncio.Semaphore):
        thing.release()


async def wait_for(thing: Any, then: float) -> None:
    if isinstance(thing, weakref.ref):
        thing = thing()
    if thing is asyncio.current_task() or thing is None:
        return
    if isinstance(thing, asyncio.Task):
        await asyncio.wait([thing])
    elif isinstance(thing, asyncio.Future):
        await asyncio.wait([thing]) if then > 0.02 else await thing
    elif isinstance(thing, asyncio.Event):
        await thing.wait()
    elif isinstance(thing, asyncio.Queue):
        await thing.get()
    elif isinstance(thing, asyncio.Condition):
        async with thing:
            await thing.wait()
    else:
        async with thing:
            await asyncio.sleep(then)


async def generated(thing: Any, then: float) -> Any:
    await wait_for(thing, then)
    yield thing


class Finalized:
    """Garbage at once; wakes something when the collector comes."""

    def __init__(self, thing: Any) -> None:
        self.thing, self.me = thing, self

    def __del__(self) -> None:
        wake(self.thing)


async def actor(steps: list[Any], moved: list[int], number: int) -> None:
    loop = asyncio.get_running_loop()
    for verb, thing, other, delay in steps:
        moved[number] += 1
        if verb == "wait":
            await wait_for(thing, delay)
        elif verb == "wake":
            wake(thing)
        elif verb == "sleep":
            await asyncio.sleep(delay)
        elif verb == "timeout":
            try:
                async with asyncio.timeout(delay):
                    await wait_for(thing, delay)
            except TimeoutError:
                pass
        elif verb == "later":
            loop.call_later(delay, wake, thing)
        elif verb == "hold" and isinstance(thing, LOCKS):
            async with thing:
                await wait_for(other, delay)
        elif verb == "gather":
            await asyncio.gather(wait_for(thing, delay), wait_for(other, delay), return_exceptions=True)
        elif verb == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(wait_for(thing, delay))
                group.create_task(wait_for(other, delay))
        elif verb == "generator":
            async for _ in generated(thing, delay):
                pass
        elif verb == "finalizer":
            Finalized(other)
    moved[number] += 1


VERBS = (
    ["wait"] * 6
    + ["wake"] * 2
    + ["sleep", "timeout", "later", "hold", "hold", "gather", "group", "generator", "finalizer"]
)


async def _program(seed: int) -> tuple[int, list[str]]:
    rng = random.Random(seed)
    things = [make(rng) for _ in range(rng.randint(4, 12))]
    keep = rng.sample(things, rng.randint(0, 1 + len(things) // 4))
    keep += [weakref.ref(thing) for thing in rng.sample(things, rng.randint(0, 2))]
    tasks: list[asyncio.Task[None]] = []
    moved = [0] * 20
    for number in range(rng.randint(4, 20)):
        usable = things + tasks[-3:]
        mine = [rng.choice(usable) for _ in range(3)]
        mine += [weakref.ref(rng.choice(usable))] if rng.random() < 0.1 else []
        delay = rng.choice([0.005, 0.02, 0.05])
        steps = [(rng.choice(VERBS), rng.choice(mine), rng.choice(mine), delay) for _ in range(rng.randint(1, 5))]
        tasks.append(asyncio.get_running_loop().create_task(actor(steps, moved, number), name=str(number)))
        del mine, steps, usable
    del things
    await asyncio.sleep(rng.choice([0, 0.01, 0.03]))
    proved = [
        (int(task.get_name()), reason)
        for task, reason in _core.stuck_tasks(asyncio.get_running_loop())
        if task.get_name().isdigit()
    ]
    before = list(moved)
    for thing in keep:
        await asyncio.sleep(0.01)
        wake(thing)
        del thing
    gc.collect()
    await asyncio.sleep(0.1)
    false = [
        f"seed {seed}: task {n} was proved stuck ({why}) and moved"
        for n, why in proved
        if moved[n] != before[n] or tasks[n].done()
    ]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=1)
    return len(proved), false


def run(seed: int) -> tuple[int, list[str]]:
    """How many tasks were proved stuck, and the proofs that were false."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    try:
        return loop.run_until_complete(_program(seed))
    finally:
        loop.close()


if __name__ == "__main__":
    import sys

    total, first, last = 0, int(sys.argv[1]), int(sys.argv[2])
    for seed in range(first, last):
        count, false = run(seed)
        total += count
        if false:
            print("\n".join(false), flush=True)
    print(f"{last - first} programs, {total} proofs")
