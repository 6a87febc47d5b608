"""One trial: a fault of a wished length happens under a guard, and what was reported is held against what was true.

The truth comes from two clock readings around the blocking function itself, and a third in the loop's next iteration:
what else the iteration does (waking the task, setting an event, being preempted meanwhile) lies between the last two.
How long the thread was kept from running by others is read from the kernel, independently of loopwatch.  The
collector is off during a trial, so that its pauses are not a second fault.
"""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass
from typing import Any

from loopwatch import no_event_loop_blocking

from .contexts import CONTEXTS, LoopFactory, run_in
from .registry import Armed, Fault


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
    at_most: float  # until the next iteration, seconds
    starved: float  # of it, seconds
    blocks: list[Any]
    stalls: list[Any]  # what was told apart from them: the machine, not the program, was to blame

    @property
    def error(self) -> float:
        """Reported duration minus that of the blocking function, in seconds."""
        return float(self.blocks[0].duration) - self.taken

    @property
    def duration_right(self) -> bool:
        """Whether the reported duration is that of the iteration, but for the tolerance."""
        return self.taken - tolerance(self.taken) <= self.blocks[0].duration <= self.at_most + tolerance(self.at_most)

    @property
    def due(self) -> bool:
        """Whether it must be reported: long enough, also without the time in which others had the CPU."""
        return must_report(self.taken - self.starved, self.threshold)

    @property
    def too_short(self) -> bool:
        """Whether it must not be reported."""
        return must_not_report(self.at_most, self.threshold)

    @property
    def stack_right(self) -> bool:
        return stack_names(self.blocks[0], self.fault)

    @property
    def culprit_right(self) -> bool:
        return culprit_names(self.blocks[0], self.fault)

    @property
    def cause_right(self) -> bool:
        return cause_of(self.blocks[0]) in self.fault.causes

    def describe(self) -> str:
        lines = [f"{self.fault.name} in {self.context}: {self.taken:.4f} to {self.at_most:.4f} s, "]
        lines[0] += f"starved {self.starved:.4f} s, threshold {self.threshold} s"
        for block in [*self.blocks, *self.stalls]:
            lines.append(f"  {block.duration:.4f} s{' STALL' * block.stall}, cause {cause_of(block)}, {block.culprit}")
            lines[-1] += f", starved {block.starved:.4f}"
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


async def watched(
    armed: Armed, context: str, threshold: float, pause: float, **options: Any
) -> tuple[list[Any], list[Any]]:
    """Have the fault happen in that context under a guard, some time after the guard was entered."""
    async with no_event_loop_blocking(action=lambda findings: None, threshold=threshold, **options) as guard:
        await asyncio.sleep(pause)
        await CONTEXTS[context](armed)
        await asyncio.sleep(0)
    return guard.blocks, guard.stalls


def run_trial(
    fault: Fault,
    context: str,
    threshold: float,
    wanted: float,
    pause: float = 0.001,
    make_loop: LoopFactory = None,
    **options: Any,
) -> Outcome:
    """Arm the fault, have it happen on a new loop, and compare."""
    armed = fault.arm(wanted)
    enabled = gc.isenabled()
    gc.disable()
    try:
        blocks, stalls = run_in(context, watched(armed, context, threshold, pause, **options), make_loop)
    finally:
        if enabled:
            gc.enable()
        armed.close()
    fault.learn(armed)
    return Outcome(fault, context, threshold, armed.taken, armed.at_most, armed.starved, blocks, stalls)
