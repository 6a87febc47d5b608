"""Programs that are hard on task records: ``python task_storms.py NAME`` prints ``done`` and exits with 0."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from typing import Any

from loopwatch import _core
from loopwatch.leaks.tasks import no_task_leaks


async def nothing() -> None: ...


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def quietly(task: Any) -> Any:
    task._log_destroy_pending = False
    return task


def collection_during_creation() -> None:
    async def main() -> None:
        gc.set_threshold(1, 1, 1)
        async with no_task_leaks(action="raise"):
            for _ in range(300):
                cycle: list[Any] = [quietly(asyncio.create_task(forever()))]
                cycle.append(cycle)
                await asyncio.gather(*(asyncio.create_task(nothing()) for _ in range(3)))
            del cycle
            gc.set_threshold(700, 10, 10)
            gc.collect()

    asyncio.run(main())


def finalizers_that_create_tasks() -> None:
    made: list[Any] = []

    class Bomb:
        def __del__(self) -> None:
            if len(made) < 200:
                made.append(asyncio.get_running_loop().create_task(nothing()))
                made.append(asyncio.Task(nothing()))

    async def holds(bomb: Bomb) -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        async with no_task_leaks(action="raise", scope="loop"):
            for _ in range(50):
                task = quietly(asyncio.create_task(holds(Bomb())))
                weakref.finalize(task, lambda: made.append(asyncio.Task(nothing())))
                await asyncio.sleep(0)
                del task
                gc.collect()
            await asyncio.sleep(0.01)
        assert made

    asyncio.run(main())


def loop_closed_with_tasks_pending() -> None:
    for _ in range(20):
        loop = asyncio.new_event_loop()

        async def main() -> list[Any]:
            await no_task_leaks().__aenter__()  # and never left
            return [quietly(asyncio.create_task(forever())) for _ in range(20)]

        loop.run_until_complete(main())
        loop.close()
        del loop
        gc.collect()


def records_at_exit() -> None:
    """The interpreter ends with a guard open, tasks pending and weak references to them."""

    async def main() -> None:
        guard = no_task_leaks()
        await guard.__aenter__()
        for number in range(100):
            task = quietly(asyncio.create_task(forever()))
            references.append(weakref.ref(task, lambda ref: None))
            tasks.append((task, _core.task_record(task), guard))
            if number % 2:
                tasks.append(tasks)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    globals()["loop"] = loop


tasks: list[Any] = []
references: list[Any] = []


def many() -> None:
    async def main() -> None:
        found: list[Any] = []
        async with no_task_leaks(action=lambda leaks: found.append(len(leaks)), grace_period=0):
            held = [asyncio.create_task(nothing()) for _ in range(1_000_000)]
            await asyncio.sleep(0)
        assert found == [], found
        del held
        gc.collect()

    asyncio.run(main())


def threads() -> None:
    def thread() -> None:
        async def main() -> None:
            for _ in range(60):
                async with no_task_leaks(action="raise"):
                    await asyncio.gather(*(asyncio.create_task(nothing()) for _ in range(20)), asyncio.Task(nothing()))

        asyncio.run(main())

    sys.setswitchinterval(1e-5)
    running = [threading.Thread(target=thread) for _ in range(6)]
    for one in running:
        one.start()
    for one in running:
        one.join()


def odd_factories() -> None:
    class Opaque:
        __slots__ = ("task",)

    loop = asyncio.new_event_loop()
    one = quietly(asyncio.Task(forever(), loop=loop))

    async def main() -> None:
        running = asyncio.get_running_loop()
        for odd in (lambda *_, **__: None, lambda *_, **__: Opaque(), lambda *_, **__: one, lambda *_, **__: 3):
            running.set_task_factory(odd)
            async with no_task_leaks(action="raise", grace_period=0):
                for _ in range(3):
                    coroutine = nothing()
                    try:
                        made = running.create_task(coroutine)
                        del made
                    except AttributeError:
                        pass  # asyncio itself wants to name it
                    coroutine.close()
            running.set_task_factory(None)

    asyncio.run(main())
    loop.close()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    print("done", flush=True)
