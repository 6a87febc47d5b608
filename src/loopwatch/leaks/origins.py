"""What the kinds of resources share: whose a thing is, where it was made, and how it is told.

A session leaves its mark in a context variable at the entry; tasks and callbacks inherit it, and the core notes it with
each thing that is made.  What was made on the loop's own thread without the mark is another scope's, and told apart.
"""

import contextlib
import itertools
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextvars import Token
from dataclasses import dataclass, field, replace
from traceback import FrameSummary, StackSummary
from typing import TYPE_CHECKING, Any, ClassVar

from loopwatch import _core
from loopwatch.findings import place_text
from loopwatch.leaks.kinds import Leak, Session
from loopwatch.printable import printable
from loopwatch.stacks import (
    Frame,
    format_stack,
    frames_from_raw,
    is_library,
    is_runner,
    qualified_name,
    summary_from_raw,
)

if TYPE_CHECKING:
    from loopwatch._core import Origin
    from loopwatch.leaks.owners import Search

__all__ = ["Resource", "ResourceSession", "creation_of", "one_frame", "with_holders", "without_runners"]

_marks = itertools.count(1)


@dataclass(frozen=True)
class Resource(Leak):
    """What all leaked resources have.  ``name`` is what a name filter matches."""

    title: ClassVar[str]
    made: ClassVar[str] = "created"
    unknown: ClassVar[str] = "it was made by C code, or past the functions that loopwatch watches"

    name: str
    creation_stack: list[FrameSummary] | None
    unsearched: str | None = field(default=None, kw_only=True, compare=False)
    """Why its owner or holder was not found, where the search for them was cut short."""

    def facts(self) -> Iterable[tuple[str, str | None]]:
        """What is known of it besides, as (label, text); those without a text are left out."""
        return ()

    def tail(self) -> str:
        """What the one line says after its place."""
        return ""

    def format_creation_stack(self) -> str:
        """The stack of the line that made it, as a traceback shows it; where there is none, say why."""
        if self.creation_stack:
            return format_stack(_shown(self.creation_stack))
        return f"No creation stack available: {self.unknown}"

    def headline(self) -> str:
        place = f" {self.made} at {place_text(self.place())}" if self.creation_stack else ""
        tail = self.tail()
        return f"{self.title.lower()} {printable(self.name)}{place}" + (f": {tail}" if tail else "")

    def __str__(self) -> str:
        lines = [f"Leaked {self.title}: {printable(self.name)}"]
        lines += [f"  {label}: {printable(text)}" for label, text in self.facts() if text]
        lines.append("  Creation Stack:")
        return "\n".join([*lines, *(f"    {line}" for line in self.format_creation_stack().splitlines())])


class ResourceSession(Session):
    """A session that knows which makings are its own.  ``serial`` is that of the newest making at the entry."""

    def __init__(self) -> None:
        self.serial = _core.origin_serial()
        self.looks = 0
        self._thread = threading.get_ident()
        self._mark = next(_marks)
        self._token: Token[tuple[int, ...]] | None = None
        self._token = _core.RESOURCE_SCOPE.set((*_core.RESOURCE_SCOPE.get(()), self._mark))

    def foreign(self, origin: "Origin | None") -> bool:
        """Whether something was made on this thread, but not by what runs on behalf of this scope.

        Told only where the mark reached the exit: a guard that was entered in another context marked nobody's work.
        """
        if origin is None or origin.thread != self._thread or self._mark in (origin.scope or ()):
            return False
        return self._mark in _core.RESOURCE_SCOPE.get(())

    def end(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            with contextlib.suppress(ValueError):  # left in another context: that one never saw the mark
                _core.RESOURCE_SCOPE.reset(token)


_TEST_CALLERS = (
    "/_pytest/python.py",
    "/_pytest/fixtures.py",
    "/_pytest/unittest.py",
    "/loopwatch/pytest_plugin/wrapping.py",
)
_UNITTEST_CALLERS = ("_callTestMethod", "_callSetUp", "_callTearDown", "_callCleanup", "_doClassCleanups")
_STARTERS = ("_run_once", "_run", "run_forever", "run_until_complete", "run", "wrapper")


def creation_of(origin: "Origin | None") -> list[FrameSummary] | None:
    """The stack of a making, from the first frame that is the program's: those outside run every program."""
    return None if origin is None else without_runners(summary_from_raw(origin.frames())) or None


def without_runners(frames: list[FrameSummary]) -> list[FrameSummary]:
    """A creation stack without its outer frames that run every program: what a loop called, what a thread runs."""
    frames = StackSummary(frames)
    while len(frames) > 1 and is_runner(frames[0].filename):
        del frames[0]
    for number in range(len(frames) - 1, 0, -1):  # what a loop called: the frames before it say how it was started
        outer = frames[number - 1]
        if (is_runner(outer.filename) and outer.name in _STARTERS) or _calls_tests(outer):
            del frames[:number]
            break
    while len(frames) > 1 and is_runner(frames[0].filename):
        del frames[0]
    return frames


def _calls_tests(frame: FrameSummary) -> bool:
    """Whether what this frame calls is a test, a fixture or the like.  Tests call unittest's other methods back."""
    if frame.filename.endswith("/unittest/case.py"):
        return frame.name in _UNITTEST_CALLERS
    return frame.filename.endswith(_TEST_CALLERS)


def _shown(frames: Sequence[FrameSummary]) -> Sequence[FrameSummary]:
    """A creation stack without what the library does inside of the call that the program made."""
    last = max((number for number, frame in enumerate(frames) if not is_library(frame.filename)), default=len(frames))
    return frames[: last + 2]


def one_frame(filename: str, qualname: str, line: int) -> Frame:
    """A frame of which only the line is known, with its source."""
    return frames_from_raw([(filename, qualname, line, 0, -1, -1)])[0]


def creators(frames: Sequence[FrameSummary] | None) -> list[str]:
    return [qualified_name(frame) for frame in frames or ()]


def merged(labels: Mapping[str, Sequence[str]], **more: Sequence[str]) -> dict[str, Sequence[str]]:
    """Labels with more of them."""
    return {**labels, **{key: [*labels.get(key, ()), *values] for key, values in more.items()}}


def with_holders(leaks: Sequence[Any], things: Sequence[Any], search: "Search") -> list[Leak]:
    """The findings with who holds the thing of each; a thing that is None has no holder."""
    search.hide(things)
    search.look([thing for thing in things if thing is not None])
    found: list[Leak] = []
    for leak, thing in zip(leaks, things, strict=True):
        holder = None if thing is None else search.holder_of(thing)
        found.append(replace(leak, holder=holder, unsearched=None if holder else search.cut))
    return found
