"""A small service with four workers, and faults that can be asked for.

    GET /items/{item}   as it should be
    GET /report         blocks the event loop for 0.3 seconds
    GET /subscribe      begins a task that nothing ever ends
    GET /metrics        what Prometheus scrapes: of all workers, whichever of them answers

Run it with ``gunicorn -c gunicorn.conf.py service:app``; see README.md.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import prometheus_client
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import loopwatch
from loopwatch.exporters.prometheus import LoopwatchMultiProcessCollector, LoopwatchWorker
from loopwatch.integrations.asgi import LoopwatchMiddleware

REQUESTS = prometheus_client.Counter("shop_requests", "Requests, by path.", ["path"])
subscriptions: set[asyncio.Task[Any]] = set()


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """In each worker, after the fork: a monitor, and its file for the worker that is scraped."""
    with loopwatch.Monitor() as monitor:
        worker = LoopwatchWorker(monitor).start()
        try:
            yield
        finally:
            worker.stop()


async def items(request: Request) -> PlainTextResponse:
    REQUESTS.labels("/items").inc()
    await asyncio.sleep(0.002)
    return PlainTextResponse(f"item {request.path_params['item']}\n")


async def report(request: Request) -> PlainTextResponse:
    REQUESTS.labels("/report").inc()
    time.sleep(0.3)  # fault: stands for a database driver that is not async
    return PlainTextResponse("report\n")


async def wait_for_news() -> None:
    await asyncio.Event().wait()


async def subscribe(request: Request) -> PlainTextResponse:
    REQUESTS.labels("/subscribe").inc()
    subscriptions.add(asyncio.create_task(wait_for_news()))  # fault: nothing ever ends it
    return PlainTextResponse("subscribed\n")


async def metrics(request: Request) -> Response:
    registry = prometheus_client.CollectorRegistry()
    MultiProcessCollector(registry)
    LoopwatchMultiProcessCollector(registry)
    text = await asyncio.to_thread(prometheus_client.generate_latest, registry)
    return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)


app = Starlette(
    routes=[
        Route("/items/{item}", items),
        Route("/report", report),
        Route("/subscribe", subscribe),
        Route("/metrics", metrics),
    ],
    lifespan=lifespan,
)
app.add_middleware(LoopwatchMiddleware)
