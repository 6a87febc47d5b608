"""Shows that a project's own tests end the same under loopwatch as without it, test by test.

Downloads pinned releases of well-known async projects that ship their tests, installs them beside loopwatch into a
temporary virtual environment, and runs each suite bare and watched.  Tests that end
differently run again both ways, in the whole suite for they may depend on each other: one whose outcome varies without
loopwatch, or does not differ again, is flaky.  Exits with 1 if a difference repeats, with 2 if a suite cannot be run.

They run under ``python -m loopwatch run``; with ``--plugin`` under the pytest plugin's ``--loopwatch`` instead, whose
findings are listed: each is to be looked at.  ``--loopwatch`` names what pip is to install as loopwatch: this source
tree unless told otherwise.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 900
REPEATS = 2

Outcome = tuple[str, ...]
Outcomes = dict[str, Outcome]


@dataclass(frozen=True)
class Suite:
    """One release, what its tests need, and the arguments with which pytest runs them in its source folder."""

    name: str
    version: str
    needs: tuple[str, ...]
    arguments: tuple[str, ...]


SUITES = (
    Suite(
        "trio",
        "0.35.0",
        ("trio==0.35.0", "pytest==9.2.0", "trustme==1.2.1", "pyopenssl==26.4.0", "astor==0.8.1"),
        ("--pyargs", "trio", "--skip-optional-imports"),
    ),
    Suite(
        "starlette",
        "1.10.0",
        (
            "starlette[full]==1.10.0",
            "pytest==9.2.0",
            "anyio==4.16.0",
            "trio==0.35.0",
            "httpx2[zstd]==2.16.2",
            "importlib-metadata==10.2.0",
            "opentelemetry-sdk==1.45.2",
        ),
        ("-p", "anyio", "tests"),
    ),
    Suite(
        "janus",
        "2.0.0",
        ("janus==2.0.0", "pytest==9.2.0", "pytest-asyncio==1.5.0", "pytest-cov==7.1.0"),
        ("-p", "pytest_asyncio.plugin", "-p", "pytest_cov.plugin", "--ignore=tests/test_benchmarks.py", "tests"),
    ),
    Suite(
        "anyio",
        "4.16.0",
        (
            "anyio[trio]==4.16.0",
            "trio==0.35.0",
            "blockbuster==1.5.29",
            "hypothesis==6.170.15",
            "psutil==7.2.2",
            "pytest==9.2.0",
            "pytest-mock==3.17.0",
            "pytest-timeout==2.4.0",
            "trustme==1.2.1",
            "truststore==0.10.5",
            "uvloop==0.23.0",
        ),
        ("-m", "not network", "-o", "timeout=60", "tests"),
    ),
    Suite(
        "aiofiles",
        "25.1.0",
        ("aiofiles==25.1.0", "pytest==9.2.0", "pytest-asyncio==1.5.0"),
        ("-p", "pytest_asyncio.plugin", "tests"),
    ),
    Suite(
        "aiosqlite",
        "0.22.1",
        ("aiosqlite==0.22.1", "pytest==9.2.0"),
        ("aiosqlite/tests/smoke.py",),
    ),
)


class SuiteError(Exception):
    """A suite could not be set up, or did not run to its end."""


class Workshop:
    """A folder with one virtual environment and one source folder for each suite."""

    def __init__(self, folder: Path, loopwatch: str, timeout: float, *, plugin: bool = False) -> None:
        self.folder = folder
        self.timeout = timeout
        self.plugin = plugin
        self._loopwatch = loopwatch
        self._runs = 0

    def prepare(self, suite: Suite) -> None:
        """Download the release and install what its tests need, and loopwatch."""
        home = self.folder / suite.name
        home.mkdir()
        venv.create(home / "venv", with_pip=True)
        self._pip(suite, "install", self._loopwatch, *suite.needs)
        pinned = f"{suite.name}=={suite.version}"
        self._pip(suite, "download", "--no-deps", "--no-binary", suite.name, "--dest", str(home), pinned)
        archives = list(home.glob("*.tar.gz"))
        if len(archives) != 1:
            raise SuiteError(f"{pinned}: pip downloaded {len(archives)} source archives, not one")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(home / "source", filter="data")

    def run(self, suite: Suite, watched: bool) -> Outcomes:
        """Run the suite once; gives back how each of its tests ended."""
        self._runs += 1
        home = self.folder / suite.name
        report, output = home / f"{self._runs}.xml", home / f"{self._runs}.txt"
        runner = ["loopwatch", "run", "-m"] if watched and not self.plugin else []
        command = [str(_python(home)), "-m", *runner, "pytest", "-q"]
        if watched and self.plugin:
            command += ["-p", "loopwatch.pytest_plugin", "--loopwatch", f"--loopwatch-json={home / 'findings.json'}"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={report}", *suite.arguments]
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONHASHSEED": "0"}
        with output.open("wb") as sink:
            try:
                code = subprocess.run(
                    command,
                    cwd=next((home / "source").iterdir()),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    timeout=self.timeout,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                raise SuiteError(f"{_how(watched)} it took over {self.timeout:g}s{_tail(output)}") from None
        if code not in (0, 1) or not report.exists():
            raise SuiteError(f"{_how(watched)} pytest ended with {code}{_tail(output)}")
        return read_report(report)

    def findings(self, suite: Suite) -> list[str]:
        """What the plugin found in the run last made: a line for each group."""
        report = json.loads((self.folder / suite.name / "findings.json").read_text("utf-8"))
        return [
            f"{group['count']} {group['kind']}: {group['headline']} ({group['owners'][0]['owner']})"
            for group in report["groups"]
        ] + [f"trouble: {trouble['text']} ({trouble['test']})" for trouble in report["troubles"]]

    def _pip(self, suite: Suite, *arguments: str) -> None:
        command = [str(_python(self.folder / suite.name)), "-m", "pip", "--disable-pip-version-check"]
        done = subprocess.run([*command, *arguments, "--quiet"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SuiteError(f"pip {arguments[0]} failed:\n{done.stderr}")


def read_report(path: Path) -> Outcomes:
    """Read the outcomes of a JUnit report, by test; a test that is run several times has several."""
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        marks = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        kinds = [child.get("type", "") for child in case if child.tag == "skipped"]
        name = f"{case.get('classname')}::{case.get('name')}"
        found.setdefault(name, []).append(" ".join(marks + kinds) or "passed")
    return {name: tuple(sorted(outcomes)) for name, outcomes in found.items()}


def differences(bare: Mapping[str, Outcome], watched: Mapping[str, Outcome]) -> set[str]:
    """The tests that ended differently, or in one of the two runs only."""
    return {name for name in bare.keys() | watched.keys() if bare.get(name) != watched.get(name)}


def compare(shop: Workshop, suite: Suite) -> bool:
    """Run a suite both ways and print how it went.  Tells whether all that differs is flaky."""
    bare, watched = [shop.run(suite, False)], [shop.run(suite, True)]
    differ = differences(bare[0], watched[0])
    for _ in range(REPEATS if differ else 0):
        bare.append(shop.run(suite, False))
        watched.append(shop.run(suite, True))
    repeated = {name for name in differ if _repeats(name, bare, watched)}
    total = len(bare[0].keys() | watched[0].keys())
    kinds = Counter(" ".join(outcome) for outcome in bare[0].values())
    text = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    flaky = len(differ) - len(repeated)
    print(
        f"{suite.name} {suite.version}: {total} tests, {total - len(differ)} same, "
        f"{len(differ)} differ ({flaky} flaky); bare: {text}",
        flush=True,
    )
    for name in sorted(repeated):
        print(f"  {name}: bare {_ending(bare[0], name)}, under loopwatch {_ending(watched[0], name)}")
    for line in shop.findings(suite) if shop.plugin else ():
        print(f"  found {line}")
    return not repeated


def _repeats(name: str, bare: Sequence[Outcomes], watched: Sequence[Outcomes]) -> bool:
    """Whether each run without loopwatch ended in one way, and each run with it in another."""
    without, under = {run.get(name) for run in bare}, {run.get(name) for run in watched}
    return len(without) == 1 and without.isdisjoint(under)


def _ending(outcomes: Outcomes, name: str) -> str:
    return ", ".join(outcomes.get(name, ("not run",)))


def _python(home: Path) -> Path:
    return home / "venv" / "bin" / "python"


def _how(watched: bool) -> str:
    return "under loopwatch" if watched else "bare"


def _tail(output: Path) -> str:
    return "; its last lines:\n" + "\n".join(output.read_text("utf-8", "replace").splitlines()[-20:])


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the suites named on the command line, or all; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compare suites of other projects bare and under loopwatch.")
    parser.add_argument("names", nargs="*", metavar="PROJECT", help=", ".join(suite.name for suite in SUITES))
    parser.add_argument("--loopwatch", default=str(ROOT), help="what pip installs: a folder, a wheel or a requirement")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, metavar="SEC", help="for one run of one suite")
    parser.add_argument("--plugin", action="store_true", help="run under `pytest --loopwatch`, not `loopwatch run`")
    options = parser.parse_args(argv)
    unknown = set(options.names) - {suite.name for suite in SUITES}
    if unknown:
        parser.error(f"no such project: {', '.join(sorted(unknown))}")
    code = 0
    with tempfile.TemporaryDirectory(prefix="loopwatch-suites-") as folder:
        shop = Workshop(Path(folder), options.loopwatch, options.timeout, plugin=options.plugin)
        for suite in SUITES:
            if options.names and suite.name not in options.names:
                continue
            try:
                shop.prepare(suite)
                same = compare(shop, suite)
            except SuiteError as error:
                print(f"{suite.name} {suite.version}: could not be compared: {error}", flush=True)
                code = 2
            else:
                code = code if same else max(code, 1)
    return code


if __name__ == "__main__":
    sys.exit(main())
