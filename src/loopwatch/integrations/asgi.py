"""ASGI: Starlette, FastAPI, Litestar, Quart, Django, or an application of your own.

app = LoopwatchMiddleware(app)                  # or: app.add_middleware(LoopwatchMiddleware)
"""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from loopwatch.integrations.request_ids import HEADER, accepted, made
from loopwatch.requests import CURRENT, Request, watch_requests

__all__ = ["LoopwatchMiddleware"]

Scope = MutableMapping[str, Any]
_App = Callable[[Scope, Any, Any], Awaitable[None]]


class LoopwatchMiddleware:
    """Findings made while a request is served, and of tasks it leaves behind, name its route and request id.

    app: the ASGI application to wrap.
    header: the request header that holds the request's id.  Default ``X-Request-ID``; where it is missing, or not fit
        to be printed, an id is made.

    Use it as the outermost middleware: what is outside of it is not seen.  Requests and answers pass unchanged;
    lifespan and unknown kinds of scope are handed on as they are.  Raises TypeError where app cannot be called or
    header is no string.
    """

    def __init__(self, app: _App, *, header: str = HEADER) -> None:
        if not callable(app):
            raise TypeError(f"LoopwatchMiddleware wraps an ASGI application, which can be called; got {app!r}")
        if not isinstance(header, str):
            raise TypeError(f"header must be the name of a request header, such as {HEADER!r}; got {header!r}")
        self.app = app
        self._header = header.lower().encode("latin-1")
        watch_requests()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        kind = scope["type"]
        if kind != "http" and kind != "websocket":
            await self.app(scope, receive, send)
            return
        method = scope.get("method", "") if kind == "http" else "WEBSOCKET"
        request_id = _header(scope.get("headers") or (), self._header) or made()
        source = (scope, scope.get("root_path") or "")
        request = Request(method, scope.get("path", ""), request_id, source, _route)
        token = CURRENT.set(request)
        try:
            await self.app(scope, receive, send)
        finally:
            request.end()
            try:  # noqa: SIM105 - contextlib.suppress costs half a microsecond
                CURRENT.reset(token)
            except ValueError:  # the server ends it in another context
                pass


def _route(source: tuple[Scope, str]) -> str | None:
    """The template of the route that a framework left in the scope, with what it is mounted on inside the app."""
    scope, outer = source
    path = getattr(scope.get("route"), "path", None)
    if not isinstance(path, str):
        return None
    root = scope.get("root_path") or ""
    return root[len(outer) :] + path if root.startswith(outer) else path


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    for key, value in headers:
        if key == name:
            return accepted(value.decode("latin-1"))
    return None
