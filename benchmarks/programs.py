"""The five programs of the overhead benchmark: they do nothing but what an event loop does, so that its cost shows.

Each is a coroutine function that does so many units of work on the running loop and returns the seconds that took
(set-up of servers and clients left out).  The echo programs keep server and client on the same loop, and have every
client wait for its answer before it sends again: no thread, no queue, nothing that makes one run unlike the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter

MESSAGE = b"x" * 64


async def _step(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def one_task(units: int) -> float:
    """One task that yields: a loop iteration for each unit."""
    began = perf_counter()
    await _step(units)
    return perf_counter() - began


async def fifty_tasks(units: int) -> float:
    """Fifty tasks that yield: fifty units an iteration."""
    began = perf_counter()
    await asyncio.gather(*(_step(units // 50) for _ in range(50)))
    return perf_counter() - began


async def create_tasks(units: int) -> float:
    """A task created and awaited for each unit."""

    async def nothing() -> None:
        pass

    create = asyncio.get_running_loop().create_task
    began = perf_counter()
    for _ in range(units):
        await create(nothing())
    return perf_counter() - began


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]


class _Client(asyncio.Protocol):
    """Sends again whenever it was answered, until it has had so many answers."""

    def __init__(self) -> None:
        self.left = 0
        self.done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def start(self, messages: int) -> asyncio.Future[None]:
        self.left = messages
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(MESSAGE)  # type: ignore[attr-defined]
        return self.done

    def data_received(self, data: bytes) -> None:
        self.left -= 1
        if self.left:
            self.transport.write(MESSAGE)  # type: ignore[attr-defined]
        elif self.done is not None:
            self.done.set_result(None)


async def _echo(units: int, connections: int) -> float:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients = [(await loop.create_connection(_Client, "127.0.0.1", port))[1] for _ in range(connections)]
    each = max(1, units // connections)
    began = perf_counter()
    await asyncio.gather(*(client.start(each) for client in clients))
    taken = perf_counter() - began
    for client in clients:
        client.transport.close()
    server.close()
    await asyncio.sleep(0.01)
    return taken


async def echo_1(units: int) -> float:
    """TCP echo over one connection: a message there and back for each unit."""
    return await _echo(units, 1)


async def echo_50(units: int) -> float:
    """TCP echo over fifty connections at once."""
    return await _echo(units, 50)


PROGRAMS: dict[str, Callable[[int], Awaitable[float]]] = {
    "one task stepping": one_task,
    "50 tasks stepping": fifty_tasks,
    "create and await tasks": create_tasks,
    "TCP echo, 1 connection": echo_1,
    "TCP echo, 50 connections": echo_50,
}
