"""What a Monitor costs: the five programs with one over without, with few and with 100,000 live tasks; and a sample.

Measured as in ``overhead.py``: ratios paired within each round, in one process, in changing order; medians with
quartiles.  The live tasks wait for a future each, on the same loop, with and without the monitor.

Run: ``python benchmarks/monitor.py [--rounds 9] [--tasks 100000]``
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from contextlib import nullcontext

from machine import describe_machine, quartiles
from overhead import compare
from programs import PROGRAMS

from loopwatch import _core
from loopwatch.monitor import Monitor
from tools import Program, Tool, _on_loop


async def _wait(future: asyncio.Future[None]) -> None:
    await future


def crowded(program: Program, tasks: int) -> Program:
    """The program, among so many tasks that only wait."""

    async def run(units: int) -> float:
        loop = asyncio.get_running_loop()
        end = loop.create_future()
        others = [asyncio.create_task(_wait(end)) for _ in range(tasks)]
        await asyncio.sleep(0)
        taken = await program(units)
        end.set_result(None)
        await asyncio.gather(*others)
        return taken

    return run


def tools(interval: float) -> dict[str, Tool]:
    def watched(program: Program, units: int) -> float:
        return _on_loop(program, units, lambda: Monitor(interval=interval, on_alarm=lambda alarm: None))

    return {"bare": lambda program, units: _on_loop(program, units, nullcontext), "Monitor": watched}


def table(tasks: int, rounds: int, seconds: float, interval: float) -> None:
    print(f"### {tasks:,} live tasks\n\n| program | Monitor on over bare |\n| --- | ---: |")
    medians = []
    for name, program in PROGRAMS.items():
        ratios = compare(name, crowded(program, tasks), tools(interval), rounds, seconds)["Monitor"]
        low, middle, high = quartiles(ratios)
        medians.append(middle)
        print(f"| {name} | **{middle:.3f}** ({low:.3f} to {high:.3f}) |", flush=True)
    print(f"| median of the five | **{statistics.median(medians):.3f}** |")
    print(f"| largest of the five | **{max(medians):.3f}** |\n")


def sample_cost(tasks: int) -> None:
    """CPU time of walking all tasks, and of the longest slice in which the GIL is held."""

    async def measure(units: int) -> float:
        totals, slices = [], []
        for _ in range(9):
            began, longest = time.thread_time(), 0.0
            sampler = _core.task_sampler(10**9)
            done = False
            while not done:
                before = time.thread_time()
                done = sampler.step(500_000)
                longest = max(longest, time.thread_time() - before)
            before = time.thread_time()
            sampler.result()
            longest = max(longest, time.thread_time() - before)
            totals.append((time.thread_time() - began) * 1e3)
            slices.append(longest * 1e3)
        print(f"one sample of {tasks:,} tasks: {statistics.median(totals):.1f} ms of CPU ({min(totals):.1f} to "
              f"{max(totals):.1f}); longest slice {statistics.median(slices):.2f} ms")  # fmt: skip
        return 0.0

    _on_loop(crowded(measure, tasks), 0, lambda: Monitor(interval=60))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each program (default 9)")
    parser.add_argument("--seconds", type=float, default=0.2, help="seconds of each run (default 0.2)")
    parser.add_argument("--tasks", type=int, default=100_000, help="live tasks of the second table (default 100,000)")
    parser.add_argument("--interval", type=float, default=10.0, help="the monitor's interval (default 10)")
    options = parser.parse_args()
    print(f"## Monitor\n\n{describe_machine()}; {options.rounds} rounds of {options.seconds} s\n")
    table(10, options.rounds, options.seconds, options.interval)
    table(options.tasks, max(3, options.rounds // 2), options.seconds, options.interval)
    sample_cost(options.tasks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
