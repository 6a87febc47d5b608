"""Programs made of real libraries, which end what they begin, are clean under ``no_leaks``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from loopwatch import LeakErrorGroup, no_leaks

Run = Callable[[Coroutine[Any, Any, None]], None]
REQUESTS, AT_ONCE = 120, 12


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "asyncio":
        return asyncio.run
    uvloop = pytest.importorskip("uvloop")
    if not hasattr(uvloop, "run"):
        pytest.skip("this uvloop has no run()")
    return uvloop.run  # type: ignore[no-any-return]


async def many(ask: Callable[[int], Awaitable[None]]) -> None:
    """Ask REQUESTS times, AT_ONCE at once."""
    numbers = iter(range(REQUESTS))

    async def worker() -> None:
        for number in numbers:
            await ask(number)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def aiohttp_service() -> None:
    web, aiohttp = pytest.importorskip("aiohttp.web"), pytest.importorskip("aiohttp")

    async def hello(request: Any) -> Any:
        await asyncio.sleep(0)
        return web.Response(text=request.match_info["name"])

    app = web.Application()
    app.router.add_get("/{name}", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as session:

        async def ask(number: int) -> None:
            async with session.get(f"{url}/{number}") as response:
                assert await response.text() == str(number)

        await many(ask)
    await runner.cleanup()


async def fastapi_service_and_httpx() -> None:
    fastapi, uvicorn = pytest.importorskip("fastapi"), pytest.importorskip("uvicorn")
    httpx = pytest.importorskip("httpx")
    app = fastapi.FastAPI()

    @app.get("/plain/{number}")
    def plain(number: int) -> int:  # in a thread of anyio's
        return number

    @app.get("/async/{number}")
    async def in_loop(number: int) -> int:
        await asyncio.sleep(0)
        return number

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    serving = asyncio.create_task(server._serve())  # serve() would take the signals of the test run
    while not server.started:
        assert not serving.done()
        await asyncio.sleep(0.001)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:

        async def ask(number: int) -> None:
            answer = await client.get(f"/{'plain' if number % 2 else 'async'}/{number}")
            assert answer.json() == number

        await many(ask)
    server.should_exit = True
    await serving


async def sqlite() -> None:
    aiosqlite = pytest.importorskip("aiosqlite")
    async with aiosqlite.connect(":memory:") as connection:
        await connection.execute("CREATE TABLE t (x)")
        await connection.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(REQUESTS)])
        async with connection.execute("SELECT x FROM t ORDER BY x") as cursor:
            assert [row[0] async for row in cursor] == list(range(REQUESTS))


async def sockets_of_the_web() -> None:
    client, server = (pytest.importorskip(f"websockets.asyncio.{end}") for end in ("client", "server"))

    async def echo(connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    async with server.serve(echo, "127.0.0.1", 0) as serving:
        port = serving.sockets[0].getsockname()[1]

        async def talk(first: int) -> None:
            async with client.connect(f"ws://127.0.0.1:{port}", proxy=None) as connection:
                for number in range(first, first + 10):
                    await connection.send(str(number))
                    assert await connection.recv() == str(number)

        await asyncio.gather(*(talk(10 * number) for number in range(AT_ONCE)))


async def task_groups() -> None:
    anyio = pytest.importorskip("anyio")
    send, receive = anyio.create_memory_object_stream(5)
    seen = []

    async def produce(first: int) -> None:
        async with send.clone() as stream:
            for number in range(first, first + 10):
                await stream.send(await anyio.to_thread.run_sync(abs, -number))

    async def consume() -> None:
        async for number in receive:
            seen.append(number)

    async with receive, anyio.create_task_group() as consumers:
        consumers.start_soon(consume)
        async with send, anyio.create_task_group() as producers:
            for number in range(4):
                producers.start_soon(produce, 10 * number)
    with anyio.move_on_after(0.01):
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
    assert sorted(seen) == list(range(40))


async def queue_and_streams() -> None:
    """The standard library alone: a server of streams, workers of a queue, a subprocess, threads, timeouts."""

    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(upper, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def ask(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello %d\n" % number)
        assert await asyncio.wait_for(reader.readline(), 30) == b"HELLO %d\n" % number
        writer.close()
        await writer.wait_closed()

    async with server:
        await many(ask)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(1)", stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0] == b"1\n"
    assert await asyncio.gather(*(asyncio.to_thread(abs, -number) for number in range(10))) == list(range(10))


PROGRAMS = [
    aiohttp_service,
    fastapi_service_and_httpx,
    sqlite,
    sockets_of_the_web,
    task_groups,
    queue_and_streams,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_real_program_is_clean(run: Run, program: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.sleep(0)
        # a machine that is busy lets what a peer closed linger for longer than the default
        async with no_leaks(action="raise", blocking=False, grace_period=5):
            await program()

    run(main())


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_one_task_forgotten_in_it_is_found(run: Run, program: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with pytest.raises(LeakErrorGroup) as caught:
            async with no_leaks(action="raise", blocking=False, grace_period=1):
                await program()
                kept = asyncio.create_task(asyncio.sleep(600), name="forgotten")
        assert [leak.name for error in caught.value.exceptions for leak in error.leaks] == ["forgotten"]
        kept.cancel()

    run(main())
