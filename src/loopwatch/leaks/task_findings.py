"""A task left behind, as it is reported."""

import asyncio
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from traceback import FrameSummary
from typing import Any, ClassVar

from loopwatch.findings import place_text
from loopwatch.leaks.kinds import Leak
from loopwatch.requests import RequestInfo, request_text
from loopwatch.stacks import format_stack, is_library, making_module, qualified_name, user_frame

__all__ = ["LeakedTask", "TaskState"]


class TaskState(str, enum.Enum):  # noqa: UP042 - its members print as TaskState.RUNNING, which enum.StrEnum's do not
    """What has become of a task.  ``RUNNING`` means that it has not ended, whether it runs or waits."""

    RUNNING = "running"
    CANCELLED = "cancelled"
    DONE = "done"


@dataclass(frozen=True)
class LeakedTask(Leak):
    """A task that outlived its scope.

    task_id: its ``id()``.  name: its name.  state: a TaskState.
    current_stack: the whole chain of awaits, outermost first: the task's coroutine, what it awaits, down to the
        innermost frame.  creation_stack: the stack of the line that created it; where that is None, ``missing_reason``
        says why.
    task_ref: the task; None in a pickled copy.
    wait: what it waits for or does, in words that follow its name: "waits for a timer due in 9.9 s"; None where that
        is not known.
    wait_kind: the same in one word, as ``Wait.kind``.  proof: why only ``cancel()`` can end it; None where that is not
        proved, which means nothing.
    qualname: the qualified name of its coroutine.  module: the module that defines it, as far as known.
    age: seconds since it was created; None where unknown.  parent: the name of the task that created it.
    cancelling: how many cancellations it has been asked for and not acknowledged.
    show_creation: whether texts show the creation stack.
    request: route, method and request_id of the web request in whose context it runs; None where there is none.
    """

    kind: ClassVar[str] = "task"
    live: ClassVar[tuple[str, ...]] = ("task_ref",)

    task_id: int
    name: str
    state: TaskState
    current_stack: list[FrameSummary] | None = None
    creation_stack: list[FrameSummary] | None = None
    task_ref: "asyncio.Task[Any] | None" = field(default=None, compare=False)
    wait: str | None = None
    qualname: str = ""
    age: float | None = field(default=None, compare=False)
    parent: str | None = None
    cancelling: int = 0
    show_creation: bool = field(default=False, compare=False)
    missing_reason: str | None = None
    module: str | None = None
    request: RequestInfo | None = field(default=None, hash=False)
    wait_kind: str | None = field(default=None, compare=False)
    proof: str | None = field(default=None, compare=False)

    def format_current_stack(self) -> str:
        """The current stack as a traceback shows it; where there is none, say so."""
        return format_stack(self.current_stack) if self.current_stack else "No current stack available"

    def format_creation_stack(self) -> str:
        """The stack of the line that created the task, as a traceback shows it; where there is none, say why."""
        if self.creation_stack:
            return format_stack(self.creation_stack)
        reason = f": {self.missing_reason}" if self.missing_reason else ""
        return f"No creation stack available{reason}"

    def place(self) -> tuple[str, int, str] | None:
        frame = user_frame(self._telling_stack())
        return None if frame is None else (frame.filename, frame.lineno or 0, qualified_name(frame))

    def _telling_stack(self) -> list[FrameSummary]:
        """The creation stack; but where a library created the task (a server for a connection), its own stack."""
        creation, current = self.creation_stack or [], self.current_stack or []
        frame = user_frame(creation)
        if frame is None or (is_library(frame.filename) and not all(is_library(one.filename) for one in current)):
            return current
        return creation

    def headline(self) -> str:
        parts = [f"task {self.name!r}"]
        if self.qualname:
            parts.append(f"of {self.qualname}()")
        if self.creation_stack and self._telling_stack() is self.creation_stack:
            parts.append(f"created at {place_text(self.place())}")
        elif self.current_stack:
            parts.append(f"suspended at {place_text(self.place())}")
        if self.wait:
            parts.append(self.wait)
        if self.request:
            parts.append(f"request {request_text(self.request)}")
        return ", ".join([" ".join(parts[:2]), *parts[2:]])

    def nature(self) -> str:
        return self.qualname or self.name

    def labels(self) -> Mapping[str, list[str]]:
        modules = [self.module, making_module(self.creation_stack or self.current_stack or ())]
        return {
            "name": [self.name],
            "qualname": [self.qualname] if self.qualname else [],
            "stack": [qualified_name(frame) for frame in self.current_stack or ()],
            "creator": [qualified_name(frame) for frame in self.creation_stack or ()],
            "module": [module for module in modules if module],
        }

    def __str__(self) -> str:
        lines = [f"Leaked Task: {self.name}", f"  ID: {self.task_id}", f"  State: TaskState.{self.state.name}"]
        if self.qualname:
            lines.append(f"  Coroutine: {self.qualname}")
        created = user_frame(self.creation_stack or ())
        if created is not None:
            place = (created.filename, created.lineno or 0, qualified_name(created))
            lines.append(f"  Created At: {place_text(place)}")
        if self.wait:
            what = self.wait.removeprefix("waits for ")
            lines.append(f"  Now: it {what}" if what == self.wait else f"  Waits For: {what}")
        if self.proof:
            lines.append(f"  Proof: {self.proof}")
        if self.request:
            lines.append(f"  Request: {request_text(self.request)}")
        if self.cancelling:
            times = "" if self.cancelling == 1 else f" {self.cancelling} times"
            lines.append(f"  Cancelled: asked{times}, has not ended")
        if self.current_stack:
            lines += ["  Current Stack:", *indented(self.format_current_stack())]
        if self.show_creation and self.creation_stack:
            lines += ["  Creation Stack:", *indented(self.format_creation_stack())]
        elif self.show_creation or self.missing_reason:
            lines.append(f"  {self.format_creation_stack()}")
        return "\n".join(lines)


def indented(stack: str) -> list[str]:
    """A formatted stack below a heading: places by four spaces, their source lines by eight."""
    return [
        f"    {line.removeprefix('  ')}" if line.startswith('  File "') else f"    {line}"
        for line in stack.splitlines()
    ]
