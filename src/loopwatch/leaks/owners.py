"""Who holds a descriptor, a process or an executor: looked for only once there is something to report.

``owned_by`` finds the Python objects that own descriptors or processes; what refers to an owner tells its holder, in
words such as "global 'pool' of module shop" or "attribute 'sock' of Client".  All of it together may take so much CPU
time an exit as ``effort`` allows: a ``Search`` ends with what it saw by then, and says so.
"""

import asyncio
import io
import sys
import time
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from loopwatch import _core
from loopwatch.leaks.effort import allowed

__all__ = ["Search", "descriptor_types", "instances_of", "numbers_of", "pids_of", "process_types", "subclasses"]

_NO_LIMIT = 1 << 60
_LEVELS = 3  # who holds it, who holds that, and whose attributes those are
_CONTAINERS = (dict, list, tuple, set, frozenset)
# the outermost first
_FILES: tuple[type, ...] = (io.TextIOWrapper, io.BufferedRandom, io.BufferedReader, io.BufferedWriter, io.FileIO)


class Search:
    """What one exit may spend on finding owners and holders; begun by the first question."""

    def __init__(self, budget: float | None = None) -> None:
        self._budget = allowed().holders if budget is None else budget
        self._deadline: int | None = None
        self._referrers: dict[int, list[Any]] = {}
        self._hidden: set[int] = set()
        self.cut: str | None = None
        """Why not everything was looked at; None when it was."""

    def _left(self) -> int:
        if self._deadline is None:
            self._deadline = time.thread_time_ns() + int(self._budget * 1e9)
        return max(0, self._deadline - time.thread_time_ns())

    def _seen(self, complete: bool) -> None:
        if not complete:
            self.cut = (
                f"not known: there is so much in memory that the search was ended after {self._budget * 1e3:g} ms"
            )

    def owned_by(
        self, kinds: Iterable[type], numbers: Callable[[Any], Iterable[int]], wanted: Iterable[int]
    ) -> dict[int, Any]:
        """By number (a descriptor, a process id), the object of these types that owns it."""
        asked = set(wanted)
        candidates, complete = _core.objects_of(tuple(kinds), self._left())
        self._seen(complete)
        found: dict[int, Any] = {}
        for _, candidate in sorted(candidates, key=lambda pair: _depth(pair[1])):
            for number in asked.intersection(numbers(candidate)):
                found.setdefault(number, candidate)
        self.hide(found)
        return found

    def hide(self, container: object) -> None:
        """Let a container of loopwatch's own be nobody's holder."""
        self._hidden.add(id(container))

    def look(self, targets: Sequence[Any]) -> None:
        """Find what refers to these, and to what contains them, by one pass for each level."""
        level = tuple(targets)
        for _ in range(_LEVELS):
            level = tuple({id(one): one for one in level if id(one) not in self._referrers}.values())
            if not level:
                return
            pairs, complete = _core.referrers(level, self._left())
            self._seen(complete)
            held: list[list[Any]] = [[] for _ in level]
            self._hidden |= {id(level), id(targets), id(held), *map(id, held)}
            for index, referrer in pairs:
                if id(referrer) not in self._hidden:
                    held[index].append(referrer)
            self._referrers.update((id(one), holders) for one, holders in zip(level, held, strict=True))
            del pairs
            if not complete:
                return
            level = tuple(one for target, holders in zip(level, held, strict=True) for one in _open(target, holders))

    def referrers_of(self, target: Any) -> Sequence[Any]:
        """What refers to an object, as far as ``look`` saw."""
        return self._referrers.get(id(target), ())

    def transport_of(self, owner: Any) -> Any:
        """The asyncio transport that an owner of a descriptor serves; None for another."""
        if isinstance(owner, asyncio.BaseTransport) or hasattr(type(owner), "get_extra_info"):
            return owner
        for referrer in self.referrers_of(owner):
            if isinstance(referrer, asyncio.BaseTransport):
                return referrer
            if isinstance(referrer, dict):
                for outer in self.referrers_of(referrer):
                    if isinstance(outer, asyncio.BaseTransport):
                        return outer
        return None

    def holder_of(self, target: Any) -> str | None:
        """Who holds an object that ``look`` was given, in words; None when that cannot be told."""
        told = self._best(target, (id(target),), 1)
        return None if told is None else told[1]

    def _best(self, target: Any, skip: tuple[int, ...], depth: int) -> tuple[int, str] | None:
        best: tuple[int, str] | None = None
        for referrer in self.referrers_of(target):
            if id(referrer) not in skip:
                told = self._told(referrer, target, skip, depth)
                if told is not None and (best is None or told < best):
                    best = told
        return best

    def _told(self, referrer: Any, target: Any, skip: tuple[int, ...], depth: int) -> tuple[int, str] | None:
        """A rank, lower is better, and the words."""
        if isinstance(referrer, types.FrameType):
            return None if _ours(referrer.f_code.co_filename) else _in_frame(referrer, target)
        if isinstance(referrer, types.CoroutineType | types.GeneratorType | types.AsyncGeneratorType):
            frame = getattr(referrer, "cr_frame", None) or getattr(referrer, "gi_frame", None)
            frame = frame or getattr(referrer, "ag_frame", None)
            return None if frame is None or _ours(frame.f_code.co_filename) else _in_frame(frame, target)
        if isinstance(referrer, dict):
            told = _in_module(referrer, target)
            return told if told is not None else self._in_container(referrer, skip, depth)
        if isinstance(referrer, _CONTAINERS):
            return self._in_container(referrer, skip, depth)
        if isinstance(referrer, types.ModuleType | types.CellType | types.MethodType | types.BuiltinMethodType):
            return None
        return _in_object(referrer, target)

    def _in_container(self, container: Any, skip: tuple[int, ...], depth: int) -> tuple[int, str] | None:
        """A list, dict, ... : what it is, and who holds it.  One that only loopwatch holds does not count."""
        outer = self.referrers_of(container)
        if outer and all(_is_ours(one) for one in outer):
            return None
        if isinstance(container, dict):  # of an object that keeps its attributes there
            for one in outer:
                if _attributes(one) is container and not isinstance(one, type):
                    name = next((key for key, value in list(container.items()) if id(value) in skip), None)
                    return 1, f"attribute {name!r} of {type(one).__qualname__}"
        text = f"a {type(container).__name__}"
        told = self._best(container, (*skip, id(container)), depth - 1) if depth > 0 else None
        return (6, text) if told is None else (told[0] + 2, f"{text}, {told[1]}")


