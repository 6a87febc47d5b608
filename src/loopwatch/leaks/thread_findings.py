"""A thread left behind, as it is reported."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from traceback import FrameSummary
from typing import ClassVar

from loopwatch.findings import place_text
from loopwatch.leaks.kinds import Leak
from loopwatch.stacks import format_stack, qualified_name, user_frame

__all__ = ["LeakedThread", "LeakedThreadPool"]


@dataclass(frozen=True)
class LeakedThread(Leak):
    """A thread that outlived its scope.

    name: the thread's; of one made below ``threading`` the function that runs in it, of a native one the kernel's name.
    ident, native_id: as ``threading`` has them; ident 0: native, native_id 0: it has not begun to run.
    daemon: whether the interpreter ends without waiting for it.
    doing: what it does now, in words, with the innermost line of the program's own code.
    state: the same in one word: "python", "c_call", "gc", "runs" (without the GIL), "call" (a system call), "lock",
        "gil", "asleep", "new", "unknown"; of a pool "idle" or "busy".
    current_stack, creation_stack: outermost first; None where unknown.
    target: the qualified name of what runs in it.  role: what it is for and what ends it, where that is known.
    thread_ref: the ``threading.Thread``; None where there is none, and in a pickled copy.
    """

    kind: ClassVar[str] = "thread"
    live: ClassVar[tuple[str, ...]] = ("thread_ref",)

    name: str
    ident: int
    native_id: int
    daemon: bool
    doing: str
    state: str
    current_stack: list[FrameSummary] | None = None
    creation_stack: list[FrameSummary] | None = None
    target: str | None = None
    role: str | None = None
    thread_ref: threading.Thread | None = field(default=None, compare=False)
    target_module: str | None = None

    def format_current_stack(self) -> str:
        """The current stack as a traceback shows it; where there is none, say so."""
        return format_stack(self.current_stack) if self.current_stack else "No current stack available"

    def format_creation_stack(self) -> str:
        """The stack of the line that started the thread, as a traceback shows it; where there is none, say why."""
        if self.creation_stack:
            return format_stack(self.creation_stack)
        if self.ident == 0:
            return "No creation stack available: it was not started by Python"
        return "No creation stack available: it was started past the functions that loopwatch watches"

    def place(self) -> tuple[str, int, str] | None:
        frame = user_frame(self.creation_stack or self.current_stack or ())
        return None if frame is None else (frame.filename, frame.lineno or 0, qualified_name(frame))

    def headline(self) -> str:
        created = f" created at {place_text(self.place())}" if self.creation_stack else ""
        role = f", {self.role}" if self.role else ""
        return f"thread {self.name!r}{created}{role}: {self.doing}"

    def nature(self) -> str:
        return self.target or self.name

    def labels(self) -> Mapping[str, Sequence[str]]:
        labels = dict(super().labels())
        labels["qualname"] = [self.target] if self.target else []
        labels["stack"] = [qualified_name(frame) for frame in self.current_stack or ()]
        labels["module"] = [*labels["module"], *([self.target_module] if self.target_module else [])]
        return labels

    def about(self) -> Sequence[object]:
        return () if self.thread_ref is None else (self.thread_ref,)

    def _head(self) -> list[str]:
        lines = [
            f"Leaked Thread: {self.name}",
            f"  Ident: {self.ident} (native id {self.native_id})",
            f"  Daemon: {self.daemon}",
        ]
        if self.target:
            lines.append(f"  Target: {self.target}")
        return lines + ([f"  Role: {self.role}"] if self.role else [])

    def __str__(self) -> str:
        lines = [*self._head(), f"  Doing: {self.doing}"]
        if self.current_stack:
            lines += ["  Current Stack:", *_indented(self.format_current_stack())]
        if self.ident:
            lines += ["  Creation Stack:", *_indented(self.format_creation_stack())]
        return "\n".join(lines)


@dataclass(frozen=True)
class LeakedThreadPool(LeakedThread):
    """An executor that was not shut down: one finding for all its workers.

    The fields are those of its oldest worker, the creation stack among them: where the executor was first used.
    ``workers`` are its threads, oldest first, ``busy`` how many run a job; ``current_stack`` is that of a busy one.
    """

    workers: tuple[LeakedThread, ...] = ()
    busy: int = 0

    @classmethod
    def of(cls, workers: Sequence[LeakedThread], busy: Sequence[LeakedThread]) -> "LeakedThreadPool":
        """Put workers, oldest first, together; ``busy`` are those that run a job."""
        fields = {name: value for name, value in vars(workers[0]).items() if name not in ("doing", "state")}
        fields["current_stack"] = (busy or workers)[0].current_stack
        fields["role"] = "a ThreadPoolExecutor: its shutdown(), or `with`, ends it"
        count = f"{len(workers)} worker{'s' if len(workers) > 1 else ''}"
        doing = f"{count}, {len(busy)} busy: {busy[0].doing}" if busy else f"{count}, idle"
        return cls(**fields, doing=doing, state="busy" if busy else "idle", workers=tuple(workers), busy=len(busy))

    def about(self) -> Sequence[object]:
        return [thread for worker in self.workers for thread in worker.about()]

    def _head(self) -> list[str]:
        names = ", ".join(worker.name for worker in self.workers)
        lines = [f"Leaked Thread Pool: {self.name.rpartition('_')[0] or self.name}", f"  Workers: {names}"]
        return [*lines, f"  Daemon: {self.daemon}", f"  Role: {self.role}"]


def _indented(text: str) -> list[str]:
    return [f"    {line.removeprefix('  ')}" if line.startswith("  ") else f"    {line}" for line in text.splitlines()]
