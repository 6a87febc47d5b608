"""Where memory cannot be read from outside, stacks are captured under the GIL, and the block says so."""

import os
import subprocess
import sys
import textwrap

import pytest

COMMON = """
import asyncio, os, re, sys, threading, time
from loopwatch import _core, no_event_loop_blocking
assert _core.LAYOUT.startswith("fallback"), _core.LAYOUT

def sleeps(): time.sleep(0.15)
def computes():
    until = time.thread_time() + 0.15
    while time.thread_time() < until: pass
def holds_the_gil():
    until = time.monotonic() + 0.15
    while time.monotonic() < until: pow(3, 400_000)
def one_call():
    # The whole block is one C call that keeps the GIL: backtracking without an end in sight.
    re.match(r"(a?){24}a{24}", "a" * 24)

async def main(function):
    async with no_event_loop_blocking(action=lambda found: None, threshold=0.05) as guard:
        await asyncio.sleep(0)
        function()
        await asyncio.sleep(0)
    (block,) = guard.blocks + guard.stalls
    return block
"""


def run(source: str) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", COMMON + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"LOOPWATCH_LAYOUT": "fallback", "PYTHONWARNINGS": "ignore::DeprecationWarning"},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def test_stack_and_cause_of_each_kind_of_block() -> None:
    out = run(
        """
        for function in (sleeps, computes, holds_the_gil, one_call):
            block = asyncio.run(main(function))
            where = block.culprit[2] if block.culprit else None
            print(function.__name__, where, block.cause, block.missing_reason.split(",")[0], sep=";")
        """
    )
    rows = [line.split(";") for line in out.splitlines()]
    assert [row[:2] for row in rows] == [[name] * 2 for name in ("sleeps", "computes", "holds_the_gil", "one_call")]
    # On a crowded machine a thread that computes may be starved at times: then that is the cause.
    assert rows[0][2] == "syscall", rows
    assert rows[1][2] in ("python", "starved"), rows
    assert rows[2][2] in ("python", "c_call", "starved"), rows
    assert rows[3][2] in ("c_call", "starved"), rows
    assert {row[3] for row in rows} == {"the stack was captured under the GIL"}


def test_the_line_and_its_columns_are_those_of_the_interpreter() -> None:
    out = run(
        """
        def here():
            (time
             .sleep(0.15))
        block = asyncio.run(main(here))
        frame = block.blocking_stack[-1]
        print(frame.name, frame.lineno - here.__code__.co_firstlineno, frame.colno, frame.end_colno)
        """
    )
    assert out.split()[0] == "here"
    assert int(out.split()[1]) in (1, 2)
    assert out.split()[2:] == ["5", "17"], out


@pytest.mark.tsan
def test_loops_in_other_threads_fork_and_exit() -> None:
    out = run(
        """
        found = []
        threads = [threading.Thread(target=lambda: found.append(asyncio.run(main(sleeps)))) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert all(block.culprit[2] == "sleeps" for block in found), found
        pid = os.fork()
        block = asyncio.run(main(sleeps))
        assert block.culprit[2] == "sleeps", block
        if pid == 0: os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        started = threading.Event()
        def stays():
            started.set()
            time.sleep(30)
        threading.Thread(target=lambda: asyncio.run(main(stays)), daemon=True).start()
        started.wait()
        time.sleep(0.1)
        print("exits")
        """
    )
    assert out == "exits\n"
