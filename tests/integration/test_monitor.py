"""The monitor in whole programs: by ``loopwatch run``, by the environment, with uvloop and trio, over forks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LEAKS = """
    import asyncio, sys

    async def stuck():
        await asyncio.sleep(100)

    async def main():
        await asyncio.sleep(0.5)
        kept = []
        for number in range(int(sys.argv[1])):
            kept.append(asyncio.create_task(stuck()))
            await asyncio.sleep(0.01)

    asyncio.run(main())
"""


def python(
    code: str, *arguments: str, before: tuple[str, ...] = (), env: dict[str, str] | None = None, tmp: Path
) -> str:
    """Run a program; what it wrote, stderr last.  It must end well."""
    program = tmp / "program.py"
    program.write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, *before, str(program), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | (env or {}),
        cwd=tmp,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_run_monitor_prints_alarms_and_what_grew(tmp_path: Path) -> None:
    path = tmp_path / "alarms.jsonl"
    options = ("-m", "loopwatch", "run", "--monitor-interval", "0.03", "--monitor-json", str(path))
    said = python(LEAKS, "350", before=options, tmp=tmp_path)
    assert "tasks of stuck(), up from" in said and "program.py:11 in main" in said
    assert "loopwatch: what grew: In" in said and "+3" in said.partition("Tasks alive")[2].partition("\n")[2]
    (line,) = path.read_text().splitlines()
    found = json.loads(line)
    assert found["kind"] == "tasks" and found["place"]["line"] == 11 and len(found["examples"]) == 3


def test_run_without_it_says_nothing_of_growth(tmp_path: Path) -> None:
    said = python(LEAKS, "30", before=("-m", "loopwatch", "run"), tmp=tmp_path)
    assert "what grew" not in said


def start(code: str) -> str:
    """As the .pth file does it, which only an installed package has."""
    line = (ROOT / "src" / "loopwatch_autostart.pth").read_text().strip()
    return f"exec({line!r})\n" + textwrap.dedent(code)


def test_the_environment_starts_one(tmp_path: Path) -> None:
    said = python(start(LEAKS), "250", env={"LOOPWATCH": "monitor,interval=0.05,window=8"}, tmp=tmp_path)
    assert "tasks of stuck(), up from" in said and "in main" in said


@pytest.mark.parametrize("value", ["", "off", "0"])
def test_the_environment_starts_none(value: str, tmp_path: Path) -> None:
    code = """
        import sys, threading
        assert not [name for name in sys.modules if name.startswith("loopwatch.monitor")]
        assert threading.active_count() == 1
    """
    assert python(start(code), env={"LOOPWATCH": value}, tmp=tmp_path) == ""


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("monitor,intervall=5", "no such setting: 'intervall'; did you mean interval?"),
        ("monitor,interval=fast", "interval=fast: could not convert string to float"),
        ("monitor,interval=0", "interval must be a finite number of seconds above 0; got 0.0"),
        ("moniter", "it begins with 'moniter'; write LOOPWATCH=monitor"),
        ("monitor,interval", "interval has no value; write interval=..."),
        ("monitor,stderr=perhaps", "stderr=perhaps: must be on or off"),
        ("monitor,json=/nonexistent/alarms.jsonl", "there is no folder /nonexistent: create it"),
        ("monitor,json=/", "/ is a folder: name a file in it"),
    ],
)
def test_a_wrong_value_is_said_and_the_program_runs_on(value: str, says: str, tmp_path: Path) -> None:
    said = python(start("print('ran on')"), env={"LOOPWATCH": value}, tmp=tmp_path)
    assert says in said and "ran on" in said and f"LOOPWATCH={value!r} starts no monitor" in said


def test_forked_workers_have_one_of_their_own(tmp_path: Path) -> None:
    code = """
        import asyncio, os, warnings
        warnings.simplefilter("error")
        import loopwatch.autostart

        def worker():
            async def stuck():
                await asyncio.sleep(100)
            async def main():
                left = [asyncio.create_task(stuck()) for _ in range(3)]
                await asyncio.sleep(0)
                reading = loopwatch.autostart.start_from_environment().read()
                alive = [one.alive for one in reading.coroutines if one.qualname.endswith("stuck")]
                os.write(1, f"{os.getpid() != parent} {alive} {len(reading.loops)}\\n".encode())
            asyncio.run(main())

        parent = os.getpid()
        for _ in range(2):
            if os.fork() == 0:
                worker()
                os._exit(0)
        for _ in range(2):
            assert os.wait()[1] == 0
    """
    said = python(start(code), env={"LOOPWATCH": "monitor,interval=1"}, tmp=tmp_path)
    assert said == "True [3] 1\nTrue [3] 1\n"


LOOP_KINDS = """
    import asyncio, sys, threading, time
    from loopwatch.monitor import Monitor
    {before}
    monitor = Monitor(interval=10, lag=0.1, on_alarm=lambda alarm: None)
    started, go = threading.Event(), threading.Event()

    def other():
        async def work():
            started.set()
            while not go.is_set():
                await {sleep}(0.01)
        {run_other}

    thread = threading.Thread(target=other)
    thread.start()
    started.wait()
    monitor.start()

    async def main():
        await {sleep}(0.05)
        time.sleep(0.15)
        await {sleep}(0.05)
        reading = monitor.read()
        print(sorted((loop.kind, loop.running, loop.exact) for loop in reading.loops))
        print(len(reading.blocks), max(loop.lag.max for loop in reading.loops) >= 0.15, reading.unwatched)

    {run_main}
    go.set()
    thread.join()
    monitor.stop()
    print({after})
"""


@pytest.mark.parametrize("kind", ["uvloop", "trio"])
def test_other_loops_in_all_threads(kind: str, tmp_path: Path) -> None:
    pytest.importorskip(kind)
    if kind == "uvloop":
        parts = {
            "before": "import uvloop",
            "sleep": "asyncio.sleep",
            "run_other": "asyncio.Runner(loop_factory=uvloop.new_event_loop).run(work())",
            "run_main": "asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())",
            "after": "'run_forever' in vars(uvloop.Loop)",
        }
        named = "uv"
    else:
        parts = {
            "before": "import trio, trio._core._run as internals; before = internals.setup_runner",
            "sleep": "trio.sleep",
            "run_other": "trio.run(work)",
            "run_main": "trio.run(main)",
            "after": "internals.setup_runner is not before",
        }
        named = "trio"
    said = python(LOOP_KINDS.format(**parts), tmp=tmp_path)
    first, second, third = said.splitlines()
    assert first == f"[('{named}', True, True), ('{named}', True, True)]"
    assert second == "1 True ()"
    assert third == "False"


@pytest.mark.slow
def test_four_faults_are_named_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "endurance.py"), "--faultless", "12", "--lag", "2"],
        capture_output=True,
        text=True,
        timeout=115,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all named, nothing else" in done.stdout
