"""Task records under programs that are hard on them: no crash, no error, whatever dies when."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[1] / "targets" / "task_storms.py"


@pytest.mark.parametrize(
    "name",
    [
        "collection_during_creation",
        "finalizers_that_create_tasks",
        "loop_closed_with_tasks_pending",
        "records_at_exit",
        pytest.param("many", marks=pytest.mark.slow),
        "threads",
        "odd_factories",
    ],
)
def test_storm(name: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(PROGRAM), name], capture_output=True, text=True, timeout=100
    )
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
    assert "Error" not in ended.stderr and "Exception ignored" not in ended.stderr, ended.stderr
