"""One trial: a fault of a wished length happens under a guard, and what was reported is held against what was true.

The truth comes from two clock readings around the blocking function itself.  What else the iteration does (waking the
task, setting an event) takes some microseconds and is part of the reported duration; the tolerance covers it.  The
collector is off during a trial, so that its pauses are not a second fault.
"""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass
from typing import Any

from loopwatch import no_event_loop_blocking

from .contexts import CONTEXTS, runner
from .registry import Armed, Fault

MACHINE_CAUSES = {"starved", "stopped"}  # told apart from blocks of the program


def tolerance(seconds: float) -> float:
    """How far a reported duration may be from the true one: 2 ms or 1 %, the larger."""
    return max(0.002, 0.01 * seconds)


def must_report(seconds: float, threshold: float) -> bool:
    return seconds >= max(1.02 * threshold, threshold + 0.002)


def must_not_report(seconds: float, threshold: float) -> bool:
    return seconds <= min(0.98 * threshold, threshold - 0.002)


@dataclass
class Outcome:
    """What a trial showed."""

    fault: Fault
    context: str
    threshold: float
    taken: float  # the truth, seconds
    blocks: list[Any]

    @property
    def own(self) -> list[Any]:
        """The reports, without those that say that the machine, not the program, was to blame."""
        return [block for block in self.blocks if cause_of(block) not in MACHINE_CAUSES]

    @property
    def error(self) -> float:
        """Reported minus true duration, in seconds."""
        return float(self.own[0].duration) - self.taken

    @property
    def stack_right(self) -> bool:
        return stack_names(self.own[0], self.fault)

    @property
    def culprit_right(self) -> bool:
        return culprit_names(self.own[0], self.fault)

    @property
    def cause_right(self) -> bool:
        return cause_of(self.own[0]) in self.fault.causes

    def describe(self) -> str:
        lines = [f"{self.fault.name} in {self.context}: {self.taken:.4f} s, threshold {self.threshold}"]
        for block in self.blocks:
            lines.append(f"  {block.duration:.4f} s cause {cause_of(block)} culprit {block.culprit}")
            lines += [f"    {s.duration:.4f} s {getattr(s.cause, 'value', s.cause)}" for s in block.segments]
            lines += [f"      {f.filename}:{f.lineno} {f.name}" for f in block.blocking_stack[-4:]]
        wanted = f"{sorted(self.fault.lines)} of {self.fault.path}, cause {sorted(self.fault.causes)}"
        return "\n".join([*lines, f"  expected line {wanted}"])


def cause_of(block: Any) -> str:
    return str(getattr(block.cause, "value", block.cause))


def stack_names(block: Any, fault: Fault) -> bool:
    """Whether the innermost frame of the stack that lies in the fault's file is the line that blocks."""
    mine = [frame for frame in block.blocking_stack if frame.filename == fault.path]
    if not mine:
        return False
    last = mine[-1]
    return fault.is_culprit(last.filename, last.lineno, last.name) or fault.is_holder(
        last.filename, last.lineno, last.name
    )


def culprit_names(block: Any, fault: Fault) -> bool:
    """Whether the one line that is blamed is the right one: the holder's, when another thread held the GIL."""
    if block.culprit is None:
        return False
    filename, line, name = block.culprit[:3]
    if fault.holder is not None:
        return fault.is_holder(filename, line, name)
    return fault.is_culprit(filename, line, name)


async def watched(armed: Armed, context: str, threshold: float, pause: float, **options: Any) -> list[Any]:
    """Have the fault happen in that context under a guard, some time after the guard was entered."""
    async with no_event_loop_blocking(action=lambda findings: None, threshold=threshold, **options) as guard:
        await asyncio.sleep(pause)
        await CONTEXTS[context](armed)
        await asyncio.sleep(0)
    return list(guard.blocks)


def run_trial(
    fault: Fault, context: str, threshold: float, wanted: float, pause: float = 0.001, **options: Any
) -> Outcome:
    """Arm the fault, have it happen on a new loop, and compare."""
    armed = fault.arm(wanted)
    enabled = gc.isenabled()
    gc.disable()
    try:
        blocks = runner(context)(watched(armed, context, threshold, pause, **options))
    finally:
        if enabled:
            gc.enable()
        taken = armed.taken
        armed.close()
    fault.learn(wanted, taken)
    return Outcome(fault, context, threshold, taken, blocks)
