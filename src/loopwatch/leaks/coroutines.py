"""Coroutines that were made and never awaited.

The interpreter notices when such a coroutine is dropped, and warns.  While a session is open it tells us as well; its
own warning appears as ever.
"""

import asyncio
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from traceback import FrameSummary, StackSummary
from typing import Any, ClassVar

from loopwatch import _core
from loopwatch.errors import UnawaitedCoroutineError
from loopwatch.findings import place_text
from loopwatch.leaks.kinds import Kind, Leak, Session
from loopwatch.leaks.task_findings import indented
from loopwatch.leaks.task_scopes import Scope, Token, check_scope
from loopwatch.loops import running_loop
from loopwatch.stacks import format_stack, module_of, qualified_name, summary_from_raw, user_frame

__all__ = ["CoroutineKind", "UnawaitedCoroutine"]


@dataclass(frozen=True)
class UnawaitedCoroutine(Leak):
    """A coroutine that nobody awaited.

    name: its qualified name.  defined_at: file and line of its ``async def``.
    creation_stack: where it was made; only known where the program sets sys.set_coroutine_origin_tracking_depth().
    dropped_stack: what ran when it was dropped; for one that nobody kept, this is the line that made it.
    """

    kind: ClassVar[str] = "coroutine"

    name: str
    defined_at: tuple[str, int]
    creation_stack: list[FrameSummary] | None = None
    dropped_stack: list[FrameSummary] | None = None

    def place(self) -> tuple[str, int, str] | None:
        frame = user_frame(self.creation_stack or self.dropped_stack or ())
        if frame is None:
            return (*self.defined_at, self.name)
        return frame.filename, frame.lineno or 0, qualified_name(frame)

    def headline(self) -> str:
        what = "made" if self.creation_stack else "dropped"
        return f"coroutine {self.name}() was never awaited, {what} at {place_text(self.place())}"

    def labels(self) -> Mapping[str, list[str]]:
        return {
            "name": [self.name],
            "qualname": [self.name],
            "stack": [qualified_name(frame) for frame in self.dropped_stack or ()],
            "creator": [qualified_name(frame) for frame in self.creation_stack or ()],
            "module": [module_of(self.defined_at[0])],
        }

    def __str__(self) -> str:
        lines = [f"Coroutine Never Awaited: {self.name}", f"  Defined At: {self.defined_at[0]}:{self.defined_at[1]}"]
        if self.creation_stack:
            lines += ["  Creation Stack:", *indented(format_stack(self.creation_stack))]
        if self.dropped_stack:
            lines += ["  Dropped At:", *indented(format_stack(self.dropped_stack))]
        return "\n".join(lines)


class CoroutineKind(Kind):
    """Coroutines never awaited.  scope: as in ``no_task_leaks``; without a loop all of this thread count."""

    name: ClassVar[str] = "coroutines"
    error = UnawaitedCoroutineError
    grace_period: ClassVar[float] = 0.0
    refusal: ClassVar[str] = "A coroutine that was never awaited is gone: await it where it is made, or do not make it."

    def __init__(self, *, scope: Scope = "descendants") -> None:
        self._scope = check_scope(scope)

    def begin(self) -> "CoroutineSession":
        return CoroutineSession(self._scope)


class CoroutineSession(Session):
    """Coroutines dropped unawaited since it was made."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._thread = threading.get_ident()
        self._found: list[Leak] = []
        self._apart: list[Leak] = []
        self._token = Token() if isinstance(running_loop(), asyncio.AbstractEventLoop) else None
        _listen(self)

    def look(self) -> list[Leak]:
        return list(self._found)

    def settled(self) -> str | None:
        return "what was dropped stays dropped" if self._found else None

    def apart(self) -> list[Leak]:
        return list(self._apart)

    def end(self) -> None:
        _unlisten(self)
        if self._token is not None:
            self._token.close()

    def dropped(self, leak: Leak) -> None:
        mine = self._scope == "process" or threading.get_ident() == self._thread
        if mine and self._scope == "descendants" and self._token is not None:
            mine = self._token.covers_here()
        (self._found if mine else self._apart).append(leak)


_lock = threading.RLock()
_sessions: list[CoroutineSession] = []
_below: Callable[[Any], object] | None = None
_hook: Callable[[Any], object] | None = None  # what stands in its place


def _listen(session: CoroutineSession) -> None:
    global _below, _hook
    with _lock:
        _sessions.append(session)
        if _below is None:
            _below = getattr(warnings, "_warn_unawaited_coroutine", None)
            if _below is not None:  # which warns of the line that called it: ours must stand in no stack
                _hook = _core.calling_both(_dropped, _below)
                warnings._warn_unawaited_coroutine = _hook  # type: ignore[attr-defined]


def _unlisten(session: CoroutineSession) -> None:
    global _below, _hook
    with _lock:
        if session in _sessions:
            _sessions.remove(session)
        if not _sessions and _below is not None and getattr(warnings, "_warn_unawaited_coroutine", None) is _hook:
            warnings._warn_unawaited_coroutine = _below  # type: ignore[attr-defined]
            _below = _hook = None


def _dropped(coroutine: Any) -> None:
    """Called before ``warnings._warn_unawaited_coroutine``, which comes whatever becomes of this."""
    if _sessions:
        leak = _finding(coroutine)
        for session in list(_sessions):
            session.dropped(leak)


def _finding(coroutine: Any) -> UnawaitedCoroutine:
    code = coroutine.cr_code
    origin = getattr(coroutine, "cr_origin", None)
    made = (FrameSummary(file, line, name) for file, line, name in reversed(origin or ()))
    creation = StackSummary(made) or None
    # without _dropped and _finding themselves
    dropped: list[FrameSummary] = summary_from_raw(_core.creation_here(2))
    name = str(getattr(coroutine, "__qualname__", None) or code.co_qualname)
    return UnawaitedCoroutine(name, (code.co_filename, code.co_firstlineno), creation, dropped or None)
