"""What a task waits for, and whether anything can end it.

``wait_of(task)`` tells where a task is and what it waits for, in one clause that reads on after the task's name:
"waits for a timer due in 9.9 s", "waits for an item in an empty asyncio.Queue (2 others wait too)".
``quiescent(loop)`` tells whether nothing on a loop can make progress any more, and ``stuck(tasks)`` which of some tasks
nothing alive can wake.  All three only look: nothing is changed, and no code of the program is run but ``repr()``
and the accessors of its own kinds of task or future.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loopwatch import _core
from loopwatch.leaks.quiescence import quiescent
from loopwatch.leaks.waitkinds import Found, deadline_of, names_of, recognise
from loopwatch.stacks import Frame, frames_from_raw

__all__ = ["Wait", "quiescent", "stuck", "wait_of"]

_MAX_DEPTH = 10  # tasks followed from one to the next


@dataclass(frozen=True)
class Wait:
    """What a task waits for.  Immutable, plain data, can be pickled.

    ``kind`` is one of ``timer``, ``socket``, ``executor``, ``thread``, ``lock``, ``event``, ``condition``,
    ``semaphore``, ``barrier``, ``queue``, ``task``, ``gather``, ``wait``, ``task_group``, ``process``, ``server``,
    ``future``, ``ready`` (runs at the loop's next iteration), ``running``, ``done`` and ``closed_loop``.
    """

    kind: str
    text: str
    """One clause that follows the task's name, such as ``waits for a timer due in 9.9 s``."""
    frames: tuple[Frame, ...] = ()
    """The await chain, outermost first, on through the tasks that are awaited, down to the innermost frame."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Plain values, by kind: ``due`` (seconds from now), ``fd``, ``local``, ``peer``, ``direction``, ``function``,
    ``pid``, ``repr``, ``size``, ``waiters`` (others that wait for the same), ``tasks`` (names of those awaited),
    ``done`` and ``total`` (of a gather), ``deadline``
    (seconds until ``asyncio.timeout`` cancels the task)."""


def wait_of(task: "asyncio.Future[Any]") -> Wait:
    """Tell what a task waits for.

    Call it on the task's own loop's thread; from another one the answer may be out of date when it comes.
    Raises TypeError for what is no task.
    """
    if not hasattr(task, "get_coro") or not hasattr(task, "done"):
        raise TypeError(f"task must be an asyncio.Task, got {type(task).__name__}")
    return _wait_of(task, frozenset())


def stuck(tasks: Iterable["asyncio.Task[Any]"], *, seconds: float | None = None) -> dict["asyncio.Task[Any]", str]:
    """Tell which of these tasks nothing alive can wake, each with the reason; only ``cancel()`` could end them.

    A proof, by looking at all objects (some 0.5 µs for each that the garbage collector tracks): a task that is not in
    the answer may be stuck all the same.  The collection that is passed does not count as holding the tasks.
    seconds: the CPU time after which it gives up and proves nothing; default None: no limit.  Raises
    RuntimeError on an interpreter whose memory cannot be read.
    """
    if not isinstance(tasks, (list, tuple, set, frozenset, dict)):
        tasks = list(tasks)
    return _core.stuck(tasks, 0 if seconds is None else max(1, int(seconds * 1e9)))


def _wait_of(task: Any, seen: frozenset[int]) -> Wait:
    if task.done():
        return Wait("done", "is done")
    raw, awaited, links = _core.await_chain(task)
    frames = frames_from_raw(raw)
    loop = task.get_loop()
    if loop.is_closed():
        return Wait("closed_loop", "can never run again: its event loop is closed", frames)
    if getattr(task, "_fut_waiter", None) is None:
        if asyncio.current_task(loop) is task:
            return Wait("running", "runs now", frames)
        if not hasattr(task, "_fut_waiter") and awaited is not None:
            return Wait("future", f"waits for {type(awaited).__name__}", frames)
        begun = not links or _core.frame_state(links[0]) != "created"
        return Wait("ready", "is ready to run" if begun else "has not begun: it is ready to run", frames)
    if awaited.done() if hasattr(awaited, "done") else False:
        return Wait("ready", "is ready to run", frames)
    found = recognise(loop, awaited, raw, links)
    deadline = deadline_of(loop, task)
    if deadline is not None:
        found.detail["deadline"] = deadline
        found.text += f" (asyncio.timeout ends it in {deadline:.1f} s)"
    return _follow(found, frames, seen | {id(task)})


def _follow(found: Found, frames: tuple[Frame, ...], seen: frozenset[int]) -> Wait:
    """Go on into the tasks that are awaited: the first that is pending tells the rest of the chain."""
    detail = dict(found.detail)
    if found.tasks:
        detail["tasks"] = names_of(found.tasks)
    if not found.tasks or len(seen) >= _MAX_DEPTH:
        return Wait(found.kind, found.text, frames, detail)
    first = found.tasks[0]
    if id(first) in seen:
        return Wait(found.kind, f"{found.text}, which waits for this very task", frames, detail)
    if not hasattr(first, "get_coro"):
        return Wait(found.kind, found.text, frames, detail)
    inner = _wait_of(first, seen)
    joint = ", which" if len(found.tasks) == 1 else f"; the first, {names_of([first])[0]!r},"
    return Wait(found.kind, f"{found.text}{joint} {inner.text}", frames + inner.frames, detail)
