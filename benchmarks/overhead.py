"""What watching costs: five programs under no tool, loopwatch, asyncio's debug mode and two peers, in one process.

The unit is the ratio to the bare program, paired within each round: every round runs every tool once, in rotated order,
each on a fresh loop, with the garbage collector off and run in between.  A tool that slows a program down much gets
proportionally less of the same work.  Shown are medians with their quartiles.  uvloop has a table of its own; guards,
the watchdog and wake-ups follow (see ``upkeep.py``).

Run: ``python benchmarks/overhead.py [--rounds 15] [--json FILE]``
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from machine import describe_machine, machine_facts, quartiles
from programs import PROGRAMS

from tools import Program, Tool, missing, selector_tools, uvloop_tools

SECONDS = 0.2  # of each run
PROBE_UNITS = 500


def timed(tool: Tool, program: Program, units: int) -> float:
    gc.collect()
    gc.disable()
    try:
        return tool(program, units)
    finally:
        gc.enable()


def units_for(tool: Tool, program: Program, seconds: float) -> int:
    """How much work takes that tool so long; a multiple of fifty."""
    units, taken = PROBE_UNITS, timed(tool, program, PROBE_UNITS)
    while taken < seconds / 4:
        units = int(units * min(8.0, max(2.0, seconds / 2 / taken)))
        taken = timed(tool, program, units)
    return max(50, round(units * seconds / taken / 50) * 50)


def compare(name: str, program: Program, tools: dict[str, Tool], rounds: int, seconds: float) -> dict[str, list[float]]:
    """The ratios to bare of every tool, one a round."""
    names = list(tools)
    full = units_for(tools["bare"], program, seconds)
    # a tool that costs little does the very same work as bare; one that costs much would take minutes over it
    units = {tool: min(full, units_for(tools[tool], program, seconds)) for tool in names}
    units = {tool: full if own > full / 2 else own for tool, own in units.items()}
    ratios: dict[str, list[float]] = {tool: [] for tool in names}
    for turn in range(rounds):
        shift = turn % len(names)
        order = names[shift:] + names[:shift]
        if turn // len(names) % 2:
            order.reverse()
        each = {tool: timed(tools[tool], program, units[tool]) / units[tool] for tool in order}
        for tool in names:
            ratios[tool].append(each[tool] / each["bare"])
        print(f"\r{name}: round {turn + 1}/{rounds}   ", end="", file=sys.stderr, flush=True)
    ratios["bare"] = [full]  # kept: the units, of which the absolute time follows
    print(file=sys.stderr)
    return ratios


def bare_cost(tools: dict[str, Tool], program: Program, units: int) -> float:
    """Microseconds a unit takes without a tool."""
    return statistics.median(timed(tools["bare"], program, units) for _ in range(5)) / units * 1e6


def table(title: str, tools: dict[str, Tool], rounds: int, seconds: float) -> tuple[str, dict[str, Any]]:
    others = [tool for tool in tools if tool != "bare"]
    lines = [f"### {title}", "", "| program | bare, µs a unit | " + " | ".join(others) + " |"]
    lines.append("| --- | ---: |" + " ---: |" * len(others))
    figures: dict[str, Any] = {}
    medians: dict[str, list[float]] = {tool: [] for tool in others}
    for name, program in PROGRAMS.items():
        ratios = compare(name, program, tools, rounds, seconds)
        cost = bare_cost(tools, program, int(ratios["bare"][0]))
        cells = []
        figures[name] = {"bare_us": cost, "ratios": {tool: ratios[tool] for tool in others}}
        for tool in others:
            low, middle, high = quartiles(ratios[tool])
            medians[tool].append(middle)
            digits = 3 if middle < 2 else 1
            cells.append(f"**{middle:.{digits}f}** ({low:.{digits}f} to {high:.{digits}f})")
        lines.append(f"| {name} | {cost:.2f} | " + " | ".join(cells) + " |")
    for label, pick in (("median of the five", statistics.median), ("largest of the five", max)):
        lines.append(f"| {label} | | " + " | ".join(f"**{pick(medians[tool]):.3f}**" for tool in others) + " |")
    return "\n".join(lines) + "\n", figures


def upkeep() -> tuple[str, dict[str, Any]]:
    from upkeep import GUARDS, after_the_last_guard, guard_times, idle_wakeups, watchdog_shares

    guards, shares, wakeups = guard_times(), watchdog_shares(), idle_wakeups()
    left = after_the_last_guard()
    lines = ["### Besides", "", "| what | figure |", "| --- | ---: |"]
    for what, (low, middle, high) in guards.items():
        lines.append(f"| guard {what} (of {GUARDS:,}) | **{middle:.2f} µs** ({low:.2f} to {high:.2f}) |")
    for what, share in shares.items():
        lines.append(f"| watchdog, {what} | **{share:.3f} %** of one core |")
    for what, count in wakeups.items():
        lines.append(f"| wake-ups of a loop that waits 2 s, {what} | **{count}** |")
    lines.append(f"| process once no guard is open | **{left:.3f} %** of one core |")
    figures = {"guards_us": guards, "watchdog_percent": shares, "wakeups": wakeups, "after_percent": left}
    return "\n".join(lines) + "\n", figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each program (default 15)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"seconds of each run (default {SECONDS})")
    parser.add_argument("--only", choices=("asyncio", "uvloop", "besides"), help="one of the three tables")
    parser.add_argument("--no-peers", action="store_true", help="bare against loopwatch only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")

    figures: dict[str, Any] = {"machine": machine_facts(), "rounds": options.rounds}
    print(f"## Overhead\n\n{describe_machine()}; {options.rounds} rounds of {options.seconds} s")
    print("Time over the bare program's: median (quartiles); below 1 is faster than bare.\n")
    selector, uv = selector_tools(), uvloop_tools()
    for tool, reason in missing.items():
        print(f"{tool} left out: {reason}\n")
    if options.no_peers:
        selector = {name: tool for name, tool in selector.items() if name in ("bare", "loopwatch")}
    if options.only in (None, "asyncio"):
        text, figures["asyncio"] = table("asyncio's selector loop", selector, options.rounds, options.seconds)
        print(text, flush=True)
    if options.only in (None, "uvloop") and uv:
        text, figures["uvloop"] = table("uvloop", uv, options.rounds, options.seconds)
        print(text, flush=True)
    if options.only in (None, "besides") and "loopwatch" not in missing:
        text, figures["besides"] = upkeep()
        print(text, flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
