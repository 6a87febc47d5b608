"""uvloop calls I/O callbacks from inside libuv's poll: blocks there are found, whole, with their stack."""

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loopwatch import no_event_loop_blocking

uvloop = pytest.importorskip("uvloop")


class Protocol(asyncio.Protocol):
    def __init__(self, timer: str) -> None:
        self.timer = timer
        self.took = 0.0

    def data_received(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        if self.timer == "before":
            loop.call_later(60, int).cancel()
        time.sleep(0.3)
        if self.timer == "after":  # libuv's clock is set anew: only the watchdog read it before
            loop.call_later(60, int).cancel()
        self.took = time.monotonic() - began


@pytest.mark.parametrize("stepping", [None, 0.0, 0.0025])
@pytest.mark.parametrize("timer", ["none", "before", "after"])
def test_block_in_data_received(timer: str, stepping: float | None) -> None:
    async def main() -> tuple[Any, Protocol]:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        transport, protocol = await loop.create_connection(lambda: Protocol(timer), sock=ours)

        async def steps() -> None:
            while not protocol.took:
                await asyncio.sleep(0)
                if stepping:
                    time.sleep(stepping)

        async with no_event_loop_blocking(action=lambda found: None, threshold=0.1) as guard:
            stepper = None if stepping is None else asyncio.create_task(steps())
            await asyncio.sleep(0.05)
            theirs.send(b"x")
            await asyncio.sleep(0.4)
            if stepper:
                await stepper
        transport.close()
        theirs.close()
        return guard, protocol

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        guard, protocol = runner.run(main())
    (block,) = guard.blocks + guard.stalls
    assert block.culprit[2] == "Protocol.data_received"
    after = 0.03 if stepping is None else 0.01
    assert protocol.took - 0.004 <= block.duration <= protocol.took + after


def test_block_in_data_received_while_another_connection_closes() -> None:
    """libuv does not wait then, though no callback is ready."""

    async def main() -> tuple[Any, list[float]]:
        loop = asyncio.get_running_loop()
        took = []
        async with no_event_loop_blocking(action=lambda found: None, threshold=0.05) as guard:
            for _ in range(5):
                (a, b), (c, d) = socket.socketpair(), socket.socketpair()
                closes, _ = await loop.create_connection(asyncio.Protocol, sock=a)
                blocks, protocol = await loop.create_connection(lambda: Protocol("after"), sock=c)
                d.send(b"x")
                closes.close()
                while not protocol.took:
                    await asyncio.sleep(0.001)
                took.append(protocol.took)
                blocks.close()
                b.close()
                d.close()
        return guard, took

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        guard, took = runner.run(main())
    durations = [block.duration for block in guard.blocks]
    assert durations == pytest.approx(took, abs=0.03)


def test_a_block_in_a_library_is_told_at_its_line(tmp_path: Path) -> None:
    """uvloop is C code: no frame of it tells where the program ends and the callback begins."""
    program, library = tmp_path / "program.py", tmp_path / "site-packages" / "library.py"
    library.parent.mkdir()
    library.write_text("import time\n\ndef blocks():\n    time.sleep(0.3)\n")
    program.write_text(
        "import asyncio, sys, uvloop\n"
        f"sys.path.insert(0, {str(library.parent)!r})\n"
        "import library\n"
        "async def main():\n"
        "    asyncio.get_running_loop().call_soon(library.blocks)\n"
        "    await asyncio.sleep(0.01)\n"
        "if sys.argv[1] == 'run':\n"
        "    uvloop.run(main())\n"
        "else:\n"
        "    uvloop.new_event_loop().run_until_complete(main())\n"
    )
    for how in ("run", "loop"):
        command = [sys.executable, "-m", "loopwatch", "run", str(program), how]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert "site-packages/library.py:4 in blocks  cause: system call clock_nanosleep" in done.stderr, done.stderr


def test_waiting_is_no_block() -> None:
    async def main() -> Any:
        async with no_event_loop_blocking(action=lambda found: None, threshold=0.02) as guard:
            for _ in range(20):
                await asyncio.sleep(0.05)
        return guard

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        guard = runner.run(main())
    assert not [block for block in guard.blocks if block.cause == "syscall"]


@pytest.mark.parametrize("before", [0.0, 0.0025, 0.0039])
def test_blocks_after_a_busy_time(before: float) -> None:
    """Borders that nobody read cost no accuracy: each block by itself, as long as it was."""

    async def main() -> tuple[Any, list[float]]:
        took = []
        async with no_event_loop_blocking(action=lambda found: None, threshold=0.05) as guard:
            for length in (0.06, 0.08, 0.06):
                until = time.monotonic() + 0.05
                while time.monotonic() < until:
                    await asyncio.sleep(0)
                    if before:
                        time.sleep(before)
                await asyncio.sleep(0)
                for _ in range(2):
                    began = time.monotonic()
                    time.sleep(length)
                    took.append(time.monotonic() - began)
                    await asyncio.sleep(0)
        return guard, took

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        guard, took = runner.run(main())
    found = [block.duration for block in guard.blocks]
    assert len(found) == len(took) == 6
    assert [round(a - b, 4) for a, b in zip(found, took, strict=True) if not -0.003 <= a - b <= 0.003] == []


def test_small_threshold_reads_every_border() -> None:
    """Thirty short iterations in a row are not taken for one long one."""

    async def main() -> tuple[Any, float]:
        longest = 0.0
        async with no_event_loop_blocking(action=lambda found: None, threshold=0.004) as guard:
            for length in [0.003] * 30 + [0.007]:
                began = time.monotonic()
                time.sleep(length)
                longest = max(longest, time.monotonic() - began)
                await asyncio.sleep(0)
        return guard, longest

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        guard, longest = runner.run(main())
    assert max(block.duration for block in guard.blocks) == pytest.approx(longest, abs=0.003)


@pytest.mark.parametrize("blocks", [False, True])
def test_a_loop_that_stands_still_does_not_block(blocks: bool) -> None:
    """A guard may stay open between two runs: what the program does meanwhile is no time of the loop's."""
    found: list[Any] = []
    took = []

    async def opens(event: asyncio.Event, go: asyncio.Event) -> None:
        async with no_event_loop_blocking(action=found.extend, threshold=0.05):
            event.set()
            await go.wait()

    def block() -> None:
        began = time.monotonic()
        time.sleep(0.08)
        took.append(time.monotonic() - began)

    loop = uvloop.new_event_loop()
    event, go = asyncio.Event(), asyncio.Event()
    task = loop.create_task(opens(event, go))
    loop.run_until_complete(event.wait())
    for turn in range(3):
        time.sleep(0.12)
        if blocks:
            loop.call_soon(block)
        if turn % 2:
            loop.call_soon(loop.stop)
            loop.run_forever()
        else:
            loop.run_until_complete(asyncio.sleep(0))
    go.set()
    loop.run_until_complete(task)
    loop.close()
    assert not vars(loop)
    assert [block.duration for block in found] == pytest.approx(took, abs=0.02)
