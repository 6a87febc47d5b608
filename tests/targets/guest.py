"""trio as a guest of another loop: of asyncio's, or of one written by hand, each a known fault beside idle time.

``guest.py HOST GUARD``: HOST is asyncio, early (the guest is there before asyncio's loop runs) or plain; GUARD is host,
guest, or none.  Prints the blocks a guard found as JSON.
"""

import asyncio
import json
import queue
import sys
import time
from typing import Any

import trio

from loopwatch import no_event_loop_blocking

HOST, GUARD = sys.argv[1:3]
IDLE, BUSY, THRESHOLD = 0.8, 0.15, 0.1


def found(blocks: list[Any]) -> None:
    print(json.dumps([[block.culprit[2], block.duration, block.cause] for block in blocks]))


def fault_in_guest() -> None:
    time.sleep(BUSY)


def fault_in_host() -> None:
    time.sleep(BUSY)


async def body() -> None:
    await trio.sleep(IDLE)
    fault_in_guest()
    await trio.sleep(IDLE)


async def guest() -> str:
    if GUARD == "guest":
        with no_event_loop_blocking(found, threshold=THRESHOLD):
            await body()
    else:
        await body()
    return "done"


def with_asyncio() -> None:
    loop = asyncio.new_event_loop()
    ended: asyncio.Future[Any] = loop.create_future()

    def begin() -> None:
        trio.lowlevel.start_guest_run(
            guest, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=ended.set_result
        )

    async def main() -> None:
        if HOST == "asyncio":
            begin()
        await asyncio.sleep(IDLE / 2)
        fault_in_host()
        print((await ended).unwrap())

    async def guarded() -> None:
        with no_event_loop_blocking(found, threshold=THRESHOLD):
            await main()

    if HOST == "early":
        begin()
        time.sleep(BUSY)  # no loop runs yet
    loop.run_until_complete(guarded() if GUARD == "host" else main())
    loop.close()


def by_hand() -> None:
    calls: queue.Queue[Any] = queue.Queue()
    ended: list[Any] = []
    trio.lowlevel.start_guest_run(guest, run_sync_soon_threadsafe=calls.put, done_callback=ended.append)
    while not ended:
        calls.get()()
    print(ended[0].unwrap())


by_hand() if HOST == "plain" else with_asyncio()
