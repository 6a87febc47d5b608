"""Findings name the route and the id of the request: truth from small services of each framework."""

import asyncio
import contextvars
import gc
import json
import pickle
import re
import sys
import time
from typing import Any

import pytest

import loopwatch
from loopwatch import _core, no_event_loop_blocking, no_task_leaks, requests
from loopwatch.integrations.asgi import LoopwatchMiddleware
from loopwatch.json_report import _block

httpx = pytest.importorskip("httpx")
starlette_applications = pytest.importorskip("starlette.applications")
from starlette.responses import PlainTextResponse  # noqa: E402
from starlette.routing import Mount, Route  # noqa: E402

exact = pytest.mark.skipif(_core.LAYOUT != "exact", reason="samples read requests from outside")
kept: set[Any] = set()


async def asgi_get(app: Any, *paths: str, headers: dict[str, str] | None = None) -> None:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        answers = await asyncio.gather(*[client.get(path, headers=headers) for path in paths])
    assert [answer.status_code for answer in answers] == [200] * len(paths)


async def slow(request: Any) -> PlainTextResponse:
    await asyncio.sleep(0)
    time.sleep(0.15)
    return PlainTextResponse("slow")


async def quick(request: Any) -> PlainTextResponse:
    await asyncio.sleep(0.01)
    return PlainTextResponse("quick")


async def forgetful(request: Any) -> PlainTextResponse:
    kept.add(asyncio.create_task(asyncio.Event().wait(), name="forgotten"))
    return PlainTextResponse("forgetful")


async def write_audit_log() -> None:
    await asyncio.sleep(0.01)
    time.sleep(0.15)


async def fire_and_forget(request: Any) -> PlainTextResponse:
    kept.add(asyncio.create_task(write_audit_log()))
    return PlainTextResponse("gone on")


def hold_the_gil() -> None:
    re.match(r"(a+)+$", "a" * 24 + "b")


async def in_a_thread(request: Any) -> PlainTextResponse:
    await asyncio.to_thread(hold_the_gil)
    return PlainTextResponse("done")


def service() -> Any:
    routes = [
        Route("/slow/{name}", slow),
        Route("/quick/{name}", quick),
        Route("/forgetful/{name}", forgetful),
        Route("/fire", fire_and_forget),
        Route("/thread", in_a_thread),
        Mount("/inner", routes=[Route("/slow/{name}", slow)]),
    ]
    app = starlette_applications.Starlette(routes=routes)
    app.add_middleware(LoopwatchMiddleware)
    return app


def faults(found: list[Any]) -> list[Any]:
    """The blocks made on purpose: a machine short of CPU may have made others."""
    names = {"slow", "write_audit_log", "hold_the_gil", "read_item", "slow_handler"}
    return [block for block in found if block.culprit and block.culprit[2].rpartition(".")[2] in names]


def blocks_of(*paths: str, headers: dict[str, str] | None = None, after: float = 0.0) -> list[Any]:
    found: list[Any] = []

    async def main() -> None:
        async with no_event_loop_blocking(found.extend, threshold=0.1):
            await asgi_get(service(), *paths, headers=headers)
            await asyncio.sleep(after)

    asyncio.run(main())
    return faults(found)


@exact
def test_a_block_names_route_and_request_id() -> None:
    (block,) = blocks_of("/slow/anna", headers={"X-Request-ID": "r-17"})
    assert block.request == {"route": "/slow/{name}", "method": "GET", "request_id": "r-17"}
    assert "Request: GET /slow/{name} (id r-17)" in str(block)
    assert json.loads(json.dumps(_block(block)))["request"] == block.request
    assert pickle.loads(pickle.dumps(block)).request == block.request
    assert hash(block)


@exact
def test_of_many_requests_the_one_that_blocks_is_named() -> None:
    (block,) = blocks_of(*[f"/quick/{i}" for i in range(20)], "/slow/anna", *[f"/quick/{i}" for i in range(20)])
    assert block.request is not None
    assert block.request["route"] == "/slow/{name}"


@exact
def test_the_route_of_a_mounted_application_is_whole() -> None:
    (block,) = blocks_of("/inner/slow/anna")
    assert block.request is not None
    assert block.request["route"] == "/inner/slow/{name}"


@exact
def test_a_task_that_outlives_its_request_still_names_it() -> None:
    (block,) = blocks_of("/fire", headers={"x-request-id": "r-18"}, after=0.3)
    assert block.callback == "write_audit_log"
    assert block.request == {"route": "/fire", "method": "GET", "request_id": "r-18"}


@exact
def test_a_thread_that_holds_the_gil_names_the_request_it_works_for() -> None:
    found = [block for block in blocks_of("/thread", "/quick/1", "/quick/2") if block.cause == "gil"]
    assert found
    assert all(block.request and block.request["route"] == "/thread" for block in found)


