"""What threads do at the same time: programs for ``make tsan``, which judges every memory access of the core.

Each program runs in an interpreter of its own for LOOPWATCH_RACE_SECONDS, so that a race that is told fails one test
and no other.  Without the sanitizer they are short stress tests: the programs check their own results.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.tsan
SECONDS = float(os.environ.get("LOOPWATCH_RACE_SECONDS", "0.5"))
CHURN = Path(__file__).parent.parent / "targets" / "churn.py"

COMMON = """
import asyncio, os, sys, threading, time
from loopwatch import _core, no_event_loop_blocking
until = time.monotonic() + float(sys.argv[1])

def watched(threshold=0.002):
    return no_event_loop_blocking(action=lambda found: None, threshold=threshold)

def in_threads(count, function):
    wrong = []
    def run(number):
        try:
            function(number)
        except BaseException as error:
            wrong.append(error)
            raise
    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong
"""


def run(source: str, *options: str, seconds: float = SECONDS) -> None:
    source = COMMON + textwrap.dedent(source)
    command = [sys.executable, "-X", "faulthandler", *options, "-c", source, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "ThreadSanitizer" not in done.stderr, done.stderr


def test_guards_enter_and_leave_while_the_watchdog_samples() -> None:
    run(
        """
        async def main():
            rounds = found = 0
            while time.monotonic() < until:
                with watched() as guard:
                    for _ in range(rounds % 5):
                        with watched(0.001):
                            await asyncio.sleep(0)
                    time.sleep(0.005)
                    await asyncio.sleep(0)
                found += len(guard.blocks) + len(guard.stalls)
                rounds += 1
            assert found >= rounds, (found, rounds)
        asyncio.run(main())
        """
    )


def test_loops_in_several_threads() -> None:
    run(
        """
        async def main(number):
            while time.monotonic() < until:
                async with watched() as guard:
                    await asyncio.sleep(0)
                    (sum, time.sleep)[number % 2]((range(100_000), 0.004)[number % 2])
                    await asyncio.sleep(0.001)
                    _core.watchdog_info()
        in_threads(6, lambda number: asyncio.run(main(number)))
        assert _core.watchdog_info()["watches"] == 0
        """
    )


def test_loops_start_and_end_in_many_threads() -> None:
    run(
        """
        async def main():
            async with watched(0.001):
                time.sleep(0.002)
                await asyncio.sleep(0)
        def loops(number):
            while time.monotonic() < until:
                asyncio.run(main())
        in_threads(8, loops)
        assert _core.watchdog_info()["watches"] == 0
        """
    )


def test_stacks_are_read_and_hangs_reported_meanwhile() -> None:
    run(
        """
        sink = os.open(os.devnull, os.O_WRONLY)
        async def main():
            while time.monotonic() < until:
                async with watched(0.001):
                    time.sleep(0.02)
                    await asyncio.sleep(0)
        def others(number):
            if number == 0:
                asyncio.run(main())
            while time.monotonic() < until:
                _core.stack_of(threading.get_native_id())
                _core.set_hang_report(5_000_000, sink)
                _core.set_hang_report(0, sink)
        in_threads(3, others)
        """
    )


def test_fork_while_the_watchdog_samples() -> None:
    run(
        """
        async def main(forks):
            children = 0
            while time.monotonic() < until:
                async with watched() as guard:
                    await asyncio.sleep(0)
                    pid = os.fork() if forks else 0
                    if forks and pid == 0:
                        os._exit(9)
                    time.sleep(0.004)
                    await asyncio.sleep(0)
                    if forks:
                        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
                        children += 1
                assert guard.blocks or guard.stalls
        in_threads(3, lambda number: asyncio.run(main(number == 0)))
        """
    )


def test_the_watchdog_starts_anew_in_a_child() -> None:
    run(
        """
        async def main():
            async with watched(0.02) as guard:
                await asyncio.sleep(0)
                time.sleep(0.06)
                await asyncio.sleep(0)
            assert guard.blocks or guard.stalls
        asyncio.run(main())
        pid = os.fork()
        asyncio.run(main())
        if pid == 0:
            os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
        """
    )


def test_exit_while_loops_are_busy() -> None:
    for _ in range(3):
        run(
            """
            busy = threading.Barrier(4)
            async def main(number):
                async with watched(0.001):
                    busy.wait()
                    while True:
                        time.sleep(0.003)
                        await asyncio.sleep(0)
            for number in range(3):
                threading.Thread(target=lambda: asyncio.run(main(number)), daemon=True).start()
            busy.wait()
            time.sleep(0.02)
            """
        )


def test_uvloop_while_the_watchdog_samples() -> None:
    pytest.importorskip("uvloop")
    run(
        """
        import uvloop
        async def main():
            while time.monotonic() < until:
                async with watched() as guard:
                    await asyncio.sleep(0)
                    time.sleep(0.004)
                    await asyncio.sleep(0.001)
        def loops(number):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())
        in_threads(3, loops)
        """
    )


def test_trio_while_the_watchdog_samples() -> None:
    pytest.importorskip("trio")
    run(
        """
        import trio
        async def main():
            while time.monotonic() < until:
                async with watched():
                    await trio.sleep(0)
                    time.sleep(0.004)
                    await trio.sleep(0.001)
        in_threads(2, lambda number: trio.run(main))
        """
    )


def test_loops_without_a_probe() -> None:
    run(
        """
        async def main():
            scope = _core.Watch(asyncio.get_running_loop(), "generic").open_scope(5_000_000, 1_000_000)
            while time.monotonic() < until:
                time.sleep(0.008)
                await asyncio.sleep(0.002)
            scope.close()
        in_threads(2, lambda number: asyncio.run(main()))
        """
    )


def test_churn() -> None:
    samples = int(10_000 * max(SECONDS, 0.5))
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(CHURN), str(samples)], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    assert "ThreadSanitizer" not in done.stderr, done.stderr
