"""A program that works 40 ms of CPU time in one step, on a CPU that it shares with busy processes.

Prints as JSON how long the step took by the clock and what was reported; the threshold is 0.1 s.
"""

import asyncio
import json
import os
import subprocess
import sys
import time

from loopwatch import no_event_loop_blocking

HOGS = 4


def work(cpu_seconds: float) -> None:
    until = time.thread_time() + cpu_seconds
    while time.thread_time() < until:
        pass


async def main() -> None:
    async with no_event_loop_blocking(action=lambda findings: None, threshold=0.1) as guard:
        await asyncio.sleep(0)
        began = time.monotonic()
        work(0.04)
        taken = time.monotonic() - began
        await asyncio.sleep(0)
    blocks = [[block.cause, block.duration] for block in guard.blocks]
    stalls = [[stall.cause, stall.duration, stall.starved] for stall in guard.stalls]
    print(json.dumps({"taken": taken, "blocks": blocks, "stalls": stalls}))


os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
busy = "print(flush=True)\nwhile True: pass"
hogs = [subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) for _ in range(HOGS)]
try:
    for hog in hogs:
        assert hog.stdout is not None
        hog.stdout.readline()
    asyncio.run(main())
finally:
    for hog in hogs:
        hog.kill()
        hog.communicate()
