"""What the pytest plugin adds to an empty test: a suite of empty async tests without it, with it idle, and under it.

Runs are interleaved and each is a process of its own; the figures are medians of the rounds.  CPU time is that of the
process, for a busy machine; what a test costs is the difference to the run without, by the number of tests.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

VARIANTS: dict[str, tuple[str, ...]] = {
    "without the plugin": ("-p", "no:loopwatch"),
    "with it, unused": (),
    "under --loopwatch": ("--loopwatch",),
    "tasks, threads, blocking": ("--loopwatch", *(f"--loopwatch-{kind}=no" for kind in (
        "destroyed-tasks", "task-exceptions", "coroutines", "async-generators", "timers", "descriptors", "processes",
        "loops", "executors",
    ))),
}  # fmt: skip
LIMIT_MS = 1.0


def write_suite(folder: Path, tests: int) -> None:
    """Write the empty tests, and settings that keep all else out."""
    bodies = "\n\n\n".join(f"async def test_{number}():\n    pass" for number in range(tests))
    (folder / "test_empty.py").write_text(bodies + "\n")
    ini = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    (folder / "pytest.ini").write_text(ini)


def run(folder: Path, arguments: Sequence[str]) -> tuple[float, float]:
    """Run the suite once; returns seconds of wall and of CPU time.  Raises RuntimeError where a test fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin"]
    if "no:loopwatch" not in arguments:
        command += ["-p", "loopwatch.pytest_plugin"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONHASHSEED": "0"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "pycache")
    output = folder / "output.txt"
    began = time.perf_counter()
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [*command, *arguments], cwd=folder, env=environment, stdout=sink, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(
            f"{' '.join(arguments)}: pytest ended with {process.returncode}:\n{output.read_text()[-2000:]}"
        )
    return wall, usage.ru_utime + usage.ru_stime


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; returns 1 where an empty test costs more than a millisecond."""
    parser = argparse.ArgumentParser(description="Measure what the pytest plugin adds to an empty async test.")
    parser.add_argument("--tests", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory(prefix="loopwatch-bench-") as name:
        folder = Path(name)
        write_suite(folder, options.tests)
        run(folder, VARIANTS["under --loopwatch"])  # compiles and caches
        for _ in range(options.rounds):
            for variant, arguments in VARIANTS.items():
                measured[variant].append(run(folder, arguments))
    bare_wall, bare_cpu = (statistics.median(column) for column in zip(*measured["without the plugin"], strict=True))
    print(f"{options.tests} empty async tests, {options.rounds} rounds, medians; ms a test beyond the run without")
    print(f"{'':28}{'wall s':>9}{'CPU s':>9}{'+wall ms':>10}{'+CPU ms':>10}")
    worst = 0.0
    for variant, runs in measured.items():
        wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
        more_wall, more_cpu = (1000 * more / options.tests for more in (wall - bare_wall, cpu - bare_cpu))
        print(f"{variant:28}{wall:9.3f}{cpu:9.3f}{more_wall:10.3f}{more_cpu:10.3f}")
        worst = max(worst, more_cpu)
    print(f"At most {LIMIT_MS:g} ms a test: {'yes' if worst <= LIMIT_MS else 'no'}")
    return 0 if worst <= LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
