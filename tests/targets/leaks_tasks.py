"""Shapes of task leaks and of what only looks like one, each with the truth beside it.

``SHAPES`` maps a name to an async function that is run under a guard, and to what it leaves behind: for each task its
name and the marks of two lines of this file, that which created it and the program's innermost one at which it waits.
A mark is a comment ``# mark: NAME`` at the end of a line; none: a line of a library.  An empty list: nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

Left = list[tuple[str, str, str]]
SHAPES: dict[str, tuple[Callable[[], Awaitable[object]], Left]] = {}
kept: list[object] = []  # what a program would hold on to; emptied by the test


def leaves(*left: tuple[str, str, str]) -> Callable[[Callable[[], Awaitable[object]]], Callable[[], Awaitable[object]]]:
    def register(function: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
        SHAPES[function.__name__] = (function, list(left))
        return function

    return register


def line_of(mark: str) -> int:
    if not mark:
        return 0
    for number, line in enumerate(Path(__file__).read_text(encoding="utf-8").splitlines(), 1):
        if re.search(rf"# mark: {re.escape(mark)}$", line):
            return number
    raise LookupError(mark)


async def forever() -> None:
    await asyncio.sleep(3600)  # mark: forever


async def soon() -> None:
    await asyncio.sleep(0.005)


# ---- leaks ----


@leaves(("plain", "plain", "forever"))
async def plain() -> None:
    kept.append(asyncio.create_task(forever(), name="plain"))  # mark: plain


@leaves(("by-loop", "by-loop", "forever"))
async def by_loop() -> None:
    kept.append(asyncio.get_running_loop().create_task(forever(), name="by-loop"))  # mark: by-loop


@leaves(("by-ensure", "by-ensure", "forever"))
async def by_ensure_future() -> None:
    task = asyncio.ensure_future(forever())  # mark: by-ensure
    task.set_name("by-ensure")
    kept.append(task)


@leaves(("grandchild", "grandchild", "forever"))
async def grandchild() -> None:
    async def child() -> None:
        kept.append(asyncio.create_task(forever(), name="grandchild"))  # mark: grandchild

    await asyncio.create_task(child())


@leaves(("chained", "chained", "innermost"))
async def await_chain() -> None:
    async def inner() -> None:
        await asyncio.Event().wait()  # mark: innermost

    async def middle() -> None:
        await inner()

    async def outer() -> None:
        await middle()

    kept.append(asyncio.create_task(outer(), name="chained"))  # mark: chained


@leaves(("in-generator", "in-generator", "generator-waits"))
async def through_async_generator() -> None:
    async def numbers():
        yield 1
        await asyncio.get_running_loop().create_future()  # mark: generator-waits

    async def consumer() -> None:
        async for _ in numbers():
            pass

    kept.append(asyncio.create_task(consumer(), name="in-generator"))  # mark: in-generator


@leaves(
    ("worker-0", "worker", "worker-waits"),
    ("worker-1", "worker", "worker-waits"),
    ("worker-2", "worker", "worker-waits"),
)
async def queue_workers() -> None:
    """Seed 001's first pattern: workers that nobody cancels when the queue is done."""
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def worker() -> None:
        while True:
            await queue.get()  # mark: worker-waits
            queue.task_done()

    for number in range(3):
        kept.append(asyncio.create_task(worker(), name=f"worker-{number}"))  # mark: worker
    for number in range(20):
        await queue.put(number)
    await queue.join()


@leaves(("monitor", "monitor", "monitor-waits"))
async def uncancelled_monitor() -> None:
    async def monitor() -> None:
        while True:
            await asyncio.sleep(2)  # mark: monitor-waits

    kept.append(asyncio.create_task(monitor(), name="monitor"))  # mark: monitor
    await asyncio.gather(soon(), soon())


@leaves(("stored", "stored", "forever"))
async def global_storage() -> None:
    """Seed 001's pitfall: tasks kept in a global list; those that ended are no leak."""
    for _ in range(3):
        kept.append(asyncio.create_task(soon()))
    kept.append(asyncio.create_task(forever(), name="stored"))  # mark: stored


@leaves(("stubborn", "stubborn", "stubborn-waits"))
async def will_not_die() -> None:
    async def stubborn() -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)  # mark: stubborn-waits

    task = asyncio.create_task(stubborn(), name="stubborn")  # mark: stubborn
    kept.append(task)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)


