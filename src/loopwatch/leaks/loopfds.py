"""Which event loops there are, and which descriptors each keeps for itself."""

import asyncio
import ctypes
import os
import sys
from collections.abc import Sequence
from typing import Any

from loopwatch import _core
from loopwatch.leaks.owners import instances_of

__all__ = ["descriptors_of", "descriptors_of_loops", "open_loops", "uv_backend"]

_UV_KINDS = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:[io_uring]", "pipe:", "/dev/null", "socket:")
_UV_OWN = _UV_KINDS[:-1]
_UV_MOST = 12  # what libuv opens with a loop, in a row: epoll, io_uring, two pipes, eventfd, /dev/null, asyncio's pair

_uv_signal_pipe: set[int] = set()


def open_loops() -> list[Any]:
    """Every asyncio or uvloop event loop of the process that is not closed."""
    return [one for one in instances_of(asyncio.AbstractEventLoop) if _is_open(one)]


def _is_open(loop: Any) -> bool:
    try:
        return not loop.is_closed()
    except Exception:  # half made
        return False


def descriptors_of(loop: Any) -> set[int]:
    """The descriptors that a loop opened for itself, as far as it tells."""
    found: set[int] = set()
    for name in ("_selector", "_ssock", "_csock"):
        holder = getattr(loop, name, None)
        try:
            number = holder.fileno() if holder is not None else -1
        except Exception:  # closed
            continue
        if isinstance(number, int) and number >= 0:
            found.add(number)
    backend = uv_backend(loop)
    if backend is not None:
        found.add(backend)
    return found


def descriptors_of_loops(fresh: Sequence[tuple[int, int, int, int]]) -> set[int]:
    """Of new descriptors, as (number, mode, device, inode), those that a loop keeps for itself."""
    targets = {number: _target(number) for number, *_ in fresh}
    uvloop = "uvloop.loop" in sys.modules
    mine = _signal_pipe(fresh, targets) | _spare(fresh, targets) if uvloop else set()
    suspects = [number for number, target in targets.items() if target.startswith(_UV_KINDS) and number not in mine]
    if not any(targets[number].startswith("anon_inode:[eventpoll]") for number in suspects):
        return mine
    for loop in open_loops():
        mine |= descriptors_of(loop)
        backend = uv_backend(loop)
        if backend is not None and backend in targets:
            mine |= {
                number
                for number in suspects
                if backend <= number < backend + _UV_MOST and targets[number].startswith(_UV_OWN)
            }
    return mine


def _signal_pipe(fresh: Sequence[tuple[int, int, int, int]], targets: dict[int, str]) -> set[int]:
    """The pipe by which libuv hears of signals: one for the process, opened with its first loop and never closed.

    No Python function opened it, and both of its ends are here.
    """
    ends: dict[int, list[int]] = {}
    for number, _mode, device, inode in fresh:
        if targets[number].startswith("pipe:") and _core.opened_at(number, device, inode) is None:
            ends.setdefault(inode, []).append(number)
    for inode, numbers in ends.items():
        if len(numbers) == 2 and (not _uv_signal_pipe or inode in _uv_signal_pipe):
            _uv_signal_pipe.add(inode)
            return set(numbers)
    return set()


def _spare(fresh: Sequence[tuple[int, int, int, int]], targets: dict[int, str]) -> set[int]:
    """/dev/null, which a loop of libuv opens at its first stream: one to give up when there are no more."""
    return {
        number
        for number, _mode, device, inode in fresh
        if targets[number] == "/dev/null" and _core.opened_at(number, device, inode) is None
    }


def _target(number: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""


def uv_backend(loop: Any) -> int | None:
    """The epoll descriptor of a uvloop loop; None for any other loop."""
    module = sys.modules.get("uvloop.loop")
    if module is None or not any(base.__module__.partition(".")[0] == "uvloop" for base in type(loop).__mro__):
        return None
    try:
        capsule = module.libuv_get_loop_t_ptr(loop)
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        library = ctypes.CDLL(module.__file__)
        number = library.uv_backend_fd(ctypes.c_void_p(get(capsule, None)))
    except Exception:  # another build of uvloop
        return None
    return number if isinstance(number, int) and number >= 0 else None
