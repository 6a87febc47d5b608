"""What the machine does to a program is not the program's block: a starved CPU, a stopped process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TARGETS = Path(__file__).resolve().parent.parent / "targets"


def outcome_of(program: str) -> dict[str, Any]:
    """Run the program on its own and read what it says."""
    done = subprocess.run([sys.executable, TARGETS / program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="the kernel does not count run delays")
def test_a_starved_cpu_is_told_apart() -> None:
    found = outcome_of("starved.py")
    if found["taken"] < 0.11:
        pytest.skip(f"the machine did not starve the program: 40 ms of work took {found['taken']:.3f} s")
    assert {cause for cause, _ in found["blocks"]} <= {"starved"}, found


def test_a_stopped_process_is_told_apart() -> None:
    found = outcome_of("stopped.py")
    assert found["taken"] > 0.3
    assert {cause for cause, _ in found["blocks"]} <= {"stopped"}, found
