"""The process as a whole: memory, threads, descriptors, collections of the garbage collector."""

import contextlib
import gc
import os
import threading
import time
from collections.abc import Mapping

from loopwatch import _core
from loopwatch.memory.held import type_name
from loopwatch.memory.process import process_memory
from loopwatch.monitor.histogram import Histogram
from loopwatch.monitor.readings import ProcessReading

__all__ = ["GcPauses", "count_objects", "read_process"]

_BOUNDS = tuple(2.0**power * 1e-6 for power in range(27))  # 1 µs to 67 s


class GcPauses:
    """How long collections took, by ``gc.callbacks``; any number of monitors share one, which stands while it is used.

    A collection runs in one thread and holds the GIL: begin and end come in pairs.
    """

    def __init__(self) -> None:
        self._users = 0
        self._began: float | None = None
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._count, self._sum, self._max = 0, 0.0, 0.0

    def start(self) -> None:
        self._users += 1
        if self._called not in gc.callbacks:
            gc.callbacks.append(self._called)

    def stop(self) -> None:
        self._users -= 1
        if self._users <= 0:
            self._began = None
            with contextlib.suppress(ValueError):
                gc.callbacks.remove(self._called)

    def read(self) -> Histogram:
        """All since the process began to count."""
        bounds = (*_BOUNDS, float("inf"))
        buckets = tuple((bound, count) for bound, count in zip(bounds, self._counts, strict=True) if count)
        return Histogram(self._count, self._sum, self._max, buckets)

    def _called(self, phase: str, info: Mapping[str, int]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._began = now
        elif self._began is not None:
            taken, self._began = now - self._began, None
            self._count += 1
            self._sum += taken
            self._max = max(self._max, taken)
            self._counts[max(0, min(len(_BOUNDS), int(taken * 1e6).bit_length()))] += 1


gc_pauses = GcPauses()


def read_process(*, uss: bool, objects: Mapping[str, tuple[int, int]] | None = None) -> ProcessReading:
    """Read now.  ``uss`` costs some milliseconds for a large process."""
    memory = process_memory(uss=uss)
    return ProcessReading(
        rss=memory.rss,
        uss=memory.uss,
        threads=threading.active_count(),
        native_threads=_entries("/proc/self/task"),
        descriptors=max(0, _entries("/proc/self/fd") - 1),  # without the one that reads the folder
        gc_pauses=gc_pauses.read(),
        objects=objects,
    )


def count_objects() -> dict[str, tuple[int, int]]:
    """Objects and bytes by type name.  Holds the GIL for some 10 ms for every 100,000 objects."""
    found: dict[str, tuple[int, int]] = {}
    for kind, (count, size) in _core.count_objects().items():
        name = type_name(kind)
        before = found.get(name, (0, 0))
        found[name] = before[0] + count, before[1] + size
    return found


def _entries(folder: str) -> int:
    try:
        return len(os.listdir(folder))
    except OSError:
        return 0
