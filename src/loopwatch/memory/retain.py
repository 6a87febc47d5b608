"""What would be freed if an object, or a task, went away; and the done tasks that something still holds."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from loopwatch import _core
from loopwatch.memory.held import Chain, coroutine_name, find_chain, type_name

_TASKS: tuple[type, ...] = (asyncio.Task, getattr(asyncio.tasks, "_PyTask", asyncio.Task))

__all__ = ["Retained", "RetainedTask", "all_tasks_alive", "retained", "retained_tasks"]


_NO_LIMIT = 1 << 60  # nanoseconds


@dataclass(frozen=True)
class Retained:
    """What would be freed: how many objects, how many bytes, and both by type name, the most bytes first.

    ``cut``: there was more than ``limit`` objects to look at, so this is the least that would go.  ``running``: a part
    of it executes now, and what its frame holds is not counted.
    """

    count: int
    bytes: int
    by_type: dict[str, tuple[int, int]] = field(repr=False)
    cut: bool = False
    running: bool = False

    def text(self, limit: int = 5) -> str:
        """One line, and the ``limit`` types with the most bytes, one a line."""
        least = "at least " if self.cut or self.running else ""
        lines = [f"{least}{self.count:,} objects, {_size(self.bytes)}"]
        width = max((len(name) for name in list(self.by_type)[:limit]), default=0)
        for name, (count, size) in list(self.by_type.items())[:limit]:
            lines.append(f"  {name:<{width}}  {count:>9,}  {_size(size):>10}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()


def retained(target: object, /, *, limit: int = 1_000_000) -> Retained:
    """Tell what would be freed if an object went away; of a task: if it ended and were forgotten.

    Counted is the object itself and all that is reached only through it: of a task what its coroutine's variables, its
    result or its exception hold.  What anything else holds too is not counted.  Never too much: what cannot be told is
    left out.  Objects that the collector does not track (str, bytes) count as well.

    limit: look at so many objects at most.  Default 1,000,000, which takes 0.3 s or so with the GIL held; the result
    says when there was more.  Raises ValueError for a limit below 1, RuntimeError where the stacks of this interpreter
    cannot be read.
    """
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be a whole number of objects, got {limit!r}")
    starts = [target]
    if isinstance(target, asyncio.Future):
        coroutine = getattr(target, "_coro", None)
        if coroutine is not None:
            starts.append(coroutine)
        del coroutine
    del target
    types, cut, running = _core.retained(starts, limit)
    by_name: dict[str, tuple[int, int]] = {}
    for kind, (count, size) in types.items():
        before = by_name.get(type_name(kind), (0, 0))
        by_name[type_name(kind)] = before[0] + count, before[1] + size
    ordered = dict(sorted(by_name.items(), key=lambda entry: (-entry[1][1], entry[0])))
    return Retained(
        sum(count for count, _ in ordered.values()), sum(size for _, size in ordered.values()), ordered, cut, running
    )


@dataclass(frozen=True)
class RetainedTask:
    """A task that is done, and what still holds it.  ``retained``: what would be freed if it were let go."""

    name: str
    coroutine: str
    state: str
    held_by: Chain
    retained: Retained

    def __str__(self) -> str:
        return f"{self.held_by}\n  retains {self.retained.text(0)}"


def all_tasks_alive() -> "list[asyncio.Task[Any]]":
    """Every asyncio task of every loop and thread that lives, done or not."""
    kinds = tuple(kind for kind in _core.count_objects() if issubclass(kind, _TASKS))
    return [task for _, task in _core.objects_of(kinds, _NO_LIMIT)[0]]


def retained_tasks(limit: int = 10, own_frames: int = 2) -> list[RetainedTask]:
    """At most ``limit`` tasks that are done but that something still holds, each with what holds it.

    Tasks that only the caller's own variable or uncollected garbage holds are left out, as is the one whose callback
    runs now.  Each costs a search through all objects, see ``held_by``.
    """
    tasks = [task for task in all_tasks_alive() if task.done()]
    found: list[RetainedTask] = []
    box: list[Any] = [None]
    while tasks and len(found) < limit:
        box[0] = tasks.pop()
        chain = find_chain(box, own_frames, (tasks,))
        if chain is not None:
            state = "cancelled" if box[0].cancelled() else "done"
            name = coroutine_name(_core.task_coroutine(box[0]))
            found.append(RetainedTask(box[0].get_name(), name, state, chain, retained(box[0])))
    return found


def _size(count: int) -> str:
    if count < 10_000:
        return f"{count:,} bytes"
    return f"{count / 1024:,.0f} KB" if count < 10 * 1024 * 1024 else f"{count / 1024 / 1024:,.1f} MB"
