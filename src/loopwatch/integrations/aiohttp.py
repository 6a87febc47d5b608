"""aiohttp's server.

loopwatch.integrations.aiohttp.setup(app)       # before it starts; or: web.Application(middlewares=[middleware])
"""

from collections.abc import Awaitable, Callable
from typing import Any

from loopwatch.integrations.request_ids import HEADER, accepted, made
from loopwatch.requests import CURRENT, Request, watch_requests

__all__ = ["middleware", "setup"]

_Handler = Callable[[Any], Awaitable[Any]]


async def middleware(request: Any, handler: _Handler) -> Any:
    """Findings made while a request is served, and of tasks it leaves behind, name its route and request id.

    The id is that of the header ``X-Request-ID``; where it is missing, or not fit to be printed, one is made.
    """
    watch_requests()
    request_id = accepted(request.headers.get(HEADER, "")) or made()
    ours = Request(request.method, request.path, request_id, request, _route)
    token = CURRENT.set(ours)
    try:
        return await handler(request)
    finally:
        ours.end()
        CURRENT.reset(token)


middleware.__middleware_version__ = 1  # type: ignore[attr-defined]  # how aiohttp tells new middlewares from old ones


def setup(app: Any) -> Any:
    """Put the middleware before all others of an ``aiohttp.web.Application``, and give the application back.

    Once is enough: it does nothing where the middleware is there.  Raises TypeError where app is no application,
    RuntimeError where it has started.
    """
    middlewares = getattr(app, "middlewares", None)
    if middlewares is None or not hasattr(middlewares, "insert"):
        raise TypeError(f"setup() takes an aiohttp.web.Application, got {app!r}")
    if middleware not in middlewares:
        try:
            middlewares.insert(0, middleware)
        except RuntimeError as error:
            raise RuntimeError(
                "the application has started, so no middleware can be added: call setup(app) before web.run_app() or "
                "AppRunner.setup()"
            ) from error
        watch_requests()
    return app


def _route(request: Any) -> str | None:
    resource = request.match_info.route.resource
    return None if resource is None else str(resource.canonical)