def test_a_leaked_task_names_its_request() -> None:
    found: list[Any] = []

    async def main() -> None:
        async with no_task_leaks(found.extend, grace_period=0.01):
            await asgi_get(service(), "/forgetful/anna", headers={"X-Request-ID": "r-19"})

    asyncio.run(main())
    leak = next(leak for leak in found if leak.name == "forgotten")
    assert leak.request == {"route": "/forgetful/{name}", "method": "GET", "request_id": "r-19"}
    assert leak.headline().endswith("request GET /forgetful/{name} (id r-19)")
    assert "  Request: GET /forgetful/{name} (id r-19)" in str(leak)
    assert pickle.loads(pickle.dumps(leak)).request == leak.request


def test_outside_of_requests_there_is_none() -> None:
    found: list[Any] = []

    async def main() -> None:
        async with no_event_loop_blocking(found.extend, threshold=0.05), no_task_leaks(found.extend, grace_period=0.0):
            await asgi_get(service(), "/quick/anna")
            kept.add(asyncio.create_task(asyncio.Event().wait()))
            time.sleep(0.1)

    asyncio.run(main())
    assert {finding.kind for finding in found} == {"block", "task"}
    assert [finding.request for finding in found if finding.place() and "test_outside" in finding.place()[2]] == [
        None
    ] * 2


@pytest.mark.parametrize("header", ["", "a" * 500, "evil\x1b[31m"])
def test_an_id_unfit_to_be_shown_is_not_taken_over(header: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(requests.CURRENT.get())

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"x-request-id", header.encode("latin-1"))]}
    asyncio.run(LoopwatchMiddleware(app)(scope, None, None))
    assert seen[0].request_id != header
    assert re.fullmatch(r"[0-9a-f]+-[0-9a-f]{6}-[0-9a-f]+", seen[0].request_id)


def test_it_changes_nothing_and_masks_nothing() -> None:
    seen: list[Any] = []

    async def app(*args: Any) -> None:
        seen.append((args, requests.CURRENT.get()))
        raise LookupError("the application's own")

    async def main() -> None:
        for kind in ("http", "websocket", "lifespan"):
            args = ({"type": kind, "path": "/", "headers": []}, object(), object())
            with pytest.raises(LookupError, match="the application's own"):
                await LoopwatchMiddleware(app)(*args)
            assert seen[-1][0] == args
            assert requests.CURRENT.get() is None

    asyncio.run(main())
    assert [request and request.method for _, request in seen] == ["", "WEBSOCKET", None]


def test_wrong_arguments_say_what_was_expected() -> None:
    with pytest.raises(TypeError, match="wraps an ASGI application, which can be called; got None"):
        LoopwatchMiddleware(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="header must be the name of a request header"):
        LoopwatchMiddleware(service(), header=3)  # type: ignore[arg-type]


@exact
def test_fastapi() -> None:
    fastapi = pytest.importorskip("fastapi")
    app = fastapi.FastAPI()
    router = fastapi.APIRouter(prefix="/v1")

    async def read_item(item_id: int) -> str:
        time.sleep(0.15)
        return "item"

    router.get("/items/{item_id}")(read_item)
    app.include_router(router)
    found: list[Any] = []

    async def main() -> None:
        async with no_event_loop_blocking(found.extend, threshold=0.1):
            await asgi_get(LoopwatchMiddleware(app), "/v1/items/7")

    asyncio.run(main())
    (block,) = faults(found)
    assert block.request["route"] == "/v1/items/{item_id}"


