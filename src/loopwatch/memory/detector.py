"""``MemoryLeakDetector``: snapshots with labels, tracked tasks, and a loop that looks for growth."""

import asyncio
import dataclasses
import logging
import weakref
from collections.abc import Callable
from typing import Any

from loopwatch.memory.allocations import AllocationTrace
from loopwatch.memory.process import MEGABYTE, process_memory
from loopwatch.memory.retain import RetainedTask, retained_tasks
from loopwatch.memory.snapshots import Growth, MemorySnapshot, take_snapshot

__all__ = ["MemoryLeakDetector"]

_log = logging.getLogger("loopwatch")


class MemoryLeakDetector:
    """Takes snapshots, compares them, and tells when tasks or memory grow.

    max_tasks: ``monitor_loop`` warns when more tracked tasks than this are not done.  Default 100.
    memory_growth: it warns when resident memory is this fraction above its baseline.  Default 0.5, which is 50 %.
    on_warning: called with each warning's text; default: logged as a warning to the logger "loopwatch".
    trace: "sampled" samples allocations from now on until ``close()``, so that comparisons also name the lines and the
        tasks' coroutines that the surviving memory belongs to.  Default None.
    sample_bytes: one sample for so many bytes allocated.  Default 512 KB.

    tracemalloc is used where the program runs it (``tracemalloc.start()``), and never started here: it costs several
    times what the program costs.
    """

    def __init__(
        self,
        *,
        max_tasks: int = 100,
        memory_growth: float = 0.5,
        on_warning: Callable[[str], object] | None = None,
        trace: str | None = None,
        sample_bytes: int = 512 * 1024,
    ) -> None:
        if not _is_number(max_tasks) or max_tasks < 0:
            raise ValueError(f"max_tasks must be a number of tasks, at least 0, got {max_tasks!r}")
        if not _is_number(memory_growth) or not memory_growth > 0:
            raise ValueError(f"memory_growth must be a fraction above 0 (0.5 is 50 %), got {memory_growth!r}")
        if on_warning is not None and not callable(on_warning):
            raise TypeError(f"on_warning must be callable or None, got {on_warning!r}")
        if trace not in (None, "sampled"):
            raise ValueError(f"trace must be None or 'sampled', got {trace!r}")
        allocations = AllocationTrace(sample_bytes)  # refuses a size that is wrong, wanted or not
        self.trace = allocations.start() if trace == "sampled" else None
        self.snapshots: dict[str, MemorySnapshot] = {}
        self.baseline_memory = 0.0
        self._max_tasks = max_tasks
        self._memory_growth = memory_growth
        self._warn = on_warning or (lambda text: _log.warning("%s", text))
        self._tracked: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    def take_snapshot(self, label: str) -> MemorySnapshot:
        """Look at what lives now and keep it under a label; an earlier one of the same label is replaced.

        Raises TypeError for a label that is no text.
        """
        snapshot = take_snapshot(label)
        if self.trace is not None and self.trace.on:
            snapshot = dataclasses.replace(snapshot, allocations=self.trace.read())
        self.snapshots[label] = snapshot
        return snapshot

    def compare_snapshots(self, earlier: str, later: str) -> Growth:
        """What grew between two labels; print it.  Raises KeyError for a label that no snapshot has."""
        for label in (earlier, later):
            if label not in self.snapshots:
                known = ", ".join(repr(name) for name in self.snapshots) or "none yet"
                raise KeyError(f"no snapshot is labelled {label!r}; there are: {known}")
        return Growth.between(self.snapshots[earlier], self.snapshots[later])

    def close(self) -> None:
        """End the sampling of allocations, where it was asked for.  Idempotent.

        Snapshots stay, and more can be taken: those hold all but allocations.
        """
        if self.trace is not None:
            self.trace.stop()

    def track_task(self, task: "asyncio.Task[Any]") -> None:
        """Count this task among the active ones until it is done; it is not kept alive.  TypeError for what is none."""
        if not isinstance(task, asyncio.Task):
            raise TypeError(f"track_task() needs an asyncio.Task, got {task!r} of type {type(task).__name__}")
        self._tracked.add(task)

    def get_active_tasks(self) -> "list[asyncio.Task[Any]]":
        """The tracked tasks that are not done."""
        return [task for task in self._tracked if not task.done()]

    def retained_tasks(self, limit: int = 10) -> list[RetainedTask]:
        """At most ``limit`` tasks that are done and that something still holds, each with the chain that holds it.

        All tasks of the process are looked at, tracked or not.  Costs a search through all objects a task.
        """
        return retained_tasks(limit, own_frames=3)

    async def monitor_loop(self, interval: float = 1.0) -> None:
        """Look every ``interval`` seconds, for ever: run it as a task and cancel it.

        It warns when a bound is passed, and again only after what was too much had gone back.  ``loopwatch.Monitor``
        does the same and more without using the event loop.
        """
        if not _is_number(interval) or not interval > 0:
            raise ValueError(f"interval must be a number of seconds above 0, got {interval!r}")
        many = large = False
        while True:
            active = self.get_active_tasks()
            if len(active) > self._max_tasks and not many:
                self._warn(f"{len(active)} of the tracked tasks are not done (bound: {self._max_tasks})")
            many = len(active) > self._max_tasks
            memory = process_memory(uss=False).rss / MEGABYTE
            if self.baseline_memory == 0:
                self.baseline_memory = memory
            bound = self.baseline_memory * (1 + self._memory_growth)
            if memory > bound and not large:
                self._warn(
                    f"Resident memory is {memory:.1f} MB, {memory / self.baseline_memory - 1:.0%} above its baseline "
                    f"of {self.baseline_memory:.1f} MB"
                )
            large = memory > bound
            await asyncio.sleep(interval)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
