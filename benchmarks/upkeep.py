"""What loopwatch costs besides time on the loop: guards entered and left, the watchdog's CPU, wake-ups of an idle loop.

Guards in microseconds (median and quartiles of 20,000), the watchdog in percent of one core, wake-ups as voluntary
context switches of the loop's thread over a stretch of seconds in which it only waits.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter_ns, process_time_ns, sleep
from typing import Any

from machine import quartiles

from loopwatch import _core, no_event_loop_blocking

GUARDS = 20_000


def _ignore(findings: object) -> None:
    """The action of guards that must not print."""


async def _guards(count: int) -> list[float]:
    guard = no_event_loop_blocking(action=_ignore)
    taken = []
    for turn in range(count):
        began = perf_counter_ns()
        async with guard:
            pass
        taken.append((perf_counter_ns() - began) / 1e3)
        if turn % 100 == 0:
            await asyncio.sleep(0)
    return taken


async def _fresh_guards(count: int) -> list[float]:
    taken = []
    for turn in range(count):
        began = perf_counter_ns()
        async with no_event_loop_blocking(action=_ignore):
            pass
        taken.append((perf_counter_ns() - began) / 1e3)
        if turn % 100 == 0:
            await asyncio.sleep(0)
    return taken


async def _nested(count: int) -> list[float]:
    async with no_event_loop_blocking(action=_ignore):
        return await _fresh_guards(count)


def guard_times(count: int = GUARDS) -> dict[str, tuple[float, float, float]]:
    """Quartiles in microseconds of entering and leaving a guard; the outermost one installs and removes the probe."""
    return {
        "made, entered, left; probe installed each time": quartiles(asyncio.run(_fresh_guards(count))),
        "entered, left again; probe installed each time": quartiles(asyncio.run(_guards(count))),
        "made, entered, left; inside another guard": quartiles(asyncio.run(_nested(count))),
    }


async def _watchdog_share(seconds: float, stepping: bool) -> float:
    async with no_event_loop_blocking(action=_ignore):
        await asyncio.sleep(0.1)
        cpu, wall = _core.watchdog_info()["cpu_ns"], perf_counter_ns()
        if stepping:
            while perf_counter_ns() - wall < seconds * 1e9:
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(seconds)
        return 100.0 * (_core.watchdog_info()["cpu_ns"] - cpu) / (perf_counter_ns() - wall)


def watchdog_shares(seconds: float = 3.0) -> dict[str, float]:
    """Percent of one core that the watchdog uses while nothing blocks."""
    return {
        "loop idle": asyncio.run(_watchdog_share(seconds, False)),
        "loop stepping": asyncio.run(_watchdog_share(seconds, True)),
    }


def switches(native_id: int) -> int:
    """Voluntary context switches of a thread so far."""
    for line in Path(f"/proc/self/task/{native_id}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("voluntary_ctxt_switches"):
            return int(line.split()[1])
    raise LookupError("the kernel does not count context switches")


async def _wakeups(seconds: float, watched: bool) -> int:
    scope: Any = no_event_loop_blocking(action=_ignore) if watched else nullcontext()
    async with scope:
        await asyncio.sleep(0.05)
        before = switches(threading.get_native_id())
        await asyncio.sleep(seconds)
        return switches(threading.get_native_id()) - before


def idle_wakeups(seconds: float = 2.0) -> dict[str, int]:
    """Voluntary context switches of the loop's thread while it waits for one timer."""
    return {
        "bare": asyncio.run(_wakeups(seconds, False)),
        "watched": asyncio.run(_wakeups(seconds, True)),
    }


def after_the_last_guard(seconds: float = 1.0) -> float:
    """Percent of one core that the whole process uses once no guard is open."""
    began = process_time_ns()
    sleep(seconds)
    return 100.0 * (process_time_ns() - began) / (seconds * 1e9)
