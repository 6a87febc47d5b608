"""``loopwatch run`` as a user meets it: what it prints, what it writes, and how it ends."""

import json
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jsonschema
import pytest

TARGETS = Path(__file__).parent.parent / "targets"
BLOCK = """
import asyncio, time

async def blocked():
    time.sleep(0.12)

def main():
    asyncio.run(blocked())
"""


def loopwatch_run(*words: object, timeout: float = 60, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loopwatch", "run", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **more)


def write(path: Path, source: str) -> Path:
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    return path


@pytest.mark.parametrize("as_module", [False, True])
def test_a_hang_is_reported_without_the_launcher_and_without_control_characters(as_module: bool) -> None:
    program = ["-m", "hangs"] if as_module else [str(TARGETS / "hangs.py")]
    command = [sys.executable, "-m", "loopwatch", "run", "--hang-after", "0.3", *program]
    lines = []
    with subprocess.Popen(command, cwd=TARGETS, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                lines.append(line.rstrip("\n"))
                if lines[-1].endswith("match"):  # the innermost frame (re.match; from 3.15 on its name is prefixmatch)
                    break
        finally:
            process.kill()
    assert lines[0].startswith("loopwatch: HANG: "), lines
    assert re.search(r"\(process \d+, \d\d:\d\d:\d\d UTC\)$", lines[0]), lines
    assert lines[1] == "  It runs 'Task-1'"
    assert lines[3].startswith(f'    File "{TARGETS / "hangs.py"}", line '), lines
    assert lines[3].endswith("in <module>")
    assert any("line 2, in stuck?[31m??1m" in line for line in lines), lines
    assert all(line.isprintable() for line in lines)


def test_a_hang_is_reported_after_the_program_closed_all_descriptors(tmp_path: Path) -> None:
    write(
        tmp_path / "app.py",
        """
        import asyncio, os, time
        async def main():
            time.sleep(0.6)
        os.closerange(3, 1024)
        asyncio.run(main())
        """,
    )
    done = loopwatch_run("--hang-after", 0.2, "app.py", cwd=tmp_path)
    assert "loopwatch: HANG: " in done.stderr and 'app.py", line 4, in main' in done.stderr, done.stderr


def test_an_idle_uvloop_does_not_hang(tmp_path: Path) -> None:
    """A descriptor is registered as the last thing before the wait: libuv does not say then whether it will wait."""
    pytest.importorskip("uvloop")
    write(
        tmp_path / "app.py",
        """
        import asyncio, socket, threading, uvloop
        async def main():
            loop, (ours, theirs) = asyncio.get_running_loop(), socket.socketpair()
            came = loop.create_future()
            threading.Timer(0.8, theirs.send, [b"x"]).start()
            await asyncio.sleep(0)
            loop.add_reader(ours, came.set_result, None)
            await came
            loop.remove_reader(ours)
        uvloop.run(main())
        """,
    )
    done = loopwatch_run("--hang-after", 0.2, "--threshold", 0.1, "app.py", cwd=tmp_path)
    assert done.returncode == 0 and "HANG" not in done.stderr and "BLOCK" not in done.stderr, done.stderr


@pytest.mark.parametrize("status", [0, 3])
def test_a_program_that_ends_by_os_exit_is_reported(tmp_path: Path, status: int) -> None:
    write(tmp_path / "app.py", BLOCK + f"\nmain()\nimport os\nos._exit({status})\n")
    done = loopwatch_run("--threshold", 0.05, "--json", "out.json", "--fail-on-block", "app.py", cwd=tmp_path)
    assert done.returncode == (86 if status == 0 else status), done.stderr
    assert "loopwatch: 1 block of 0.050s or longer" in done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["block_count"] == 1


ENDS = {
    "os._exit": "asyncio.run(blocked(lambda: os._exit(0)))",
    "the main thread": (
        "atexit.register(time.sleep, 0.05)\n"  # which is no second block
        "threading.Thread(target=lambda: asyncio.run(blocked(lambda: None, 60)), daemon=True).start()\n"
        "begun.wait()\n"
        "time.sleep(0.15)"
    ),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_block_that_goes_on_when_the_program_ends_counts(tmp_path: Path, how: str) -> None:
    source = """
        import asyncio, atexit, os, threading, time
        begun = threading.Event()
        async def blocked(end, seconds=0.15):
            await asyncio.sleep(0.01)
            begun.set()
            time.sleep(seconds)  # here
            end()
        """
    write(tmp_path / "app.py", textwrap.dedent(source) + ENDS[how])
    done = loopwatch_run("--threshold", 0.02, "--json", "out.json", "--fail-on-block", "app.py", cwd=tmp_path)
    (block,) = json.loads((tmp_path / "out.json").read_text())["blocks"]
    assert done.returncode == 86, done.stderr
    assert 0.1 < block["duration"] < 5 and block["culprit"]["name"] == "blocked" and block["cause"] == "syscall"
    assert block["thread"]["name"] == ("MainThread" if how == "os._exit" else "Thread-1 (<lambda>)")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_block_that_goes_on_during_a_fork_is_the_parents(tmp_path: Path, loop: str) -> None:
    source = f"""
        import asyncio, os, time
        import {loop} as runs
        async def main():
            await asyncio.sleep(0.01)
            time.sleep(0.12)
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
        runs.run(main())
        """
    write(tmp_path / "app.py", source)
    done = loopwatch_run("--threshold", 0.05, "app.py", cwd=tmp_path)
    assert done.stderr.count("BLOCK ") == 1 and ", process " not in done.stderr, done.stderr


def test_the_task_of_a_uvloop_is_named(tmp_path: Path) -> None:
    """The loop is watched from before its first task runs, out of which asyncio's place for it could be learnt."""
    source = """
        import asyncio, time, uvloop
        async def main():
            asyncio.current_task().set_name("the one")
            await asyncio.sleep(0.01)
            time.sleep(0.12)
        uvloop.run(main())
        """
    write(tmp_path / "app.py", source)
    done = loopwatch_run("--threshold", 0.05, "app.py", cwd=tmp_path)
    assert done.stderr.count("BLOCK ") == 1 and "[task 'the one', thread 'MainThread']" in done.stderr, done.stderr


def test_threads_that_end_the_process_at_once_lose_no_report(tmp_path: Path) -> None:
    source = """
        import asyncio, os, threading, time
        async def blocked():
            for _ in range(1000):
                await asyncio.sleep(0)
                time.sleep(0.03)
        for _ in range(3):
            threading.Thread(target=lambda: asyncio.run(blocked()), daemon=True).start()
        time.sleep(0.3)
        together = threading.Barrier(3)
        for _ in range(3):
            threading.Thread(target=lambda: (together.wait(), os._exit(0))).start()
        time.sleep(30)
        """
    write(tmp_path / "app.py", source)
    done = loopwatch_run("--threshold", 0.02, "--fail-on-block", "--json", "out.json", "app.py", cwd=tmp_path)
    assert done.returncode == 86 and "blocks of 0.020s or longer" in done.stderr, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["block_count"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app.py", "out.json"]


def test_blocks_of_several_loops_have_numbers_of_their_own(tmp_path: Path) -> None:
    source = """
        import asyncio, threading, time
        together = threading.Barrier(6)
        async def main():
            for _ in range(4):
                together.wait()
                time.sleep(0.06)
                await asyncio.sleep(0)
        threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        """
    write(tmp_path / "app.py", source)
    loopwatch_run("--threshold", 0.05, "--quiet", "--json", "out.json", "app.py", cwd=tmp_path)
    found = json.loads((tmp_path / "out.json").read_text())
    numbers = [entry["block_id"] for entry in found["blocks"] + found["stalls"]]
    assert len(numbers) >= 20 and len(set(numbers)) == len(numbers)


def test_a_forked_child_does_not_answer_for_what_its_parent_started_afresh(tmp_path: Path) -> None:
    write(
        tmp_path / "app.py",
        BLOCK
        + """
import os, multiprocessing.popen_spawn_posix
pid = os.fork()
main()
if pid:
    os.waitpid(pid, 0)
""",
    )
    done = loopwatch_run("--threshold", 0.05, "app.py", cwd=tmp_path)
    assert done.stderr.count("BLOCK 0.") == 2 and "loopwatch: process " in done.stderr, done.stderr
    assert done.stderr.count("NOT WATCHED: processes that multiprocessing started afresh") == 1


def test_tracebacks_of_code_are_as_those_of_python(tmp_path: Path) -> None:
    code = "def f():\n  1/0\nf()"
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    done = loopwatch_run("--quiet", "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (bare.returncode, bare.stdout, bare.stderr)


def test_stacks_in_json_begin_with_the_program(tmp_path: Path) -> None:
    write(tmp_path / "app.py", BLOCK + "\nmain()\n")
    for program in (["app.py"], ["-m", "app"]):
        done = loopwatch_run("--threshold", 0.05, "--json", "out.json", *program, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (block,) = json.loads((tmp_path / "out.json").read_text())["blocks"]
        for stack in (block["stack"], *(segment["stack"] for segment in block["segments"])):
            assert Path(stack[0]["file"]).resolve() == (tmp_path / "app.py").resolve()
            assert stack[0]["name"] == "<module>"


def test_json_keeps_to_its_schema(tmp_path: Path) -> None:
    write(tmp_path / "app.py", BLOCK + "\nmain()\n")
    done = loopwatch_run("--threshold", 0.05, "--json", "out.json", "app.py", cwd=tmp_path)
    schema = json.loads((Path(__file__).resolve().parents[2] / "docs/reference/report.schema.json").read_text())
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["blocks"], done.stderr
    jsonschema.validate(report, schema)


def test_code_runs_as_python_runs_it() -> None:
    source = "import sys\nprint(sys.argv, repr(sys.path[0]), sorted((k, str(v)) for k, v in globals().items()))"
    bare = subprocess.run([sys.executable, "-c", source, "a"], capture_output=True, text=True, timeout=60, check=True)
    done = loopwatch_run("--quiet", "-c", source, "a")
    assert (done.stdout, done.stderr, done.returncode) == (bare.stdout, "", 0)
    failed = loopwatch_run("--quiet", "-c", "def f():\n    1 / 0\nf()")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[1].startswith('  File "<string>", line 3, in <module>')


def test_a_program_that_ends_itself_by_a_signal_leaves_its_report(tmp_path: Path) -> None:
    app = write(tmp_path / "app.py", BLOCK + "\nimport signal\nmain()\nsignal.raise_signal(signal.SIGTERM)\n")
    done = loopwatch_run("--threshold", 0.05, "--json", tmp_path / "out.json", app)
    assert done.returncode == -signal.SIGTERM
    assert "loopwatch: 1 block of 0.050s or longer" in done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["block_count"] == 1


def test_a_raised_signal_that_is_handled_ends_nothing(tmp_path: Path) -> None:
    handler = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: None)\nsignal.raise_signal(signal.SIGTERM)\n"
    app = write(tmp_path / "app.py", handler + BLOCK + "\nmain()\n")
    done = loopwatch_run("--threshold", 0.05, app)
    assert done.returncode == 0
    assert done.stderr.count("loopwatch: 1 block of 0.050s or longer") == 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_multiprocessing_report_or_are_told_of(method: str, tmp_path: Path) -> None:
    end = """
if __name__ == "__main__":
    import multiprocessing
    child = multiprocessing.get_context(METHOD).Process(target=main)
    child.start()
    child.join()
    print(child.pid)
"""
    app = write(tmp_path / "app.py", BLOCK + end.replace("METHOD", repr(method)))
    done = loopwatch_run("--threshold", 0.05, app)
    assert done.returncode == 0, done.stderr
    child = done.stdout.strip()
    if method == "fork":
        assert f"process {child}]" in done.stderr
        assert f"loopwatch: process {child}: 1 block of 0.050s or longer" in done.stderr
        assert "NOT WATCHED" not in done.stderr
    else:
        assert "NOT WATCHED: processes that multiprocessing started afresh" in done.stderr


@pytest.mark.parametrize("source", ["def f(:", "\x00", "return 1", "  x = 1\n y"])
def test_a_program_that_does_not_compile_ends_as_python_ends_it(source: str, tmp_path: Path) -> None:
    """From a console script: its module goes, and CPython uses that module's dict once more."""
    script = write(tmp_path / "loopwatch", "import sys\nfrom loopwatch.commands import main\nsys.exit(main())\n")
    (tmp_path / "app.py").write_text(source, encoding="utf-8")
    for program in ("app.py", "-"):
        command = [sys.executable, str(script), "run", program]
        text = source if program == "-" else None
        done = subprocess.run(
            command, cwd=tmp_path, input=text, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1, (done.returncode, done.stderr)
        assert "Error: " in done.stderr


def test_two_calls_in_one_function_are_both_told(tmp_path: Path) -> None:
    app = """
    import asyncio, subprocess, time

    async def main():
        await asyncio.sleep(0.01)
        time.sleep(0.30)
        subprocess.run(["sleep", "0.2"])
        await asyncio.sleep(0.01)

    asyncio.run(main())
    """
    write(tmp_path / "app.py", app)
    done = loopwatch_run("app.py", cwd=tmp_path)
    assert re.search(r"BLOCK 0\.5\d\ds  app\.py:6 in main", done.stderr), done.stderr
    assert re.search(r"also 0\.\d\d\ds  app\.py:7 in main: system call", done.stderr), done.stderr


def test_reports_come_where_the_program_closed_all_but_the_standard_streams(tmp_path: Path) -> None:
    write(tmp_path / "app.py", "import os\nos.closerange(3, 4096)\n" + BLOCK + "\nmain()\n")
    done = loopwatch_run("--threshold", 0.05, "app.py", cwd=tmp_path)
    assert "BLOCK 0.1" in done.stderr and "loopwatch: 1 block" in done.stderr, done.stderr
