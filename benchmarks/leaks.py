"""What tracking tasks costs: programs that do little but create tasks, bare, under ``no_task_leaks`` and under peers.

The unit is the ratio to the bare program, paired within each round, as in ``overhead.py``.  Guards follow: entering and
leaving one, with no other task alive and with 100,000.

Run: ``python benchmarks/leaks.py [--rounds 15] [--seconds 0.2]``
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import warnings
from time import perf_counter, perf_counter_ns
from typing import Any

from machine import describe_machine, quartiles
from overhead import compare
from programs import PROGRAMS, create_tasks

from loopwatch.leaks.tasks import no_task_leaks
from tools import Program, Tool, _on_loop, bare, debug_mode


def _ignore(findings: object) -> None:
    """An action that does nothing."""


async def gathered(units: int) -> float:
    """A hundred tasks at once."""

    async def nothing() -> None:
        pass

    began = perf_counter()
    for _ in range(units // 100 or 1):
        await asyncio.gather(*(asyncio.create_task(nothing()) for _ in range(100)))
    return perf_counter() - began


async def deep(units: int, depth: int = 30) -> float:
    """Tasks created below thirty calls."""
    if depth:
        return await deep(units, depth - 1)
    return await create_tasks(units)


def tools() -> dict[str, Tool]:
    warnings.simplefilter("ignore", ResourceWarning)
    found: dict[str, Tool] = {
        "bare": bare,
        "loopwatch": lambda program, units: _on_loop(program, units, lambda: no_task_leaks(action=_ignore)),
        "asyncio debug mode": debug_mode,
    }
    try:
        from pyleak import no_task_leaks as pyleak_tasks
    except ImportError:
        return found
    found["pyleak"] = lambda program, units: _on_loop(
        program, units, lambda: pyleak_tasks(enable_creation_tracking=True)
    )
    return found


async def _guards(count: int, alive: int) -> list[float]:
    held = [asyncio.create_task(asyncio.sleep(3600)) for _ in range(alive)]
    await asyncio.sleep(0)
    taken = []
    for _ in range(count):
        began = perf_counter_ns()
        async with no_task_leaks(action=_ignore):
            pass
        taken.append((perf_counter_ns() - began) / 1e3)
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--guards", action="store_true", help="the guards only")
    options = parser.parse_args()
    print(f"## Tracking tasks\n\n{describe_machine()}; {options.rounds} rounds of {options.seconds} s\n")
    if not options.guards:
        compared = tools()
        others = [name for name in compared if name != "bare"]
        print("| program | " + " | ".join(others) + " |\n| --- |" + " ---: |" * len(others))
        programs: dict[str, Program] = {"create and await": create_tasks, "gather": gathered, "deep stack": deep}
        echo: Any = next((program for name, program in PROGRAMS.items() if "echo" in name), None)
        if echo is not None:
            programs["echo"] = echo
        for name, program in programs.items():
            ratios = compare(name, program, compared, options.rounds, options.seconds)
            cells = []
            for tool in others:
                low, middle, high = quartiles(ratios[tool])
                cells.append(f"**{middle:.3f}** ({low:.3f} to {high:.3f})")
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        print()
    for alive in (0, 100_000):
        taken = asyncio.run(_guards(2000, alive))
        low, middle, high = quartiles(taken)
        print(
            f"guard entered and left, {alive:,} tasks alive: **{middle:.1f} us** ({low:.1f} to {high:.1f})", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
