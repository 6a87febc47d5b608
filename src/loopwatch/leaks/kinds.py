"""The interface of a kind of leak.

A ``Kind`` is a rule such as "threads"; entering a guard begins a ``Session`` of it, which tells at the exit what is
left; what is left are ``Leak`` objects, immutable and picklable.  The guard (``guard.py``) does all the rest: waiting,
filters, suppressions, actions, errors.
"""

import abc
import asyncio
from collections.abc import Collection, Mapping, Sequence
from traceback import FrameSummary
from typing import TYPE_CHECKING, Any, ClassVar

from loopwatch.errors import EventLoopBlockError, ScopeLeakError
from loopwatch.stacks import making_module, module_of, qualified_name, user_frame

if TYPE_CHECKING:
    from loopwatch.leaks.owners import Search

__all__ = ["Kind", "Leak", "Session", "module_of"]


class Leak(abc.ABC):
    """One thing left behind.  Subclasses are frozen dataclasses.

    ``kind`` is "task", "thread", "async_generator", "timer", "descriptor", "process", "loop", "executor",
    "destroyed_task", "task_exception" or "coroutine".  ``creation_stack`` is outermost first, None where unknown.
    Fields named in ``live`` hold live objects: they are None in a copy that was pickled.
    """

    kind: ClassVar[str]
    live: ClassVar[tuple[str, ...]] = ()
    name: str
    creation_stack: list[FrameSummary] | None

    @abc.abstractmethod
    def headline(self) -> str:
        """Say in one line what it is, where it was created and what it waits for."""

    def place(self) -> tuple[str, int, str] | None:
        """File, line and qualified name of the program's line that created it; None where unknown."""
        frame = user_frame(self.creation_stack or ())
        return None if frame is None else (frame.filename, frame.lineno or 0, qualified_name(frame))

    def nature(self) -> str:
        """What it is, in words that are the same in every run, for a baseline that knows no place of it."""
        return self.name

    def labels(self) -> Mapping[str, Sequence[str]]:
        """What a suppression can match: "name", "qualname", "stack", "creator", "module", each a list of strings."""
        creation = self.creation_stack or []
        module = making_module(creation)
        return {
            "name": [self.name],
            "qualname": [],
            "stack": [],
            "creator": [qualified_name(frame) for frame in creation],
            "module": [] if module is None else [module],
        }

    def about(self) -> Sequence[object]:
        """The threads and process ids that it is about."""
        return ()

    def covers(self) -> Collection[object]:
        """Threads and process ids that it tells of too: findings that are about nothing else are left out."""
        return ()

    @abc.abstractmethod
    def __str__(self) -> str: ...

    def __getstate__(self) -> dict[str, Any]:
        return {name: None if name in self.live else value for name, value in vars(self).items()}


class Session(abc.ABC):
    """One visit of one kind, from a guard's entry to its exit."""

    @abc.abstractmethod
    def look(self) -> list[Leak]:
        """What is left now.  Changes nothing; cheap where nothing is left.  Called again and again at the exit."""

    def settled(self) -> str | None:
        """Why waiting longer cannot change anything; None while it may."""
        return None

    def complete(self, leaks: Sequence[Leak], search: "Search") -> list[Leak]:
        """The same findings with what is dear to find out: called once, for those that are about to be reported."""
        return list(leaks)

    def cancel(self, leaks: Sequence[Leak]) -> list[Leak]:
        """Ask leaks to end, without waiting; returns those that cannot be asked."""
        return list(leaks)

    def apart(self) -> list[Leak]:
        """What was seen meanwhile but is not this scope's fault: told apart, fails nothing."""
        return []

    @abc.abstractmethod
    def end(self) -> None:
        """Undo everything.  May be called twice and from another thread or task; never raises."""


class Kind(abc.ABC):
    """A rule.  ``name`` is its option in ``no_leaks``, such as "tasks".

    A kind that ``needs_loop`` can begin only where an event loop runs, and is left on that loop.  ``error`` is what is
    raised for its leaks.
    ``grace_period`` is how many seconds a guard waits at most for its leaks to end, unless told otherwise.
    ``refusal`` says why its leaks cannot be cancelled, where that is so.  Options of its own are keyword arguments of
    its ``__init__``.
    """

    name: ClassVar[str]
    needs_loop: ClassVar[bool] = False
    error: ClassVar[type[ScopeLeakError] | type[EventLoopBlockError]]
    grace_period: ClassVar[float] = 0.1
    refusal: ClassVar[str] = "This cannot be cancelled."

    def can_begin(self) -> bool:
        """Whether a session can begin here: a kind that needs a loop needs a running one of asyncio."""
        return not self.needs_loop or asyncio._get_running_loop() is not None

    @abc.abstractmethod
    def begin(self) -> Session:
        """Begin a session here and now; O(1)."""
