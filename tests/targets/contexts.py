"""Where a fault can happen: the ways in which a loop comes to run a function.

Each context is a coroutine function that has ``call`` run once, on the loop it is awaited on, and returns after it.
``run_in`` runs it, in the thread that the context asks for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

Call = Callable[[], object]
T = TypeVar("T")
LoopFactory = Callable[[], asyncio.AbstractEventLoop] | None
DEPTH = 300


async def coroutine(call: Call) -> None:
    call()


async def nested(call: Call) -> None:
    async def inner() -> None:
        def innermost() -> None:
            call()

        innermost()

    await inner()


async def call_soon(call: Call) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def callback() -> None:
        call()
        done.set()

    loop.call_soon(callback)
    await done.wait()


async def call_later(call: Call) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def timer() -> None:
        call()
        done.set()

    loop.call_later(0.005, timer)
    await done.wait()


async def other_task(call: Call) -> None:
    async def work() -> None:
        await asyncio.sleep(0.001)
        call()

    await asyncio.create_task(work(), name="worker-of-the-test")


async def async_generator(call: Call) -> None:
    async def produce() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0.001)
        call()
        yield 2

    async for _ in produce():
        pass


async def deep_stack(call: Call) -> None:
    def recurse(depth: int) -> None:
        if depth:
            recurse(depth - 1)
        else:
            call()

    recurse(DEPTH)


CONTEXTS: dict[str, Callable[[Call], Awaitable[None]]] = {
    f.__name__: f for f in (coroutine, nested, call_soon, call_later, other_task, async_generator, deep_stack)
}
CONTEXTS["thread_loop"] = coroutine


def run_here(main: Coroutine[Any, Any, T], make_loop: LoopFactory = None) -> T:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        return runner.run(main)


def run_in_thread(main: Coroutine[Any, Any, T], make_loop: LoopFactory = None) -> T:
    """Run the coroutine on a loop of its own in a thread of its own."""
    outcome: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(run_here(main, make_loop))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="loop-of-the-test")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]


def run_in(context: str, main: Coroutine[Any, Any, T], make_loop: LoopFactory = None) -> T:
    """Run the coroutine on a new loop, in the thread that the context asks for."""
    return (run_in_thread if context == "thread_loop" else run_here)(main, make_loop)
