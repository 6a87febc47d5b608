"""Event loops that were made and not closed."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from loopwatch import _core
from loopwatch.errors import LoopLeakError
from loopwatch.leaks.kinds import Kind, Leak, Session
from loopwatch.leaks.loopfds import open_loops, uv_backend
from loopwatch.leaks.origins import Resource, ResourceSession, creation_of, with_holders

if TYPE_CHECKING:
    from loopwatch.leaks.owners import Search

__all__ = ["LeakedLoop", "LoopKind"]


@dataclass(frozen=True)
class LeakedLoop(Resource):
    """An event loop that was made and not closed.

    name: its class.  running: whether a thread runs it now.  pending: how many tasks of it are pending.
    holder: who holds it, in words.  loop_ref: the loop; None in a pickled copy.
    """

    kind: ClassVar[str] = "loop"
    title: ClassVar[str] = "Event Loop"
    live: ClassVar[tuple[str, ...]] = ("loop_ref",)

    running: bool = False
    pending: int = 0
    holder: str | None = None
    loop_ref: Any = field(default=None, compare=False)

    def tail(self) -> str:
        state = "still runs" if self.running else "not closed"
        pending = f", {self.pending} tasks pending on it" if self.pending else ""
        return state + pending + (f", held by {self.holder}" if self.holder else "")

    def facts(self) -> Iterable[tuple[str, str | None]]:
        yield "State", "running" if self.running else "stopped, not closed: its epoll and its pipe stay open"
        yield "Pending tasks", str(self.pending) if self.pending else None
        yield "Held by", self.holder or self.unsearched
        yield "Close it with", "close(), or run the coroutine by asyncio.run()"


class LoopKind(Kind):
    """Event loops of asyncio and uvloop made under the guard and still open."""

    name: ClassVar[str] = "loops"
    error = LoopLeakError
    refusal: ClassVar[str] = "An event loop that runs cannot be closed from outside."

    def begin(self) -> Session:
        return _Session()


class _Session(ResourceSession):
    """asyncio's loops are found by the selectors they make; uvloop's, made in C, by their epoll descriptors."""

    def __init__(self) -> None:
        self._open = True
        self._before = _core.descriptors() if _has_uvloop() else None
        _core.openings_begin()
        super().__init__()
        self._apart: list[Leak] = []
        self._left: list[LeakedLoop] = []

    def look(self) -> list[Leak]:
        self._apart, self._left = [], []
        if not self._open:
            return []
        for loop, origin in [*self._asyncios(), *self._uvloops()]:
            if loop is asyncio._get_running_loop():
                continue
            leak = LeakedLoop(
                name=f"{type(loop).__module__.partition('.')[0]} {type(loop).__qualname__}",
                creation_stack=creation_of(origin),
                running=loop.is_running(),
                pending=_pending(loop),
                loop_ref=loop,
            )
            (self._apart if self.foreign(origin) else self._left).append(leak)
        return list(self._left)

    def _asyncios(self) -> list[tuple[Any, Any]]:
        made = {id(one): origin for one, origin, _ in _core.selectors_made(self.serial) if _is_open(one)}
        if not made:
            return []
        own = [(loop, id(getattr(loop, "_selector", None))) for loop in open_loops()]
        return [(loop, made[selector]) for loop, selector in own if selector in made]

    def _uvloops(self) -> list[tuple[Any, Any]]:
        if not _has_uvloop():
            return []
        fresh = _core.descriptors_since(self._before or b"")
        epolls = {number for number, mode, *_ in fresh if _is_epoll(number, mode)}
        return [(loop, None) for loop in open_loops() if uv_backend(loop) in epolls] if epolls else []

    def complete(self, leaks: Sequence[Any], search: "Search") -> list[Leak]:
        return with_holders(leaks, [leak.loop_ref for leak in leaks], search)

    def apart(self) -> list[Leak]:
        return list(self._apart)

    def cancel(self, leaks: Sequence[Leak]) -> list[Leak]:
        refused = []
        for leak in leaks:
            loop = getattr(leak, "loop_ref", None)
            if loop is None or loop.is_running():
                refused.append(leak)
            else:
                loop.close()
        return refused

    def end(self) -> None:
        if self._open:
            self._open = False
            _core.openings_end()
        super().end()


def _is_epoll(number: int, mode: int) -> bool:
    if mode & 0o170000:  # what has no file type is anonymous
        return False
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{number}") == "anon_inode:[eventpoll]"
    return False


def _has_uvloop() -> bool:
    return "uvloop.loop" in sys.modules


def _is_open(selector: Any) -> bool:
    try:
        return bool(selector.fileno() >= 0)
    except (ValueError, AttributeError):  # closed; of another kind, which no loop makes here
        return False


def _pending(loop: Any) -> int:
    try:
        return len(asyncio.all_tasks(loop))
    except Exception:
        return 0
