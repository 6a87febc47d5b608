"""How much CPU time a guard's exit may spend on explaining what it found, while the event loop stands still.

``allowed()`` is asked where the time is spent.  A test may take longer than a service and has a larger heap to search:
the pytest plugin allows it ten times as much.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["IN_TESTS", "Effort", "allow", "allowed"]


@dataclass(frozen=True)
class Effort:
    """Seconds of CPU time.

    holders: to find who owns and holds what was left open.  proofs: to prove that tasks can never wake, enough for some
    70,000 objects.
    """

    holders: float = 0.05
    proofs: float = 0.03


USUAL = Effort()
IN_TESTS = Effort(holders=0.5, proofs=0.3)
_allowed: ContextVar[Effort] = ContextVar("loopwatch_effort", default=USUAL)


def allowed() -> Effort:
    """What may be spent here and now."""
    return _allowed.get()


@contextlib.contextmanager
def allow(effort: Effort) -> Iterator[None]:
    """Allow this much to what runs inside."""
    token = _allowed.set(effort)
    try:
        yield
    finally:
        _allowed.reset(token)
