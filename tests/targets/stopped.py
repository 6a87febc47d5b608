"""A program that is stopped for 0.4 s: once while its loop waits, once in the midst of a short step.

Prints as JSON how long the step took by the clock and what was reported; the threshold is 0.1 s.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

from loopwatch import no_event_loop_blocking

STOPPER = """
import os, signal, sys, time
parent = int(sys.argv[1])
for line in sys.stdin:
    os.kill(parent, signal.SIGSTOP)
    time.sleep(0.4)
    os.kill(parent, signal.SIGCONT)
"""

stopper = subprocess.Popen([sys.executable, "-c", STOPPER, str(os.getpid())], stdin=subprocess.PIPE)
continued = 0


def on_continue(number: int, frame: object) -> None:
    global continued
    continued += 1


def ask_to_be_stopped() -> None:
    assert stopper.stdin is not None
    stopper.stdin.write(b"stop\n")
    stopper.stdin.flush()


async def main() -> None:
    async with no_event_loop_blocking(action=lambda findings: None, threshold=0.1) as guard:
        ask_to_be_stopped()
        while continued == 0:
            await asyncio.sleep(0.05)
        began = time.monotonic()
        ask_to_be_stopped()
        while continued == 1:
            pass
        taken = time.monotonic() - began
        await asyncio.sleep(0)
    blocks = [[block.cause, block.duration] for block in guard.blocks]
    stalls = [[stall.cause, stall.duration, stall.stopped] for stall in guard.stalls]
    print(json.dumps({"taken": taken, "blocks": blocks, "stalls": stalls}))


signal.signal(signal.SIGCONT, on_continue)
try:
    asyncio.run(main())
finally:
    stopper.kill()
    stopper.communicate()
