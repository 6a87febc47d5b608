"""A service under load with four faults switched on one after the other: does the monitor name each, and nothing else?

The service answers requests over TCP, by tasks, timeouts and timers, with load that comes in bursts.  Faults: a task
leaked per request, done tasks that are kept, timers that reschedule themselves, a cache without bound.  Each must be
named with the line that makes it within three windows, and no other alarm may fire.  Then the same time without faults:
none may fire.

Short form (default, about a minute): ``python benchmarks/endurance.py``
Long form: ``python benchmarks/endurance.py --interval 2 --window 30 --faultless 600``
On uvloop: ``--loop uvloop``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import random
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from loopwatch.monitor import Alarm, Monitor

SOURCE = Path(__file__).read_text(encoding="utf-8").splitlines()
CONNECTIONS = 5


def line_of(mark: str) -> int:
    (number,) = [number for number, line in enumerate(SOURCE, 1) if line.endswith(f"# fault: {mark}")]
    return number


class Poller:
    """Asks for news again and again; nobody ever stops it."""

    def __init__(self) -> None:
        self.handle: asyncio.TimerHandle | None = None

    def poll(self) -> None:
        self.handle = asyncio.get_running_loop().call_later(0.5, self.poll)  # fault: timers


class Service:
    """Answers lines with lines."""

    def __init__(self) -> None:
        self.fault: str | None = None
        self.requests = 0
        self.kept: list[Any] = []
        self.cache: dict[int, list[bytes]] = {}

    async def notify(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def job(self) -> int:
        await asyncio.sleep(0)
        return 1

    async def answer(self, text: bytes) -> bytes:
        self.requests += 1
        async with asyncio.timeout(5):
            await asyncio.sleep(random.uniform(0, 0.02))
        await asyncio.gather(*(self.job() for _ in range(3)))
        number = self.requests
        if self.fault == "tasks":
            self.kept.append(asyncio.create_task(self.notify()))  # fault: tasks
        elif self.fault == "retained":
            self.kept.append(asyncio.create_task(self.job()))  # fault: retained
        elif self.fault == "timers" and number % 2 == 0:
            self.kept.append(Poller())
            self.kept[-1].poll()
        elif self.fault == "memory":
            self.cache[number] = [bytes(1000) for _ in range(60)]  # fault: memory
        return text.upper()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(await asyncio.create_task(self.answer(line)))
            await writer.drain()
        writer.close()

    def clear(self) -> None:
        """The fault is repaired: what it made goes away."""
        self.fault = None
        for one in self.kept:
            handle = getattr(one, "handle", None) or one
            handle.cancel()
        self.kept.clear()
        self.cache.clear()


async def load(port: int) -> None:
    """One client: requests one after the other, now many, now few."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while True:
            writer.write(b"hello\n")
            await reader.readline()
            await asyncio.sleep(random.choice((0, 0, 0.01, 0.03, 0.1)))
    finally:
        writer.close()


class Run:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.window = options.interval * options.window
        self.alarms: list[tuple[float, Alarm]] = []
        self.wrong: list[str] = []

    def say(self, text: str) -> None:
        print(text, flush=True)

    def take(self, alarm: Alarm) -> None:
        self.alarms.append((time.monotonic(), alarm))

    @contextlib.asynccontextmanager
    async def under_load(self) -> AsyncIterator[tuple[Service, Monitor]]:
        """A service with its clients, and a monitor that looks at it."""
        service = Service()
        server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        clients = [asyncio.create_task(load(port)) for _ in range(CONNECTIONS)]
        with Monitor(
            interval=self.options.interval,
            window=self.options.window,
            memory="sampled",
            lag=self.options.lag,
            on_alarm=self.take,
        ) as monitor:
            yield service, monitor
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await asyncio.sleep(0.3)
        server.close()

    async def main(self) -> bool:
        async with self.under_load() as (service, monitor):
            earlier = monitor.snapshot()
            await asyncio.sleep(self.window * 1.5)
            self.quiet("warming up")
            for fault in ("tasks", "retained", "timers", "memory"):
                await self.one_fault(service, fault)
            later = monitor.snapshot()
            overhead = later.overhead
        taken = later.monotonic - earlier.monotonic
        self.say(
            f"{service.requests} requests in {taken:.0f} s; the monitor took {overhead.samples} samples and "
            f"{overhead.seconds / taken:.2%} of one core, {overhead.errors} errors"
        )
        if overhead.errors:
            self.wrong.append(f"the monitor failed: {overhead.last_error}")
        return not self.wrong

    async def one_fault(self, service: Service, fault: str) -> None:
        began = time.monotonic()
        service.fault = fault
        while not self.alarms and time.monotonic() - began < 3 * self.window:
            await asyncio.sleep(self.options.interval / 4)
        await asyncio.sleep(self.window)  # no other may follow
        service.clear()
        expected = line_of(fault)
        for number, (at, alarm) in enumerate(self.alarms):
            good = number == 0 and alarm.kind == fault and alarm.place is not None
            good = good and alarm.place[0] == __file__ and alarm.place[1] == expected
            taken = at - began
            self.say(f"{fault}: after {taken:.1f} s ({taken / self.window:.2f} windows): {alarm.headline()}")
            if not good:
                self.wrong.append(f"{fault}: expected one alarm at line {expected}, got {alarm}")
        if not self.alarms:
            self.wrong.append(f"{fault}: nothing was said within three windows")
        self.alarms.clear()
        await asyncio.sleep(self.window * 1.5)
        self.quiet(f"{fault} repaired")

    async def faultless(self) -> bool:
        async with self.under_load() as (service, monitor):
            await asyncio.sleep(self.options.faultless)
            samples = monitor.read().overhead.samples
        self.say(f"without faults: {service.requests} requests, {samples} samples, {len(self.alarms)} alarms")
        self.quiet("without faults")
        return not self.wrong

    def quiet(self, when: str) -> None:
        self.wrong += [f"{when}: {alarm}" for _, alarm in self.alarms]
        self.alarms.clear()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interval", type=float, default=0.2, help="seconds between two samples (default 0.2)")
    parser.add_argument("--window", type=int, default=15, help="samples of a window (default 15)")
    parser.add_argument("--faultless", type=float, default=15, help="seconds without faults (default 15; 0: none)")
    parser.add_argument("--lag", type=float, default=0.5, help="the monitor's lag; a busy machine blocks too")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="(default asyncio)")
    options = parser.parse_args()
    run = Run(options)
    factory = importlib.import_module(options.loop).new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        good = runner.run(run.main())
    if options.faultless:
        with asyncio.Runner(loop_factory=factory) as runner:
            good &= runner.run(run.faultless())
    for text in run.wrong:
        print(f"WRONG: {text}")
    print("all named, nothing else" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
