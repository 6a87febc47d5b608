"""More than a thousand loops at once, each in a thread of its own."""

import subprocess
import sys
import textwrap

import pytest

LOOPS = 1100

PROGRAM = """
import asyncio, sys, threading, time
from loopwatch import _core
from loopwatch.loops import open_scope

LOOPS = int(sys.argv[1])
threading.stack_size(256 * 1024)
found, costs = [], []
loops, stops, threads = [None] * LOOPS, [None] * LOOPS, []

async def idles(number, ready):
    loops[number], stops[number] = asyncio.get_running_loop(), asyncio.Event()
    before = time.thread_time()
    scope = open_scope(200_000_000, 20_000_000, lambda raw: found.append((number, raw)))
    costs.append(time.thread_time() - before)
    ready.set()
    await stops[number].wait()
    scope.close()

async def blocks():
    time.sleep(0.4)

for number in range(LOOPS):  # one after the other: nobody waits for anybody
    ready = threading.Event()
    threads.append(threading.Thread(target=lambda: asyncio.run(idles(number, ready))))
    threads[-1].start()
    ready.wait()
assert _core.watchdog_info()["watches"] == LOOPS
busy = _core.watchdog_info()["cpu_ns"]
began = time.monotonic()
for number in (LOOPS - 1, 0, LOOPS // 2):
    asyncio.run_coroutine_threadsafe(blocks(), loops[number]).result()
asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loops[number]).result()
busy = (_core.watchdog_info()["cpu_ns"] - busy) / (time.monotonic() - began) / 1e9
for number in range(LOOPS):
    loops[number].call_soon_threadsafe(stops[number].set)
    threads[number].join()
assert _core.watchdog_info()["watches"] == 0
for number, raw in found:
    worst = max(raw["segments"], key=lambda part: part["duration_ns"])
    print(number, round(raw["duration_ns"] / 1e6), worst["cause"], worst["frames"][-1][1], sep=",")
print("watchdog", round(busy * 100, 1), "% of a core; opening a scope", round(max(costs) * 1e6), "us at most",
      file=sys.stderr)
"""


@pytest.mark.slow
def test_blocks_of_three_among_a_thousand_loops_are_the_only_ones() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(PROGRAM), str(LOOPS)],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(",") for line in done.stdout.splitlines()]
    assert [(int(row[0]), row[2], row[3]) for row in rows] == [
        (number, "syscall", "blocks") for number in (LOOPS - 1, 0, LOOPS // 2)
    ], done.stdout
    assert all(400 <= int(row[1]) < 600 for row in rows), done.stdout
