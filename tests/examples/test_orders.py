"""examples/orders.py under ``loopwatch run``: each of its faults and leaks is found, at its line, with its cause."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "orders.py"

# What is marked "fault: NAME" in the example, and why it blocks.
FAULTS = {
    "python": "python",
    "sleep": "syscall",
    "regex": "c_call",
    "sqlite": "syscall",
    "lock": "lock",
    "gil": "gil",
    "import": "import",
    "subprocess": "syscall",
    "gc": "gc",
}

# What is marked "leak: NAME", and how the guard's line about it begins.
LEAKS = {
    "task": "task 'audit' of audit(), created at",
    "thread": "thread 'mailer' created at",
    "generator": "async generator stock_levels first iterated at",
    "socket": "UDP socket",
}


def marked_lines(kind: str) -> dict[str, int]:
    """The number of the line that each fault, or leak, is marked on."""
    found = {}
    for number, line in enumerate(EXAMPLE.read_text(encoding="utf-8").splitlines(), 1):
        _, mark, name = line.partition(f"  # {kind}: ")
        if mark:
            found[name] = number
    return found


@pytest.fixture(scope="module")
def runs() -> dict[int, tuple[dict[str, Any], str]]:
    """By attempt: a test that is tried again looks at another run."""
    return {}


@pytest.fixture
def run(
    request: pytest.FixtureRequest, runs: dict[int, tuple[dict[str, Any], str]], tmp_path: Path
) -> tuple[dict[str, Any], str]:
    """The JSON report of one run, and what it printed."""
    attempt = getattr(request.node, "execution_count", 1)  # of pytest-rerunfailures
    if attempt not in runs:
        runs[attempt] = run_example(tmp_path / "report.json")
    return runs[attempt]


def run_example(report: Path) -> tuple[dict[str, Any], str]:
    command = [sys.executable, "-P", "-m", "loopwatch", "run", "--json", str(report), str(EXAMPLE)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=110)
    assert ended.returncode == 0, ended.stdout
    return json.loads(report.read_text(encoding="utf-8")), ended.stdout


def fault_lines() -> dict[str, int]:
    return marked_lines("fault")


def test_the_tables_name_every_mark() -> None:
    assert fault_lines().keys() == FAULTS.keys()
    assert marked_lines("leak").keys() == LEAKS.keys()


@pytest.mark.parametrize("name", LEAKS)
def test_leak_is_told_once_with_the_line_that_made_it(run: tuple[dict[str, Any], str], name: str) -> None:
    _, printed = run
    told = [line for line in printed.splitlines() if line.startswith(f"orders: left behind: {LEAKS[name]}")]
    assert len(told) == 1, printed
    assert f"orders.py:{marked_lines('leak')[name]} in " in told[0]


def test_no_other_leak_is_told(run: tuple[dict[str, Any], str]) -> None:
    _, printed = run
    assert printed.count("orders: left behind: ") == len(LEAKS), printed


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_reported_at_its_line_with_its_cause(run: tuple[dict[str, Any], str], name: str) -> None:
    report, printed = run
    here = [
        block
        for block in report["blocks"]
        if block["culprit"]
        and Path(block["culprit"]["file"]).resolve() == EXAMPLE
        and block["culprit"]["line"] == fault_lines()[name]
    ]
    assert here, printed
    assert {block["cause"] for block in here} == {FAULTS[name]}, printed
    assert f"orders.py:{fault_lines()[name]}" in printed


def test_nothing_else_is_reported(run: tuple[dict[str, Any], str]) -> None:
    report, printed = run
    lines = {block["culprit"]["line"] for block in report["blocks"] if block["culprit"]}
    assert lines <= set(fault_lines().values()), printed
