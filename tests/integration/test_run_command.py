"""``loopwatch run`` as a user meets it: what it prints, what it writes, and how it ends."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

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
        for line in process.stderr:
            lines.append(line.rstrip("\n"))
            if "in match" in line:  # the innermost frame, and the last line of the first report
                break
        process.kill()
    assert lines[0].startswith("loopwatch: HANG: "), lines
    assert lines[2].startswith(f'    File "{TARGETS / "hangs.py"}", line '), lines
    assert lines[2].endswith("in <module>")
    assert any("line 2, in stuck?[31m??1m" in line for line in lines), lines
    assert all(line.isprintable() for line in lines)


def test_stacks_in_json_begin_with_the_program(tmp_path: Path) -> None:
    write(tmp_path / "app.py", BLOCK + "\nmain()\n")
    for program in (["app.py"], ["-m", "app"]):
        done = loopwatch_run("--threshold", 0.05, "--json", "out.json", *program, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (block,) = json.loads((tmp_path / "out.json").read_text())["blocks"]
        for stack in (block["stack"], *(segment["stack"] for segment in block["segments"])):
            assert Path(stack[0]["file"]).resolve() == (tmp_path / "app.py").resolve()
            assert stack[0]["name"] == "<module>"
