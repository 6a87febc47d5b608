"""Which request a task, a callback or a thread works for.

A web integration puts a ``Request`` into the context in which it lets the application run; tasks, callbacks and
``asyncio.to_thread`` calls made there inherit it.  A leak reads it from its task's own context; samples of a blocked
loop carry its number (``csrc/python/requests.h``), from which it is found again here.

Numbers are those of this process.  Every request is found that anything still refers to, and the newest thousand.
"""

import collections
import itertools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypedDict
from weakref import ref

from loopwatch import _core
from loopwatch.printable import printable

__all__ = ["CURRENT", "Request", "RequestInfo", "RouteOf", "by_number", "of_task", "request_text", "watch_requests"]

_KEPT = 1000
_LARGEST = 2**30 - 1  # what an int of one digit holds: the core reads no other

CURRENT: ContextVar["Request | None"] = ContextVar("loopwatch_request", default=None)


class RequestInfo(TypedDict):
    """What findings say of a request: plain data."""

    route: str
    method: str
    request_id: str


RouteOf = Callable[[Any], str | None]


class Request:
    """One request, or one connection of a WebSocket.

    ``number`` is unique among those alive.  ``route`` is the route's template once routing has found it, the path until
    then.  ``source``, what the framework knows it by, is let go by ``end()``.
    """

    __slots__ = ("__weakref__", "_route", "_route_of", "_source", "method", "number", "request_id")

    def __init__(self, method: str, path: str, request_id: str, source: Any = None, route_of: RouteOf | None = None):
        self.number = number = next(_numbers) % _LARGEST + 1
        self.method = method
        self.request_id = request_id
        self._route = path
        self._source = source
        self._route_of = route_of
        _known[number] = ref(self)
        _newest.append(self)
        if len(_known) > _forget_at:
            _forget()

    @property
    def route(self) -> str:
        if self._route_of is not None:
            try:
                self._route = self._route_of(self._source) or self._route
            except Exception:  # a framework's own objects, at any moment of their lives
                return self._route
        return self._route

    def end(self) -> None:
        """It was answered: keep its names, let go of the framework's objects."""
        _ = self.route
        self._source = self._route_of = None

    def info(self) -> RequestInfo:
        return {"route": self.route, "method": self.method, "request_id": self.request_id}

    def __repr__(self) -> str:
        return f"<Request {self.number} {request_text(self.info())}>"


_numbers = itertools.count()
_known: dict[int, "ref[Request]"] = {}
_newest: "collections.deque[Request]" = collections.deque(maxlen=_KEPT)
_forget_at = 4 * _KEPT
_watched: bool | None = None


def _forget() -> None:
    """Take out of the table what is gone: now and then, so that a request costs the same however many there are."""
    global _forget_at
    for number, known in list(_known.items()):
        if known() is None:
            _known.pop(number, None)
    _forget_at = 2 * len(_known) + 2 * _KEPT


def watch_requests() -> bool:
    """Let the samples of blocked loops carry requests from now on; whether that can be done here.  May be repeated."""
    global _watched
    if _watched is None:
        _watched = _core.requests_watch(CURRENT, Request("GET", "/", "-"))
    return _watched


def by_number(number: int) -> RequestInfo | None:
    """The request that a sample has the number of."""
    known = _known.get(number) if number else None
    request = None if known is None else known()
    return None if request is None else request.info()


def of_task(task: Any) -> RequestInfo | None:
    """The request in whose context a task runs."""
    if _watched is None:
        return None
    request = _core.task_value(task, CURRENT)
    return request.info() if isinstance(request, Request) else None


def request_text(request: RequestInfo) -> str:
    """A request in a few words, such as ``GET /items/{id} (id 7f3a)``."""
    return printable(f"{request['method']} {request['route']} (id {request['request_id']})")
