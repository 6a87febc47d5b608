"""What telling blocking calls costs: a call-heavy program bare, under both engines and under the registry's monitor.

All in one process, interleaved, in rotated order; the unit is the ratio to bare within a round.  The program makes
orders and adds up their prices: some million short calls a second, most of Python functions, none of them long, all
between two awaits, so that a tool that hooks calls shows all that it costs.  Measured is the CPU time of the program's
thread; loopwatch's own thread, which looks from outside, is told apart, as its share of a core.

Run: ``python benchmarks/calls.py [--rounds 15] [--json FILE]``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe_machine, machine_facts, quartiles

PEER = "asyncio_event_loop_monitor"
SLICES = 9  # of each run; the fastest counts: a busy machine takes the CPU away in the others
THRESHOLD_MS = 2000.0  # nothing is told: only the watching costs


class Order:
    def __init__(self, number: int) -> None:
        self.number = number
        self.prices = [number % 7 + item for item in range(5)]

    def price(self, item: int) -> int:
        return self.prices[item] * 3

    def total(self) -> int:
        total = 0
        for item in range(len(self.prices)):
            total += self.price(item)
        return total


def rebate(amount: int) -> int:
    return amount // 10 if amount > 100 else 0


def order(number: int) -> int:
    made = Order(number)
    amount = made.total()
    return max(amount - rebate(amount), 0)


async def call_heavy(units: int) -> float:
    began = time.thread_time()
    for number in range(units):
        order(number)
        if number % 100 == 99:
            await asyncio.sleep(0)
    return time.thread_time() - began


def _run(units: int, context: Callable[[], Any]) -> float:
    async def main() -> float:
        with context():
            await asyncio.sleep(0)
            return min([await call_heavy(units) for _ in range(SLICES)])

    return asyncio.run(main())


def _nothing(info: object) -> None:
    pass


def tools() -> dict[str, Callable[[], Any]]:
    """A context manager for each tool; the peer only where it is installed."""
    from loopwatch import event_loop_monitor_ctx

    found: dict[str, Callable[[], Any]] = {
        "bare": contextlib.nullcontext,
        "loopwatch, sample": lambda: event_loop_monitor_ctx(50.0, on_blocking_call=_nothing),
        "loopwatch, exact": lambda: event_loop_monitor_ctx(THRESHOLD_MS, on_blocking_call=_nothing, engine="exact"),
    }
    with contextlib.suppress(ImportError):
        peer = importlib.import_module(PEER)
        found[PEER] = lambda: peer.event_loop_monitor_ctx(threshold_ms=THRESHOLD_MS, on_blocking_call=_nothing)
    return found


def ratios(rounds: int, seconds: float) -> tuple[dict[str, list[float]], float, float]:
    """The ratios to bare of every tool, one a round, bare's microseconds an order, and the watchdog's share."""
    from loopwatch import _core

    known = tools()
    names = list(known)
    units = max(200, round(1000 * seconds / SLICES / min(_run(1000, known["bare"]) for _ in range(5)) / 100) * 100)
    each = {name: units if name != PEER else max(100, units // 40 // 100 * 100) for name in names}
    for name in names:
        _run(each[name] // 2, known[name])
    found: dict[str, list[float]] = {name: [] for name in names}
    bare = []
    watchdog = wall = 0.0
    for turn in range(rounds):
        shift = turn % len(names)
        order_now = names[shift:] + names[:shift]
        if turn // len(names) % 2:
            order_now.reverse()
        taken = {}
        for name in order_now:
            gc.collect()
            gc.disable()
            began, used = time.perf_counter(), _core.watchdog_info()["cpu_ns"]
            taken[name] = _run(each[name], known[name]) / each[name]
            if name == "loopwatch, sample":
                watchdog += (_core.watchdog_info()["cpu_ns"] - used) / 1e9
                wall += time.perf_counter() - began
            gc.enable()
        bare.append(taken["bare"])
        for name in names:
            found[name].append(taken[name] / taken["bare"])
        print(f"\rround {turn + 1}/{rounds}   ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found, statistics.median(bare) * 1e6, watchdog / wall


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="default 15")
    parser.add_argument("--seconds", type=float, default=0.2, help="of each run, default 0.2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    found, bare, watchdog = ratios(options.rounds, options.seconds)
    print(f"## Blocking calls\n\n{describe_machine()}; {options.rounds} rounds of {options.seconds} s")
    print(f"CPU time over the bare program's ({bare:.1f} µs an order): median (quartiles).\n")
    if PEER not in found:
        print(f"{PEER} left out: it is not installed\n")
    print("| tool | ratio |\n| --- | ---: |")
    for name, values in found.items():
        if name != "bare":
            low, middle, high = quartiles(values)
            digits = 3 if middle < 2 else 2
            print(f"| {name} | **{middle:.{digits}f}** ({low:.{digits}f} to {high:.{digits}f}) |")
    print(f"| watchdog, of one core | **{watchdog * 100:.2f} %** |")
    if options.json:
        figures = {
            "machine": machine_facts(),
            "rounds": options.rounds,
            "bare_us": bare,
            "ratios": found,
            "watchdog": watchdog,
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
