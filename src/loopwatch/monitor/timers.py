"""Timers that wait on a loop, by callback; and, once they are suspected to grow, where they are scheduled.

Counting looks at the loop's own heap, at a part of it where there are many.  Where a timer was scheduled is noted only
from ``trace()`` on, by the hooks of ``no_timer_leaks``: they cost a little for each timer, and a suspicion is rare.
"""

import asyncio
import contextlib
from collections import Counter
from traceback import FrameSummary
from typing import Any

from loopwatch import _core
from loopwatch.leaks.origins import creation_of
from loopwatch.leaks.timerhandles import callback_of
from loopwatch.leaks.timers import code_of, name_of, passing_functions, plain_function, scheduling_names
from loopwatch.monitor.readings import TimerReading

__all__ = ["TimerBook"]

_LOOKED_AT = 2000


class TimerBook:
    """The timers of one loop."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._traced: Any = None
        self._serial = 0

    def count(self) -> tuple[TimerReading, ...]:
        """By callback, most first; those that only wake a task that sleeps, or serve a connection, are left out."""
        handles = _core.loop_timers(self._loop) or []
        stride = -(-len(handles) // _LOOKED_AT) or 1
        counts: Counter[Any] = Counter()
        for handle in handles[::stride]:
            callback = callback_of(handle)
            if callback is not None:
                counts[plain_function(callback)] += stride
        passing = passing_functions()
        found: dict[tuple[str, Any], int] = {}
        for function, count in counts.items():
            if function in passing or _is_internal(function):
                continue
            name, code = name_of(function), code_of(function)
            key = name, None if code is None else (code.co_filename, code.co_firstlineno, name)
            found[key] = found.get(key, 0) + count
        entries = [TimerReading(name, place, count) for (name, place), count in found.items()]
        return tuple(sorted(entries, key=lambda entry: -entry.count))

    @property
    def traced(self) -> bool:
        """Whether it is noted where timers are scheduled."""
        return self._traced is not None

    def trace(self) -> None:
        """In the loop's thread: note from now on where timers are scheduled."""
        if self._traced is None and isinstance(self._loop, asyncio.AbstractEventLoop) and not self._loop.is_closed():
            kind: Any = type(self._loop)
            self._serial = _core.origin_serial()
            self._traced = _core.timers_begin(self._loop, scheduling_names(kind), passing_functions())

    def origin(self, callback: str) -> list[FrameSummary] | None:
        """The creation stack of a timer of that callback, scheduled since ``trace()``; None where none is known."""
        if self._traced is None:
            return None
        for handle, origin, _ in self._traced.since(self._serial):
            function = callback_of(handle)
            if function is not None and name_of(plain_function(function)) == callback:
                return creation_of(origin)
        return None

    def end(self) -> None:
        """Note no longer."""
        traced, self._traced = self._traced, None
        if traced is not None:
            with contextlib.suppress(Exception):
                traced.end()


def _is_internal(function: Any) -> bool:
    """A private function of asyncio or uvloop: they time sleeps, timeouts and handshakes with these."""
    package = str(getattr(function, "__module__", None)).partition(".")[0]
    name = name_of(function).rpartition(".")[2]
    return package in ("asyncio", "_asyncio", "uvloop") and name.startswith(("_", "<lambda>"))
