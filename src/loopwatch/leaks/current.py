"""``ignore_current``: what exists now is overlooked later, by the very object, not by its name."""

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import threading
import types
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loopwatch.leaks.suppress import Ignore

__all__ = ["ignore_current"]

_TYPES = (
    asyncio.Future,
    asyncio.TimerHandle,
    asyncio.AbstractEventLoop,
    concurrent.futures.Executor,
    threading.Thread,
    types.AsyncGeneratorType,
)


@dataclass(frozen=True, eq=False)
class _Current(Ignore):
    """All that existed at one moment.  Objects are held weakly, so that a new one in an old one's place is not it."""

    kind: str | None = None
    objects: Mapping[int, "weakref.ref[Any]"] = field(default_factory=dict)
    descriptors: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    processes: frozenset[int] = frozenset()
    threads: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        pass

    def matches(self, leak: Any, labels: Mapping[str, Sequence[str]] | None = None) -> bool:
        for name in getattr(leak, "live", ()):
            live = getattr(leak, name, None)
            if live is not None:
                reference = self.objects.get(id(live))
                return reference is not None and reference() is live
        if leak.kind == "descriptor":
            known = self.descriptors.get(leak.fd)
            return known is not None and _file(leak.fd) == known
        if leak.kind == "process":
            return leak.pid in self.processes
        return leak.kind == "thread" and leak.native_id in self.threads


def ignore_current() -> tuple[Ignore, ...]:
    """All that exists now, in this process, as entries for ``ignore=``: a guard given them overlooks it for good.

    For what began before a scope but shows up in it, such as a pool that a first call fills, or with
    ``scope="process"``.  Tasks, threads, async generators, timers, event loops and executors are known again as the
    very objects, descriptors by their number and file, child processes by their number.  It goes through all objects
    of the interpreter: some 10 ms for 100,000 of them.
    """
    objects: dict[int, weakref.ref[Any]] = {}
    for candidate in gc.get_objects():
        if issubclass(type(candidate), _TYPES):  # isinstance() would ask proxies for their __class__
            with contextlib.suppress(TypeError):
                objects[id(candidate)] = weakref.ref(candidate)
    files = {fd: file for fd in _numbers("/proc/self/fd") if (file := _file(fd)) is not None}
    tasks = frozenset(_numbers("/proc/self/task"))
    entry = _Current(
        reason="it existed when ignore_current() was called",
        objects=objects,
        descriptors=files,
        processes=frozenset(_children(tasks)),
        threads=tasks,
    )
    return (entry,)


def _numbers(folder: str) -> list[int]:
    return [int(name) for name in os.listdir(folder)]


def _file(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _children(tasks: frozenset[int]) -> Iterator[int]:
    for task in tasks:
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
            yield from map(int, file.read().split())