@leaves(("lost-race", "lost-race", "forever"))
async def wait_first_completed() -> None:
    done, _pending = await asyncio.wait(
        [
            asyncio.create_task(soon()),
            asyncio.create_task(forever(), name="lost-race"),  # mark: lost-race
        ],
        return_when=asyncio.FIRST_COMPLETED,
    )
    assert len(done) == 1


@leaves(("shielded", "shielded", "forever"))
async def shielded_from_timeout() -> None:
    task = asyncio.create_task(forever(), name="shielded")  # mark: shielded
    kept.append(task)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.shield(task), 0.005)


@leaves(("on-call", "on-call", "forever"))
async def from_a_callback() -> None:
    called = asyncio.Event()

    def callback() -> None:
        kept.append(asyncio.create_task(forever(), name="on-call"))  # mark: on-call
        called.set()

    asyncio.get_running_loop().call_later(0.001, callback)
    await called.wait()


async def from_a_thread() -> None:
    loop = asyncio.get_running_loop()

    def callback() -> None:
        kept.append(loop.create_task(forever(), name="from-thread"))  # mark: from-thread

    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(callback,))
    thread.start()
    await loop.run_in_executor(None, thread.join)
    await asyncio.sleep(0)


@leaves(("handler", "", "handler-waits"))
async def server_handler() -> None:
    """A server whose handler was left running: begun under the guard, so its handlers are as well."""
    accepted = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        task.set_name("handler")
        kept.append(task)
        accepted.set()
        try:
            await asyncio.sleep(3600)  # mark: handler-waits
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    _reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await accepted.wait()
    server.close()
    writer.close()
    await writer.wait_closed()


# ---- no leaks ----


@leaves()
async def nothing() -> None: ...


@leaves()
async def awaited() -> None:
    await asyncio.create_task(soon())


@leaves()
async def ends_within_grace() -> None:
    kept.append(asyncio.create_task(asyncio.sleep(0.03)))


@leaves()
async def cancelled_and_awaited() -> None:
    task = asyncio.create_task(forever())
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@leaves()
async def cancelled_only() -> None:
    task = asyncio.create_task(forever())
    await asyncio.sleep(0)
    task.cancel()


@leaves()
async def cancelled_before_it_began() -> None:
    asyncio.create_task(forever()).cancel()


@leaves()
async def slow_cleanup() -> None:
    async def worker() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.03)

    task = asyncio.create_task(worker())
    await asyncio.sleep(0)
    task.cancel()


@leaves()
async def task_group() -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(soon())


@leaves()
async def failing_task_group() -> None:
    async def fails() -> None:
        raise ValueError("on purpose")

    with contextlib.suppress(BaseExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(forever())
            group.create_task(fails())


@leaves()
async def gathered() -> None:
    await asyncio.gather(*(soon() for _ in range(10)))


@leaves()
async def timed_out() -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(forever(), 0.005)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.005):
            await forever()


@leaves()
async def executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, sum, [1, 2])
    await asyncio.to_thread(sum, [1, 2])


@leaves()
async def workers_stopped() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def worker() -> None:
        while True:
            await queue.get()
            queue.task_done()

    workers = [asyncio.create_task(worker()) for _ in range(3)]
    for number in range(20):
        queue.put_nowait(number)
    await queue.join()
    for task in workers:
        task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


@leaves()
async def clean_server() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    for _ in range(3):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        writer.close()
        await writer.wait_closed()
    server.close()
    await server.wait_closed()


@leaves()
async def connection_pool() -> None:
    """Seed 001's manager: keeps tasks while they run, and cancels what is left."""
    tasks: set[asyncio.Task[None]] = set()
    for _ in range(5):
        task = asyncio.create_task(forever())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.sleep(0)
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@leaves()
async def subprocess() -> None:
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()


@leaves()
async def rearming() -> None:
    """A chain in which each task creates the next: all but the last are gone, and that one ends."""

    async def link(left: int) -> None:
        await asyncio.sleep(0)
        if left:
            asyncio.create_task(link(left - 1))

    await asyncio.create_task(link(50))
    await asyncio.sleep(0.01)