@exact
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_real_server(loop: str) -> None:
    uvicorn = pytest.importorskip("uvicorn")
    new_loop = asyncio.new_event_loop if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    found: list[Any] = []

    async def main() -> None:
        config = uvicorn.Config(service(), port=0, log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            async with no_event_loop_blocking(found.extend, threshold=0.1):
                for path in ("/quick/1", "/slow/anna", "/quick/2"):
                    await client.get(path, headers={"X-Request-ID": path})
        server.should_exit = True
        await serving

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    (block,) = faults(found)
    assert block.request == {"route": "/slow/{name}", "method": "GET", "request_id": "/slow/anna"}


@exact
def test_aiohttp_over_one_kept_connection() -> None:
    aiohttp = pytest.importorskip("aiohttp")
    from aiohttp import web

    from loopwatch.integrations import aiohttp as integration

    async def slow_handler(request: Any) -> Any:
        time.sleep(0.15)
        return web.Response()

    async def leaking_handler(request: Any) -> Any:
        kept.add(asyncio.create_task(asyncio.Event().wait(), name="left by aiohttp"))
        return web.Response()

    found: list[Any] = []

    async def main() -> None:
        app = integration.setup(integration.setup(web.Application()))
        assert list(app.middlewares).count(integration.middleware) == 1
        app.router.add_get("/slow/{name}", slow_handler)
        app.router.add_get("/leak/{name}", leaking_handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with (
            no_event_loop_blocking(found.extend, threshold=0.1),
            no_task_leaks(found.extend, scope="loop"),
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
        ):
            for path in ("/leak/a", "/slow/b", "/leak/c"):
                async with session.get(path, headers={"X-Request-ID": path}) as answer:
                    assert answer.status == 200
        with pytest.raises(RuntimeError, match=r"call setup\(app\) before"):
            frozen = web.Application()
            frozen.freeze()
            integration.setup(frozen)
        await runner.cleanup()

    asyncio.run(main())
    leaks = [finding for finding in found if finding.kind == "task"]
    blocks = faults([finding for finding in found if finding.kind == "block"])
    told = [(finding.kind, finding.request) for finding in leaks + blocks if finding.request is not None]
    expected = [
        ("block", {"route": "/slow/{name}", "method": "GET", "request_id": "/slow/b"}),
        ("task", {"route": "/leak/{name}", "method": "GET", "request_id": "/leak/a"}),
        ("task", {"route": "/leak/{name}", "method": "GET", "request_id": "/leak/c"}),
    ]
    assert sorted(told, key=str) == sorted(expected, key=str)


@exact
def test_numbers_are_read_from_contexts_of_every_size() -> None:
    """The trie of a context has other nodes from 17 variables on, and more levels the more there are."""
    assert requests.watch_requests()

    def inside(others: int) -> None:
        for i in range(others):
            contextvars.ContextVar(f"other_{i}").set(i)
        assert _core.request_here() == 0
        request = requests.Request("GET", "/", "id")
        requests.CURRENT.set(request)
        assert _core.request_here() == request.number
        requests.CURRENT.set(None)
        assert _core.request_here() == 0

    for others in (*range(40), 100, 1000, 5000):
        contextvars.Context().run(inside, others)


def test_requests_that_are_gone_are_forgotten() -> None:
    first = requests.Request("GET", "/first", "id")
    numbers = [requests.Request("GET", "/", str(i)).number for i in range(20_000)]
    assert requests.by_number(first.number) == first.info()
    assert requests.by_number(numbers[-1]) is not None
    assert requests.by_number(numbers[0]) is None
    assert len(requests._known) < 7_000


def test_requests_leave_nothing_behind() -> None:
    requests.watch_requests()

    def one() -> None:
        requests.CURRENT.set(requests.Request("GET", "/", "id"))
        assert _core.request_here()

    def blocks(count: int) -> int:
        for _ in range(count):
            contextvars.Context().run(one)
        requests._forget()
        gc.collect()
        return sys.getallocatedblocks()

    blocks(5_000)
    assert abs(blocks(20_000) - blocks(20_000)) < 500


def test_a_request_costs_less_than_ten_microseconds() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    headers = [(b"host", b"x"), (b"accept", b"*/*"), (b"user-agent", b"y"), (b"connection", b"keep-alive")]

    async def cost(served: Any) -> float:
        began = time.process_time()
        for _ in range(10_000):
            await served({"type": "http", "method": "GET", "path": "/a", "headers": headers}, None, None)
        return (time.process_time() - began) / 10_000

    async def main() -> float:
        wrapped = LoopwatchMiddleware(app)
        return min([await cost(wrapped) - await cost(app) for _ in range(5)])

    assert asyncio.run(main()) < 10e-6


@exact
def test_alarms_of_the_monitor_name_requests() -> None:
    alarms: list[Any] = []

    async def main() -> None:
        app = service()
        headers = {"X-Request-ID": "r-20"}
        await asgi_get(app, "/slow/anna", *[f"/forgetful/{i}" for i in range(4)], headers=headers)
        for _ in range(500):
            if {alarm.kind for alarm in alarms} >= {"lag", "tasks"} and any(
                "in slow" in str(alarm) for alarm in alarms
            ):
                return
            await asyncio.sleep(0.02)

    with loopwatch.Monitor(interval=0.2, window=3, max_tasks=3, lag=0.1, on_alarm=alarms.append):
        asyncio.run(main())
    kept.clear()
    lag = next(alarm for alarm in alarms if alarm.kind == "lag" and alarm.place and alarm.place[2] == "slow")
    assert lag.request == {"route": "/slow/{name}", "method": "GET", "request_id": "r-20"}
    assert "  Request: GET /slow/{name} (id r-20)" in str(lag)
    assert json.loads(lag.as_json())["request"] == lag.request
    tasks = next(alarm for alarm in alarms if alarm.kind == "tasks")
    assert {example.request["route"] for example in tasks.examples} == {"/forgetful/{name}"}
    assert "request GET /forgetful/{name} (id r-20)" in str(tasks)
