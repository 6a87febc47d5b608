"""What is outside a loop that a task waits for: sockets by their addresses, executor jobs by their functions."""

import functools
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from loopwatch.leaks.owners import instances_of

T = TypeVar("T")


def address_text(address: Any) -> str:
    """An address as people write it: ``127.0.0.1:5432``, ``[::1]:80``, a path."""
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = str(address[0]), address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(address, bytes):
        address = address.decode(errors="replace")
    return str(address).replace("\0", "@") if address else "an unnamed peer"


def address(sock: Any, peer: bool = False) -> str:
    """The local or the peer's address of a socket, or words for why there is none."""
    try:
        return address_text(sock.getpeername() if peer else sock.getsockname())
    except OSError:
        return "nobody (not connected)" if peer else "nowhere"


def socket_wait(sock: Any, clause: str, direction: str, make: Callable[..., T], local_first: bool = False) -> T:
    """Say that a socket is waited for."""
    local, peer, fd = address(sock), address(sock, peer=True), sock.fileno()
    detail = {"fd": fd, "local": local, "peer": peer, "direction": direction}
    return make("socket", f"waits {clause} {local if local_first else peer} on socket fd {fd}", detail)


def transport_wait(transport: Any, clause: str, direction: str, make: Callable[..., T]) -> T | None:
    """Say that a transport is waited for: a socket's, or a pipe's."""
    if transport is None or not hasattr(transport, "get_extra_info"):
        return None
    sock = transport.get_extra_info("socket")
    if sock is not None:
        return socket_wait(sock, clause, direction, make)
    pipe = transport.get_extra_info("pipe")
    if pipe is None:
        return None
    try:
        fd = pipe.fileno()
    except (OSError, ValueError):
        return None
    word = "data from" if direction == "read" else "room in"
    return make("socket", f"waits for {word} the pipe fd {fd}", {"fd": fd, "direction": direction})


def job_of(awaited: Any, make: Callable[..., T]) -> T | None:
    """Say which executor's job, or other thread's future, an asyncio future stands for."""
    from loopwatch.leaks.waitkinds import closure_values

    sources = closure_values(awaited, "_chain_future.<locals>._call_check_cancel", "source")
    if not sources:
        return None
    source = sources[0]
    item = _work_item(source)
    if item is None:
        return make("executor", f"waits for a {type(source).__module__}.{type(source).__qualname__}", {})
    function, kind = _function(item)
    name = _thread_of(item) if source.running() else None
    state = f"runs in thread {name!r}" if name else "runs" if source.running() else "has not begun"
    what = f"waits for {function} in a thread" if kind == "thread" else f"waits for the executor job {function}"
    return make(kind, f"{what}, which {state}", {"function": function, "thread": name, "begun": source.running()})


def _work_item(source: Any) -> Any:
    for module in ("concurrent.futures.thread", "concurrent.futures.process"):
        kind = getattr(sys.modules.get(module), "_WorkItem", None)
        for item in instances_of(kind) if kind is not None else ():
            if getattr(item, "future", None) is source:
                return item
    return None


def _function(item: Any) -> tuple[str, str]:
    """The name of the function that a job runs, and whether ``asyncio.to_thread`` made the job."""
    function = getattr(item, "fn", None)
    if function is None:
        function = (getattr(item, "task", None) or (None,))[0]
    kind = "executor"
    while isinstance(function, functools.partial):
        inner = function.func
        if getattr(inner, "__name__", "") == "run" and type(getattr(inner, "__self__", None)).__name__ == "Context":
            kind, inner = "thread", function.args[0]
        function = inner
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return (f"{module}.{name}" if module and module not in ("builtins", "__main__") else name), kind


def _thread_of(item: Any) -> str | None:
    """The name of the thread that runs a job.  Before 3.13 its frame cannot be asked without changing it."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    running = []
    for ident, frame in sys._current_frames().items():
        current: FrameType | None = frame
        while current is not None and current.f_code.co_qualname != "_WorkItem.run":
            current = current.f_back
        if current is not None:
            running.append((ident, current))
    if sys.version_info >= (3, 13):
        running = [(ident, frame) for ident, frame in running if frame.f_locals.get("self") is item]
    return names.get(running[0][0]) if len(running) == 1 else None
