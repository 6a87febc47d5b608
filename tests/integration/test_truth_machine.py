"""What the machine does to a program is not the program's block: a starved CPU, a stopped process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SLICE = 0.05  # seconds in which busy processes may hold the CPU between our readings and the core's
TARGETS = Path(__file__).resolve().parent.parent / "targets"

pytestmark = pytest.mark.flaky(reruns=2)  # see test_truth.py


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
    assert not found["blocks"], found
    assert len(found["stalls"]) == 1, found
    cause, duration, starved = found["stalls"][0]
    assert cause == "starved"
    assert duration == pytest.approx(found["taken"], abs=max(0.002, 0.01 * duration) + SLICE)
    assert starved == pytest.approx(duration - 0.04, abs=0.02)


def test_a_stopped_process_is_told_apart() -> None:
    found = outcome_of("stopped.py")
    assert found["taken"] > 0.3
    assert not found["blocks"], found
    cause, duration, stopped = max(found["stalls"], key=lambda stall: stall[1])
    assert cause == "stopped"
    assert duration == pytest.approx(found["taken"], abs=0.004)
    # The watchdog wakes every quarter of a threshold: a stop is known to have lasted since its last planned wake-up.
    assert 0.4 - 0.1 / 4 - 0.01 <= stopped <= duration
