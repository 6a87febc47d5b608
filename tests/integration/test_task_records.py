"""A task's record is a weak reference among the program's own: used again and again, it gets in the way of none."""

import asyncio
import gc
import random
import weakref
from typing import Any

import pytest

from loopwatch import _core, no_task_leaks


async def nothing() -> None:
    pass


async def forever(event: asyncio.Event) -> None:
    await event.wait()


class Reference(weakref.ref):  # type: ignore[type-arg]
    """A weak reference of a class of the program's."""


def test_weak_references_of_the_program_work_beside_it() -> None:
    random.seed(7)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(3000):
            called: list[Any] = []
            task = loop.create_task(nothing())
            kinds = random.choices("plain plain callback callback class proxy".split(), k=random.randrange(5))
            mine: list[Any] = []
            for kind in kinds:
                if kind == "plain":
                    mine.append(weakref.ref(task))
                elif kind == "callback":
                    mine.append(weakref.ref(task, called.append))
                elif kind == "class":
                    mine.append(Reference(task))
                else:
                    mine.append(weakref.proxy(task))
            if mine and random.random() < 0.3:
                mine.pop(random.randrange(len(mine)))  # one goes before the task does
            refs = [ref for ref in mine if isinstance(ref, weakref.ref)]
            expected = {id(ref) for ref in refs if ref.__callback__ is not None}
            assert all(ref() is task for ref in refs)
            assert _core.task_record(task)() is task
            assert len(set(map(id, weakref.getweakrefs(task)))) == weakref.getweakrefcount(task)
            await task
            del task
            await asyncio.sleep(0)  # the callback that woke us held it
            assert [ref() for ref in refs] == [None] * len(refs)
            assert {id(ref) for ref in called} == {id(ref) for ref in refs if id(ref) in expected}
            if random.random() < 0.01:
                gc.collect()

    async def guarded() -> None:
        async with no_task_leaks(action="raise"):
            await main()

    asyncio.run(guarded())


def test_a_record_that_somebody_keeps_is_not_used_again() -> None:
    async def main() -> None:
        async with no_task_leaks(action="raise"):
            task = asyncio.create_task(nothing(), name="kept")
            record = _core.task_record(task)
            frames, seq = record.frames(), record.seq
            await task
            del task
            for _ in range(50):
                await asyncio.create_task(nothing())
            assert record() is None
            assert (record.frames(), record.seq) == (frames, seq)

    asyncio.run(main())


@pytest.mark.parametrize("guards", [1, 2])
def test_each_task_has_its_own_record(guards: int) -> None:
    """Hundreds at once, in waves, ended in random order: each record tells its own task's name, place and age."""
    random.seed(11)

    async def main() -> None:
        event = asyncio.Event()
        seen: set[int] = set()
        for wave in range(20):
            tasks = [asyncio.create_task(forever(event), name=f"{wave}-{i}") for i in range(random.randrange(1, 60))]
            records = [_core.task_record(task) for task in tasks]
            assert [record() for record in records] == tasks
            assert not seen & {record.seq for record in records}
            seen |= {record.seq for record in records}
            makers = {record.frames()[-1][1].removesuffix(".<locals>.<listcomp>") for record in records}
            assert makers == {"test_each_task_has_its_own_record.<locals>.main"}
            del records
            random.shuffle(tasks)
            while tasks:
                task = tasks.pop()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def guarded(depth: int) -> None:
        async with no_task_leaks(action="raise"):
            await (guarded(depth - 1) if depth > 1 else main())

    asyncio.run(guarded(guards))