def subclasses(*roots: type) -> set[type]:
    """These classes and all that are derived from them."""
    found: set[type] = set()
    todo = list(roots)
    while todo:
        kind = todo.pop()
        if kind not in found:
            found.add(kind)
            todo += type.__subclasses__(kind)
    return found


def instances_of(root: type) -> list[Any]:
    """All objects of a class and of those derived from it that the garbage collector tracks."""
    return [one for _, one in _core.objects_of(tuple(subclasses(root)), _NO_LIMIT)[0]]


def descriptor_types() -> set[type]:
    """The types of what owns a descriptor: files, sockets, an epoll; of uvloop the transports."""
    roots: list[type] = list(_FILES)
    for module in ("socket", "_socket", "select", "ssl", "multiprocessing.connection", "mmap"):
        roots += [kind for kind in _types_in(module) if hasattr(kind, "fileno")]
    uvloop = [kind for kind in _types_in("uvloop.loop") if hasattr(kind, "get_extra_info") or kind.__name__ == "Server"]
    return subclasses(*roots, *uvloop)


def process_types() -> set[type]:
    """The types of what would reap a process: the Popen of subprocess, of multiprocessing, of uvloop."""
    roots = [
        kind
        for module in [name for name in list(sys.modules) if name.startswith(("multiprocessing.popen_", "subprocess"))]
        for kind in _types_in(module)
        if kind.__name__.startswith("Popen")
    ]
    return subclasses(*roots, *(kind for kind in _types_in("uvloop.loop") if kind.__name__ == "UVProcessTransport"))


def _types_in(name: str) -> list[type]:
    module = sys.modules.get(name)
    return [] if module is None else [kind for kind in list(vars(module).values()) if isinstance(kind, type)]


def numbers_of(candidate: Any) -> Iterable[int]:
    """The descriptors of what has any; none of what is closed, detached or half made."""
    try:
        sockets = [candidate]
        if type(candidate).__module__ == "uvloop.loop":
            servers = type(candidate).__name__ == "Server"
            sockets = candidate.sockets if servers else [candidate.get_extra_info("socket")]
        numbers = [socket.fileno() for socket in sockets if socket is not None]
    except Exception:
        return ()
    return [number for number in numbers if isinstance(number, int)]


def pids_of(candidate: Any) -> Iterable[int]:
    """The process that it would reap."""
    try:
        pid = candidate.get_pid() if hasattr(candidate, "get_pid") else candidate.pid
    except Exception:
        return ()
    return [pid] if isinstance(pid, int) else ()


def _ours(filename: str) -> bool:
    return filename.startswith(__file__.rpartition("/leaks/")[0] + "/")


def _is_ours(thing: Any) -> bool:
    if isinstance(thing, types.FrameType):
        return _ours(thing.f_code.co_filename)
    return _ours(getattr(sys.modules.get(type(thing).__module__), "__file__", None) or "")


def _depth(candidate: Any) -> int:
    """Of a file object and those that it is made of, the outermost is what people hold."""
    return next((depth for depth, kind in enumerate(_FILES) if isinstance(candidate, kind)), 0)


def _open(target: Any, holders: Sequence[Any]) -> list[Any]:
    """The containers whose holders are to be looked for; none where a holder with a name is known."""
    if any(isinstance(one, dict) and _in_module(one, target) for one in holders):
        return []
    return [one for one in holders if isinstance(one, _CONTAINERS)]


def _attributes(thing: Any) -> dict[str, Any] | None:
    try:
        attributes = object.__getattribute__(thing, "__dict__")
    except Exception:
        return None
    return attributes if isinstance(attributes, dict) else None


def _in_frame(frame: types.FrameType, target: Any) -> tuple[int, str] | None:
    names = [name for name, value in list(frame.f_locals.items()) if value is target]
    where = frame.f_code.co_qualname
    return (3, f"local variable {names[0]!r} of {where}") if names else (5, f"the frame of {where}")


def _in_module(names: dict[Any, Any], target: Any) -> tuple[int, str] | None:
    module = names.get("__name__")
    if not isinstance(module, str) or getattr(sys.modules.get(module), "__dict__", None) is not names:
        return None
    found = [name for name, value in list(names.items()) if value is target]
    return (0, f"global {found[0]!r} of module {module}") if found else None


def _in_object(referrer: Any, target: Any) -> tuple[int, str] | None:
    kind = type(referrer)
    if kind.__module__ in ("weakref", "asyncio.events") or _is_ours(referrer):
        return None
    for name, value in list((_attributes(referrer) or {}).items()):
        if value is target:
            return 1, f"attribute {name!r} of {kind.__qualname__}"
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            try:
                held = object.__getattribute__(referrer, name)
            except Exception:  # not set, or mangled
                continue
            if held is target:
                return 1, f"attribute {name!r} of {kind.__qualname__}"
    return 2, f"a {kind.__qualname__}"
