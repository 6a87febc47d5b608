"""Who holds a descriptor, a process or an executor: looked for only once there is something to report.

One pass over all objects that the garbage collector tracks finds the owners; what refers to an owner tells its holder,
in words such as "global 'pool' of module shop" or "attribute 'sock' of Client".
"""

import gc
import io
import sys
import types
from collections.abc import Iterable
from typing import Any

__all__ = ["holder_of", "owners_of_descriptors", "owners_of_processes"]

_MOST_REFERRERS = 100


def owners_of_descriptors(numbers: Iterable[int]) -> dict[int, Any]:
    """By descriptor, the Python object that owns it: a file, a socket, an epoll; of uvloop the transport."""
    wanted = set(numbers)
    found: dict[int, Any] = {}
    for candidate in gc.get_objects():
        if _may_own(candidate):
            number = _number_of(candidate)
            if number in wanted:
                found.setdefault(number, candidate)
    return found


def owners_of_processes(pids: Iterable[int]) -> dict[int, Any]:
    """By process id, the object that would reap it: a Popen of subprocess or multiprocessing."""
    wanted = set(pids)
    found: dict[int, Any] = {}
    for candidate in gc.get_objects():
        kind = type(candidate)
        if kind.__name__.startswith("Popen") or kind.__name__ == "UVProcessTransport":
            pid = _pid_of(candidate)
            if pid in wanted:
                found.setdefault(pid, candidate)
    return found


def _may_own(candidate: Any) -> bool:
    kind = type(candidate)
    if issubclass(kind, io.FileIO):
        return True
    module, name = kind.__module__, kind.__name__
    if module in ("socket", "_socket", "select", "ssl", "multiprocessing.connection", "mmap"):
        return hasattr(kind, "fileno")
    if module == "uvloop.loop":
        return hasattr(kind, "get_extra_info") or name == "Server"
    return any(base.__module__ == "_socket" for base in kind.__mro__[1:-1])


def _number_of(candidate: Any) -> int | None:
    try:
        if type(candidate).__module__ == "uvloop.loop":
            socket = candidate.get_extra_info("socket")
            return socket.fileno() if socket is not None else None
        number = candidate.fileno()
    except Exception:  # closed, detached, half made
        return None
    return number if isinstance(number, int) else None


def _pid_of(candidate: Any) -> int | None:
    try:
        pid = candidate.get_pid() if hasattr(candidate, "get_pid") else candidate.pid
    except Exception:
        return None
    return pid if isinstance(pid, int) else None


def holder_of(target: Any, *skip: Any) -> str | None:
    """Who holds an object, in words; None when that cannot be told.  ``skip`` are containers that do not count."""
    told = _best(target, [id(one) for one in skip], 1)
    return None if told is None else told[1]


def _best(target: Any, skip: list[int], depth: int) -> tuple[int, str] | None:
    best: tuple[int, str] | None = None
    referrers = gc.get_referrers(target)
    skip = [*skip, id(referrers)]
    for referrer in referrers[:_MOST_REFERRERS]:
        if id(referrer) in skip or referrer is target:
            continue
        told = _told(referrer, target, skip, depth)
        if told is not None and (best is None or told < best):
            best = told
    return best


def _told(referrer: Any, target: Any, skip: list[int], depth: int) -> tuple[int, str] | None:
    """A rank, lower is better, and the words."""
    if isinstance(referrer, types.FrameType):
        return None if _ours(referrer.f_code.co_filename) else _in_frame(referrer, target)
    if isinstance(referrer, types.CoroutineType | types.GeneratorType | types.AsyncGeneratorType):
        frame = getattr(referrer, "cr_frame", None) or getattr(referrer, "gi_frame", None)
        frame = frame or getattr(referrer, "ag_frame", None)
        return None if frame is None else _in_frame(frame, target)
    if isinstance(referrer, dict):
        told = _in_module(referrer, target)
        return told if told is not None else _in_container(referrer, skip, depth)
    if isinstance(referrer, list | tuple | set | frozenset):
        return _in_container(referrer, skip, depth)
    if isinstance(referrer, types.ModuleType | types.CellType | types.MethodType | types.BuiltinMethodType):
        return None
    return _in_object(referrer, target)


def _in_container(container: Any, skip: list[int], depth: int) -> tuple[int, str]:
    """A list, dict, ... : what it is, and who holds it."""
    text = f"a {type(container).__name__}"
    outer = _best(container, [*skip, id(container)], depth - 1) if depth > 0 else None
    return (6, text) if outer is None else (outer[0] + 2, f"{text}, {outer[1]}")


def _ours(filename: str) -> bool:
    return filename.startswith(__file__.rpartition("/leaks/")[0] + "/")


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
    if kind.__module__ in ("weakref", "asyncio.events") or _ours(
        getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    ):
        return None
    attributes = getattr(referrer, "__dict__", None)
    if isinstance(attributes, dict):
        for name, value in list(attributes.items()):
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
