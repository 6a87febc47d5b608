"""Blocks name the task and its coroutine, on every kind of loop."""

import asyncio
import functools
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from loopwatch import _core, no_event_loop_blocking


def watch() -> Any:
    return no_event_loop_blocking(action=lambda found: None, threshold=0.05)


async def blocks() -> None:
    time.sleep(0.1)


class Service:
    async def handle(self) -> None:
        await asyncio.sleep(0)
        time.sleep(0.1)


def names(guard: Any) -> set[tuple[str | None, str | None]]:
    return {(part.task, part.callback) for block in guard.blocks + guard.stalls for part in block.segments}


async def with_asyncio_tasks() -> None:
    async with watch() as guard:
        await asyncio.sleep(0)
        named = asyncio.create_task(blocks(), name="the named one")
        await named
        plain = asyncio.create_task(Service().handle())
        await plain
        time.sleep(0.1)
        await asyncio.sleep(0)
    this = asyncio.current_task()
    assert this is not None
    found = names(guard)
    assert ("the named one", "blocks") in found
    assert (plain.get_name(), "Service.handle") in found
    assert (this.get_name(), "with_asyncio_tasks") in found


def uvloops() -> Any:
    return pytest.importorskip("uvloop").new_event_loop()


@pytest.mark.parametrize("factory", [asyncio.SelectorEventLoop, uvloops])
def test_asyncio_tasks(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(with_asyncio_tasks())


def test_c_functions_that_the_loop_calls_by_itself_have_names() -> None:
    class Long(list):  # type: ignore[type-arg]
        pass

    numbers = Long(range(3_000_000))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with watch() as guard:
            await asyncio.sleep(0)
            loop.call_soon(time.sleep, 0.1)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            loop.call_soon(functools.partial(numbers.extend, range(8_000_000)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            loop.call_soon(dict.fromkeys, range(6_000_000))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert {(None, "time.sleep"), (None, "Long.extend"), (None, "dict.fromkeys")} <= names(guard)


def test_a_task_of_a_class_made_from_task_has_its_name() -> None:
    class Special(asyncio.Task):  # type: ignore[type-arg]
        pass

    async def woken() -> None:
        await asyncio.sleep(0.01)
        time.sleep(0.1)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(lambda loop, coro, **more: Special(coro, loop=loop, **more))
        async with watch() as guard:
            await asyncio.sleep(0)
            await asyncio.create_task(woken(), name="special")
        assert [block.task for block in guard.blocks + guard.stalls] == ["special"], names(guard)

    asyncio.run(main())


def test_a_plain_callback_of_uvloop_has_no_task() -> None:
    async def main() -> None:
        async with watch() as guard:
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(time.sleep, 0.1)
            await asyncio.sleep(0.01)
        assert (None, None) in names(guard)

    with asyncio.Runner(loop_factory=uvloops) as runner:
        runner.run(main())


def test_what_uvloop_calls_has_the_name_of_its_function() -> None:
    class Reader(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            time.sleep(0.1)

    def soon() -> None:
        time.sleep(0.1)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        transport, _ = await loop.create_connection(Reader, sock=ours)
        async with watch() as guard:
            theirs.send(b"x")
            await asyncio.sleep(0.02)
            loop.call_soon(soon)
            await asyncio.sleep(0.02)
            time.sleep(0.1)
            await asyncio.sleep(0)
        transport.close()
        theirs.close()
        found = {block.callback for block in guard.blocks + guard.stalls}
        assert found == {Reader.data_received.__qualname__, soon.__qualname__, main.__qualname__}

    pytest.importorskip("uvloop").run(main())


def test_tasks_of_uvloops_in_several_threads_are_not_mixed_up() -> None:
    uvloop = pytest.importorskip("uvloop")
    import threading

    found: dict[int, set[Any]] = {}
    together = threading.Barrier(4)

    async def main(number: int) -> None:
        async with watch() as guard:
            await asyncio.sleep(0)
            together.wait()
            await asyncio.create_task(blocks(), name=f"task of {number}")
        found[number] = names(guard)

    def run(number: int) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(number))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        tasks = {task for task, _ in found[number] if task and task.startswith("task of")}
        assert tasks == {f"task of {number}"}, found


def test_tasks_of_a_loop_without_a_probe() -> None:
    async def main() -> None:
        found: list[Any] = []
        scope = _core.Watch(asyncio.get_running_loop(), "generic").open_scope(50_000_000, 5_000_000, found.append)
        await asyncio.sleep(0.02)
        await asyncio.create_task(blocks(), name="seen by the watchdog")
        await asyncio.sleep(0.05)
        found += scope.close()
        segments = [part for raw in found for part in raw["segments"]]
        assert ("seen by the watchdog", "blocks") in {(part["task"], part["callback"]) for part in segments}

    asyncio.run(main())


def test_trio_tasks() -> None:
    trio = pytest.importorskip("trio")

    async def handle() -> None:
        time.sleep(0.1)

    async def main() -> None:
        async with watch() as guard:
            await trio.sleep(0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(blocks, name="the named one")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(handle)
            time.sleep(0.1)
            await trio.sleep(0)
        found = names(guard)
        assert ("the named one", "blocks") in found
        assert any(task.endswith("handle") and callback.endswith("handle") for task, callback in found if task)
        assert (trio.lowlevel.current_task().name, "test_trio_tasks.<locals>.main") in found

    trio.run(main)
