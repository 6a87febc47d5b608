"""What a fault is: a function that blocks its thread on a marked line, for about as long as it is asked to.

The line is marked in the source with ``# culprit:<name>`` (several lines may carry the same mark: a loop has a head and
a body) and looked up in the text, so that no number in here goes stale.  A fault is armed before it happens: ``arm``
builds its input, threads or files outside of what is watched, calibrating work against the clock where a duration
cannot be asked for; the armed fault is then called once and returns how long it really took, in nanoseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

CALIBRATION = 0.01  # seconds of work from which a rate is read


def marked_lines(path: str, mark: str) -> frozenset[int]:
    """The numbers of the lines of a file that carry ``# culprit:<mark>``."""
    wanted = f"# culprit:{mark}"
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    found = frozenset(number for number, line in enumerate(lines, 1) if line.rstrip().endswith(wanted))
    if not found:
        raise LookupError(f"no line of {path} ends with {wanted!r}")
    return found


@dataclass
class Fault:
    """A blocking function, what is true about it, and how to make it last."""

    name: str
    function: Callable[[Any], object]
    prepare: Callable[[float], Any]
    causes: frozenset[str]
    why: str  # why these causes and no other
    calibrated: bool  # prepare takes units of work instead of seconds
    holder: Callable[[Any], object] | None  # what another thread runs meanwhile, when that one is to blame
    rate: float = field(default=0.0)  # units of work in a second, as far as known

    @cached_property
    def path(self) -> str:
        return inspect.getsourcefile(self.function) or ""

    @cached_property
    def lines(self) -> frozenset[int]:
        return marked_lines(self.path, self.name)

    @cached_property
    def holder_lines(self) -> frozenset[int]:
        return marked_lines(self.path, self.name + "_holder") if self.holder else frozenset()

    def arm(self, seconds: float) -> Armed:
        """Everything that must be there before it happens, made for about that many seconds."""
        if not self.calibrated:
            return Armed(self, self.prepare(seconds), seconds)
        if not self.rate:
            self._calibrate()
        return Armed(self, self.prepare(seconds * self.rate), seconds)

    def _calibrate(self) -> None:
        units = 16.0
        while True:
            armed = Armed(self, self.prepare(units), 0.0)
            armed()
            taken = armed.taken - armed.starved
            armed.close()
            if taken >= CALIBRATION:
                self.rate = units / taken
                return
            units *= 2 if taken <= 0 else min(16.0, max(1.5, 1.2 * CALIBRATION / taken))

    def learn(self, armed: Armed) -> None:
        """Draw the rate towards what was just seen, without the time in which others had the CPU."""
        own = armed.taken - armed.starved
        if self.calibrated and own > 0:
            self.rate *= min(1.5, max(0.67, armed.wanted / own)) ** 0.5

    def is_culprit(self, filename: str, line: int, function: str) -> bool:
        """Whether this is the line that blocks, in the function that blocks (or a generator expression on it)."""
        simple = function.rpartition(".")[2]
        return filename == self.path and line in self.lines and simple in (self.function.__name__, "<genexpr>")

    def is_holder(self, filename: str, line: int, function: str) -> bool:
        """Whether this is the line of the other thread that is to blame."""
        if self.holder is None or filename != self.path or line not in self.holder_lines:
            return False
        return function.rpartition(".")[2] == self.holder.__name__


def run_delay_ns() -> int:
    """How long this thread was ready to run so far, but the CPU was busy with others; 0 where that is not known."""
    try:
        file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        return 0
    try:
        return int(os.read(file, 100).split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    finally:
        os.close(file)


class Armed:
    """A fault that is ready to happen, once."""

    def __init__(self, fault: Fault, argument: Any, wanted: float) -> None:
        self.fault = fault
        self.argument = argument
        self.wanted = wanted
        self.entered = 0
        self.began = 0  # CLOCK_MONOTONIC, nanoseconds
        self.ended = 0
        self.left = 0  # when the loop's next iteration had begun; 0 without a loop
        self.starved_ns = 0
        self.result: object = None  # kept: freeing it would take time as well

    def __call__(self) -> int:
        self.entered = time.monotonic_ns()
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().call_soon(self._iteration_left)
        delay = run_delay_ns()
        self.began = time.monotonic_ns()
        self.result = self.fault.function(self.argument)
        self.ended = time.monotonic_ns()
        self.starved_ns = run_delay_ns() - delay
        return self.ended - self.began

    def _iteration_left(self) -> None:
        self.left = time.monotonic_ns()

    @property
    def taken(self) -> float:
        """How long it took, in seconds."""
        return (self.ended - self.began) / 1e9

    @property
    def at_most(self) -> float:
        """How long it took with all that the harness does until the loop's next iteration, in seconds."""
        return (max(self.left, self.ended) - self.entered) / 1e9

    @property
    def starved(self) -> float:
        """How much of it the CPU was busy with others, in seconds."""
        return self.starved_ns / 1e9

    def close(self) -> None:
        close = getattr(self.argument, "close", None)
        if close is not None:
            close()
        self.argument = self.result = None


FAULTS: dict[str, Fault] = {}


def fault(
    prepare: Callable[[float], Any],
    causes: Iterable[str],
    why: str,
    *,
    calibrated: bool = False,
    holder: Callable[[Any], object] | None = None,
) -> Callable[[Callable[[Any], object]], Callable[[Any], object]]:
    """Register the decorated function as a fault under its own name."""

    def register(function: Callable[[Any], object]) -> Callable[[Any], object]:
        name = function.__name__
        FAULTS[name] = Fault(name, function, prepare, frozenset(causes), why, calibrated, holder)
        return function

    return register
