"""What sampled allocations cost on a program that does nothing but allocate, with tracemalloc beside it.

    python benchmarks/memory.py [rounds]

The three take turns, in one process; figures are medians of the process's CPU time over that of the bare program.
"""

from __future__ import annotations

import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable

from machine import describe_machine

from loopwatch.memory import AllocationTrace


def program() -> None:
    kept: list[object] = []
    for number in range(60_000):
        kept.append({"id": number, "name": f"order {number}", "lines": [number], "raw": bytes(number % 300)})
        if number % 1000 == 0:
            kept.clear()


def bare(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def sampled(run: Callable[[], None]) -> float:
    with AllocationTrace():
        return bare(run)


def traced(run: Callable[[], None]) -> float:
    tracemalloc.start()
    try:
        return bare(run)
    finally:
        tracemalloc.stop()


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    ways = {"bare": bare, "sampled": sampled, "tracemalloc": traced}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(way(program))
    print(describe_machine())
    for name, taken in seconds.items():
        ratios = [one / other for one, other in zip(taken, seconds["bare"], strict=True)]
        print(f"{name:<12} {statistics.median(ratios):.2f} of bare ({statistics.median(taken) * 1000:.0f} ms CPU)")


if __name__ == "__main__":
    main()
