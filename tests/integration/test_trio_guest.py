"""trio as a guest of another loop: its blocks are found, its idle time is none, and nothing is changed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TARGET = Path(__file__).parent.parent / "targets" / "guest.py"


def run_guest(*words: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "faulthandler", *launcher, str(TARGET), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout.splitlines()
    return done


@pytest.mark.parametrize(
    ("host", "guard", "faults"),
    [
        ("asyncio", "host", ["fault_in_host", "fault_in_guest"]),
        ("asyncio", "guest", ["fault_in_host", "fault_in_guest"]),
        ("early", "host", ["fault_in_host", "fault_in_guest"]),
        ("early", "guest", ["fault_in_host", "fault_in_guest"]),
        ("plain", "guest", ["fault_in_guest"]),
    ],
)
def test_a_guard_finds_what_blocks_and_no_idle_time(host: str, guard: str, faults: list[str]) -> None:
    done = run_guest(host, guard)
    assert done.stderr == ""
    blocks = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))
    assert all(duration < 0.75 for _, duration, _ in blocks), blocks  # with idle time it would be more
    mine = [block for block in blocks if block[0].startswith("fault_")]  # a loaded machine may add others
    assert [name for name, _, _ in mine] == faults, blocks
    assert all(duration >= 0.147 and cause == "syscall" for _, duration, cause in mine)


@pytest.mark.parametrize(
    ("host", "faults", "loops"),
    [
        ("asyncio", {"fault_in_host", "fault_in_guest"}, {"selector-epoll"}),
        ("early", {"fault_in_host", "fault_in_guest"}, {"selector-epoll", "trio"}),
        ("plain", {"fault_in_guest"}, {"trio"}),
    ],
)
def test_loopwatch_run_finds_what_blocks_and_no_idle_time(
    host: str, faults: set[str], loops: set[str], tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    done = run_guest(host, "none", launcher=("-m", "loopwatch", "run", "--threshold", "0.1", "--json", str(file)))
    report = json.loads(file.read_text())
    assert all(block["duration"] < 0.75 for block in report["blocks"]), done.stderr
    names = [block["culprit"]["name"] for block in report["blocks"]]
    assert sorted(name for name in names if name.startswith("fault_")) == sorted(faults), done.stderr
    assert {loop["kind"] for loop in report["loops"]} == loops
    assert report["unwatched"] == []
