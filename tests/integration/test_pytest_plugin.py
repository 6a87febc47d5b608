"""The pytest plugin: suites of ``targets/plugin``, run by pytest in a process of its own, and who is told of what."""

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

SUITES = Path(__file__).resolve().parent.parent / "targets" / "plugin"
SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "reference" / "pytest-report.schema.json"
INI = "[pytest]\nasyncio_default_fixture_loop_scope = function\nmarkers =\n    flaky\n    timeout\n"

pytest.importorskip("pytest_asyncio")
pytest.importorskip("pytest_trio")
pytest.importorskip("xdist")
pytest.importorskip("pytest_rerunfailures")
pytest.importorskip("pytest_timeout")


@dataclass
class Run:
    """How a run of pytest ended."""

    code: int
    output: str
    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return document

    def outcomes(self) -> dict[str, list[str]]:
        """How each test ended, by "suite::test"; two where its teardown failed too."""
        found: dict[str, list[str]] = {}
        for case in ElementTree.parse(self.folder / "junit.xml").iter("testcase"):
            marks = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
            name = f"{case.get('classname')}::{case.get('name')}".replace(".", "::").removeprefix("suite_")
            found.setdefault(name, []).append(" ".join(marks) or "passed")
        return {name: sorted(set(outcomes) - {"passed"}) or ["passed"] for name, outcomes in found.items()}

    def told(self, suite: str) -> Counter[tuple[str, str, str]]:
        """What was found in a suite: (kind, name, whose)."""
        return Counter(
            (each["kind"], "" if each["kind"] == "block" else each["name"], each["fixture"] or _short(each["test"]))
            for each in self.report["findings"]
            if each["test"].startswith(f"suite_{suite}.py")
        )


def _short(test: str) -> str:
    return test.partition("::")[2]


def run(folder: Path, *arguments: str, suites: Sequence[str], ini: str = INI, timeout: float = 120) -> Run:
    """Run suites in a process of its own."""
    folder.mkdir(exist_ok=True)
    for name in ("conftest.py", *(f"suite_{suite}.py" for suite in suites)):
        shutil.copy(SUITES / name, folder / name)
    (folder / "pytest.ini").write_text(ini)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:pyleak", "--junitxml=junit.xml"]
    command += ["--loopwatch-json=report.json"] if "no:loopwatch" not in arguments else []
    command += [*arguments, *(f"suite_{suite}.py" for suite in suites)]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": "", "PYTHONHASHSEED": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert "INTERNALERROR" not in done.stdout, done.stdout
    return Run(done.returncode, done.stdout, folder)


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, int], Run]:
    """By name and attempt: a test that is tried again looks at another run."""
    return {}


def shared(name: str, request: pytest.FixtureRequest, make: Callable[[Path], Run]) -> Run:
    """The run of that name for this attempt of the test, made by the first that asks."""
    key = (name, getattr(request.node, "execution_count", 1))  # of pytest-rerunfailures
    known: dict[tuple[str, int], Run] = request.getfixturevalue("runs")
    if key not in known:
        known[key] = make(request.getfixturevalue("tmp_path_factory").mktemp(name))
    return known[key]


@pytest.fixture
def marked(request: pytest.FixtureRequest) -> Run:
    """All suites with their markers, and nothing on the command line."""
    suites = ("asyncio", "scopes", "anyio", "trio", "unittest", "sync", "wrong")
    return shared("marked", request, lambda folder: run(folder, "--strict-markers", "-rA", suites=suites))


PASSED, FAILED, ERROR, SKIPPED = ["passed"], ["failure"], ["error"], ["skipped"]

OUTCOMES = {
    "asyncio::test_nothing": PASSED,
    "asyncio::test_tidy_fixture": PASSED,
    "asyncio::test_untidy_teardown": ERROR,
    "asyncio::test_blocking_teardown": ERROR,
    "asyncio::test_tidy_teardown": PASSED,
    "asyncio::test_broken_teardown": ERROR,
    "asyncio::test_task_left": FAILED,
    "asyncio::test_task_left_beside_fixture": ERROR,
    "asyncio::test_fixture_cleans_what_the_body_began": PASSED,
    "asyncio::test_fixture_cleans_only_its_own": ERROR,
    "asyncio::test_untidy_fixture": ERROR,
    "asyncio::test_untidy_fixture_without_teardown": ERROR,
    "asyncio::test_cancelled_ends_late": PASSED,
    "asyncio::test_ends_soon": PASSED,
    "asyncio::test_block": FAILED,
    "asyncio::test_block_below_default": FAILED,
    "asyncio::test_block_not_asked_for": PASSED,
    "asyncio::test_warns[1]": PASSED,
    "asyncio::test_warns[2]": PASSED,
    "asyncio::test_cancels": PASSED,
    "asyncio::test_name_filter": PASSED,
    "asyncio::test_fails": FAILED,
    "asyncio::test_fails_beside_fixture": FAILED,
    "asyncio::test_skips": SKIPPED,
    "asyncio::test_xfails": SKIPPED,
    "asyncio::test_xfails_for_its_leak": SKIPPED,
    "asyncio::TestInClass::test_method": PASSED,
    "asyncio::TestInClass::test_method_leaks": FAILED,
    "asyncio::test_kinds_switched_off": PASSED,
    "asyncio::test_leaks_the_first_time": PASSED,
    "asyncio::test_takes_too_long": FAILED,
    "scopes::test_first": FAILED,
    "scopes::test_second": PASSED,
    "scopes::test_third": FAILED,
    "scopes::test_uses_pool": PASSED,
    "scopes::test_uses_untidy_pool": PASSED,
    "scopes::test_last": ERROR,
    "anyio::test_nothing[asyncio]": PASSED,
    "anyio::test_nothing[trio]": PASSED,
    "anyio::test_tidy_fixture[asyncio]": PASSED,
    "anyio::test_tidy_fixture[trio]": PASSED,
    "anyio::test_untidy_fixture[asyncio]": ERROR,
    "anyio::test_untidy_fixture[trio]": PASSED,
    "anyio::test_task_left[asyncio]": FAILED,
    "anyio::test_task_left[trio]": PASSED,
    "anyio::test_block[asyncio]": FAILED,
    "anyio::test_block[trio]": FAILED,
    "trio::test_nothing": PASSED,
    "trio::test_thread_of_trio": PASSED,
    "trio::test_block": FAILED,
    "trio::test_thread_left": FAILED,
    "trio::test_mock_clock_stands_still": FAILED,
    "trio::test_xfails": SKIPPED,
    "unittest::Tidy::test_nothing": PASSED,
    "unittest::Tidy::test_torn_down": PASSED,
    "unittest::Tidy::test_cleaned_up": PASSED,
    "unittest::Tidy::test_task_left": FAILED,
    "unittest::Tidy::test_fails": FAILED,
    "unittest::Tidy::test_expected_failure": SKIPPED,
    "unittest::Tidy::test_skipped": SKIPPED,
    "unittest::Tidy::test_sync": PASSED,
    "unittest::Untidy::test_nothing": FAILED,
    "unittest::UntidyAtEnd::test_nothing": FAILED,
    "unittest::PlainUntidyAtEnd::test_nothing": FAILED,
    "unittest::UntidyCleanup::test_nothing": FAILED,
    "unittest::PlainUntidyCleanup::test_nothing": FAILED,
    "unittest::Plain::test_nothing": PASSED,
    "unittest::Plain::test_thread_left": FAILED,
    "sync::test_nothing": PASSED,
    "sync::test_thread_left": FAILED,
    "sync::test_fixture_cleans_what_the_body_began": PASSED,
    "sync::test_untidy_fixture": ERROR,
    "sync::test_untidy_teardown": ERROR,
    "sync::test_untidy_finalizer": ERROR,
    "sync::test_fixture_cleans_what_another_began": PASSED,
    "sync::test_wide_fixture_cleans_what_another_began": PASSED,
    "sync::test_runs_a_loop": PASSED,
    "sync::test_all_of_nothing": PASSED,
    "sync::test_opts_out": PASSED,
    "wrong::test_unknown_argument": ERROR,
    "wrong::test_unknown_kind": ERROR,
    "wrong::test_unknown_action": ERROR,
    "wrong::test_impossible_threshold": ERROR,
    "wrong::test_right": PASSED,
}


@pytest.mark.slow
@pytest.mark.parametrize("test", OUTCOMES)
def test_outcome(marked: Run, test: str) -> None:
    assert marked.outcomes().get(test) == OUTCOMES[test], marked.output


FINDINGS = {
    "asyncio": {
        ("task", "by-body", "test_task_left"): 1,
        ("task", "by-body-beside-fixture", "test_task_left_beside_fixture"): 1,
        ("task", "by-body-not-for-fixture", "test_fixture_cleans_only_its_own"): 1,
        ("task", "by-untidy", "untidy"): 1,
        ("task", "by-teardown", "untidy_at_end"): 1,
        ("block", "", "blocks_at_end"): 1,
        ("task", "by-untidy-without-teardown", "untidy_without_teardown"): 1,
        ("block", "", "test_block"): 1,
        ("block", "", "test_block_below_default"): 1,
        ("task", "warned-of", "test_warns[1]"): 1,
        ("task", "warned-of", "test_warns[2]"): 2,
        ("task", "cancelled", "test_cancels"): 1,
        ("task", "by-failed", "test_fails"): 1,
        ("task", "by-failed-beside-fixture", "test_fails_beside_fixture"): 1,
        ("task", "by-skipped", "test_skips"): 1,
        ("task", "by-xfailed", "test_xfails"): 1,
        ("task", "expected", "test_xfails_for_its_leak"): 1,
        ("task", "by-method", "TestInClass::test_method_leaks"): 1,
        ("task", "rerun", "test_leaks_the_first_time"): 1,
        ("task", "by-timed-out", "test_takes_too_long"): 1,
    },
    "scopes": {
        ("task", "by-first", "test_first"): 1,
        ("task", "by-third", "test_third"): 1,
        ("task", "by-untidy-service", "untidy_service"): 1,
        ("task", "by-body-for-untidy-pool", "test_uses_untidy_pool"): 1,
    },
    "anyio": {
        ("task", "by-untidy", "untidy"): 1,
        ("task", "by-body", "test_task_left[asyncio]"): 1,
        ("block", "", "test_block[asyncio]"): 1,
        ("block", "", "test_block[trio]"): 1,
    },
    "trio": {
        ("block", "", "test_block"): 1,
        ("thread", "by-trio-body", "test_thread_left"): 1,
        ("thread", "by-mock-clock", "test_mock_clock_stands_still"): 1,
        ("block", "", "test_xfails"): 1,
    },
    "unittest": {
        ("task", "by-case", "Tidy::test_task_left"): 1,
        ("task", "by-failed-case", "Tidy::test_fails"): 1,
        ("task", "by-untidy-setup", "asyncSetUp"): 1,
        ("task", "by-untidy-teardown", "asyncTearDown"): 1,
        ("thread", "by-plain-teardown", "tearDown"): 1,
        ("task", "by-cleanup", "addCleanup"): 1,
        ("thread", "by-plain-cleanup", "addCleanup"): 1,
        ("thread", "by-plain-case", "Plain::test_thread_left"): 1,
    },
    "sync": {
        ("thread", "by-sync-body", "test_thread_left"): 1,
        ("thread", "by-untidy-sync", "untidy"): 1,
        ("thread", "by-sync-teardown", "untidy_at_end"): 1,
        ("thread", "by-sync-finalizer", "untidy_finalizer"): 1,
    },
    "wrong": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("suite", FINDINGS)
def test_findings(marked: Run, suite: str) -> None:
    assert marked.told(suite) == FINDINGS[suite], marked.output


@pytest.mark.slow
def test_place_is_the_creating_line(marked: Run) -> None:
    lines = (SUITES / "suite_asyncio.py").read_text().splitlines()
    left = next(each for each in marked.report["findings"] if each["name"] == "by-body")
    line = 1 + next(number for number, text in enumerate(lines) if 'name="by-body")' in text)
    assert left["place"]["file"] == str(marked.folder / "suite_asyncio.py")
    assert (left["place"]["line"], left["place"]["name"]) == (line, "test_task_left")


@pytest.mark.slow
def test_leaks_of_a_failed_test_are_notes_in_its_report(marked: Run) -> None:
    section = _section(marked.output, "test_fails")
    assert "ValueError: of the test" in section
    assert "Left by this test: Detected 1 leaked asyncio tasks" in section and "by-failed" in section


@pytest.mark.slow
def test_leaks_of_a_failed_test_that_a_fixture_might_have_cleaned_are_told_at_its_teardown(marked: Run) -> None:
    section = _section(marked.output, "test_fails_beside_fixture")
    assert "loopwatch teardown" in section and "by-failed-beside-fixture" in section


@pytest.mark.slow
def test_report_of_a_leak_is_its_text_without_traceback(marked: Run) -> None:
    section = _section(marked.output, "test_task_left")
    assert "Detected 1 leaked asyncio tasks" in section
    assert "pluggy" not in section and "loopwatch/pytest_plugin" not in section


@pytest.mark.slow
@pytest.mark.parametrize(
    ("test", "beginning"),
    [
        ("test_untidy_fixture", "Left by fixture 'untidy' of test_untidy_fixture: Detected 1 leaked asyncio tasks"),
        ("test_last", "Left by fixture 'untidy_service' of this module, first used by test_first: Detected 1 leaked"),
    ],
)
def test_error_begins_with_the_fixture_that_left_it_and_says_it_once(marked: Run, test: str, beginning: str) -> None:
    section = _section(marked.output, f"ERROR at teardown of {test}")
    assert beginning in section
    assert "loopwatch teardown" not in section


def _section(output: str, test: str) -> str:
    match = re.search(rf"^_+ {test} _+$(.*?)^(_+ \S+.* _+|=+ .* =+)$", output, re.MULTILINE | re.DOTALL)
    assert match is not None, output
    return match.group(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "message",
    [
        "suite_wrong.py::test_unknown_argument: there is no setting 'taks'; did you mean 'tasks'?",
        "suite_wrong.py::test_unknown_kind: no_leaks('taks') selects nothing that there is; there are 'tasks', ",
        "task_action must be 'warn', 'log', 'cancel', 'raise'",
        "blocking_threshold must be a number of seconds above 0, got -1",
    ],
)
def test_wrong_marker_says_what_is_right(marked: Run, message: str) -> None:
    assert message in marked.output


@pytest.mark.slow
def test_summary_begins_with_the_worst(marked: Run) -> None:
    summary = marked.output.partition("= loopwatch: ")[2].splitlines()
    assert re.match(r"\d+ findings in \d+ tests of \d+ under guard =+", summary[0]), summary[0]
    assert re.match(r"3 tasks: suite_asyncio\.py:\d+ in test_warns", summary[1]), summary[1]
    assert summary[3:5] == ["    suite_asyncio.py::test_warns[1]", "    suite_asyncio.py::test_warns[2] (2 times)"]


@pytest.mark.slow
def test_junit_properties(marked: Run) -> None:
    cases = ElementTree.parse(marked.folder / "junit.xml").iter("testcase")
    case = next(case for case in cases if case.get("name") == "test_warns[2]")
    properties = [(each.get("name"), each.get("value")) for each in case.iter("property")]
    assert [name for name, _ in properties] == ["loopwatch.task", "loopwatch.task"]
    assert all("warned-of" in (value or "") for _, value in properties)


@pytest.mark.slow
def test_json_keeps_to_its_schema(marked: Run) -> None:
    jsonschema.validate(marked.report, json.loads(SCHEMA.read_text()))
    assert marked.report["schema"] == "loopwatch.pytest/1"


@pytest.mark.slow
def test_nothing_troubled_the_plugin(marked: Run) -> None:
    assert marked.report["troubles"] == []
    assert "loopwatch itself" not in marked.output and "INTERNALERROR" not in marked.output


AUTO_INI = INI + "asyncio_mode = auto\nfilterwarnings = error\n"


@pytest.fixture
def everything(request: pytest.FixtureRequest) -> Run:
    """A suite without markers under --loopwatch, in two workers of xdist; writes a baseline."""
    arguments = ("--loopwatch", "-n2", "--loopwatch-annotations=github", "--loopwatch-baseline=known.json")
    return shared("everything", request, lambda folder: run(folder, *arguments, suites=("auto",), ini=AUTO_INI))


@pytest.mark.slow
def test_workers_send_what_they_find(everything: Run) -> None:
    names = {each["name"] for each in everything.report["findings"]}
    assert {"by-auto-body", "by-auto-fixture", "by-auto-failed"} <= names, everything.output


@pytest.mark.slow
def test_baseline_is_written_once_and_then_fails_on_what_is_new(everything: Run, tmp_path: Path) -> None:
    known = everything.folder / "known.json"
    assert everything.report["finding_count"] == 0 and everything.report["known_count"] >= 3
    assert "known.json holds 3 places that leak" in everything.output, everything.output
    ini = AUTO_INI + f"loopwatch = true\nloopwatch_baseline = {known}\nloopwatch_action = raise\n"
    folder = everything.folder
    again = run(folder, "-k", "not new", suites=("auto",), ini=ini)
    assert again.outcomes()["auto::test_leaks"] == PASSED, again.output
    assert again.outcomes()["auto::test_fails"] == FAILED
    assert again.report["finding_count"] == 0
    (folder / "more").write_text("")
    new = run(folder, "-k", "not test_fails", suites=("auto",), ini=ini)
    assert new.outcomes()["auto::test_new"] == FAILED, new.output
    assert new.outcomes()["auto::test_leaks"] == PASSED
    assert "not met in this run:\n    1 task created by test_fails in suite_auto.py" in new.output


@pytest.mark.slow
def test_annotations_update_and_warnings_that_are_errors(everything: Run) -> None:
    assert "::warning" not in everything.output  # all of it is known now
    folder = everything.folder
    arguments = ("--loopwatch", "--loopwatch-baseline=other.json", "--loopwatch-update-baseline")
    run(folder, *arguments, "-k", "nothing", suites=("auto",), ini=AUTO_INI)
    again = run(
        folder,
        *("--loopwatch", "--loopwatch-baseline=other.json", "--loopwatch-annotations=github", "-k", "not new"),
        suites=("auto",),
        ini=AUTO_INI,
    )
    assert again.outcomes()["auto::test_leaks"] == PASSED
    assert again.outcomes()["auto::test_fails"] == FAILED
    lines = [line for line in again.output.splitlines() if line.startswith("::warning ")]
    pattern = r"::warning file=suite_auto\.py,line=\d+,title=loopwatch%3A 1 task::"
    assert any(re.match(pattern, line) for line in lines)


@pytest.mark.slow
def test_same_outcomes_as_bare_and_without_the_plugin(tmp_path: Path) -> None:
    bare = run(tmp_path / "bare", "-p", "no:loopwatch", "--strict-markers", suites=("bare",), ini=AUTO_INI)
    quiet = run(tmp_path / "quiet", suites=("bare",), ini=AUTO_INI)
    watched = run(tmp_path / "watched", "--loopwatch", "-p", "no:terminal", suites=("bare",), ini=AUTO_INI)
    other = run(tmp_path / "other", "--loopwatch", "-p", "no:logging", "-p", "no:asyncio", suites=("bare",), ini=INI)
    assert bare.outcomes() == quiet.outcomes() == watched.outcomes()
    assert quiet.report["finding_count"] == 0 and watched.report["finding_count"] == 1
    assert "INTERNALERROR" not in bare.output + quiet.output + watched.output + other.output


@pytest.mark.slow
def test_marker_is_registered_and_settings_are_described(tmp_path: Path) -> None:
    markers = run(tmp_path, "--markers", suites=())
    assert "@pytest.mark.no_leaks(*kinds, **settings): " in markers.output
    described = run(tmp_path, "--help", suites=())
    for option in ("--loopwatch ", "--loopwatch-task-action", "--loopwatch-blocking-threshold", "--loopwatch-json"):
        assert option in described.output
    assert "loopwatch_thread_name_filter" in described.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loopwatch", "--loopwatch-task-action=rise"], "--loopwatch-task-action: task_action must be"),
        (["--loopwatch", "--loopwatch-blocking-threshold=0"], "must be a number of seconds above 0, got '0'"),
        (["--loopwatch-update-baseline", "--loopwatch"], "--loopwatch-update-baseline needs --loopwatch-baseline"),
        (
            ["--loopwatch", "--loopwatch-baseline=typo/known.json"],
            "the baseline typo/known.json cannot be written",
        ),
        (
            ["--loopwatch", "--loopwatch-json=typo/report.json"],
            "--loopwatch-json typo/report.json cannot be written",
        ),
    ],
)
def test_wrong_setting_is_a_usage_error(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(tmp_path, *arguments, suites=("bare",), ini=INI)
    assert done.code == 4 and message in done.output


@pytest.mark.slow
def test_unused_plugin_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "suite_unused.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    imported = [name for name in sys.modules if name.startswith('loopwatch')]\n"
        "    assert 'loopwatch.pytest_plugin.conductor' not in imported, imported\n"
        "    assert 'loopwatch._core' not in imported, imported\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:pyleak", "suite_unused.py", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_a_descriptor_that_a_wider_fixture_holds_is_judged_with_that_fixture(tmp_path: Path) -> None:
    done = run(tmp_path, "--loopwatch", suites=("wide",), ini=INI + "loopwatch_action = raise\n")
    assert done.outcomes() == {"wide::test_uses_the_client": PASSED, "wide::test_forgets_a_socket": FAILED}, done.output


WAITING = """
import socket

import pytest


@pytest.fixture(scope="session")
def first():
    ours, theirs = socket.socketpair()
    yield ours
    ours.close()
    theirs.close()


@pytest.fixture
def second(first):
    ours, theirs = socket.socketpair()
    yield ours
    ours.close()
    theirs.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("number", range(10))
async def test_nothing(second, number):
    pass
"""


def test_what_fixtures_hold_is_not_waited_for(tmp_path: Path) -> None:
    """Each of them has its teardown to come: no grace period is spent on it before, in none of the tests."""
    (tmp_path / "test_waiting.py").write_text(WAITING)
    ended = run(tmp_path, "--loopwatch", "-v", "test_waiting.py", suites=())
    assert ended.code == 0, ended.output
    assert ended.report["findings"] == []
    spent = sum(float(case.get("time", "0")) for case in ElementTree.parse(tmp_path / "junit.xml").iter("testcase"))
    assert spent < 1.0, ended.output  # one grace period each, of 0.1 s, would be more


SOON = """
import asyncio

import pytest


@pytest.mark.parametrize("number", range(8))
async def test_timer(number):
    asyncio.get_running_loop().call_later(0.099, int)


@pytest.mark.parametrize("number", range(8))
async def test_task(number):
    asyncio.create_task(asyncio.wait_for(asyncio.sleep(0.099), 10))
"""


def test_what_ends_within_the_grace_period_is_no_leak(tmp_path: Path) -> None:
    """To its last millisecond, with the turns of the loop that it then takes to end."""
    (tmp_path / "test_soon.py").write_text(SOON)
    ended = run(tmp_path, "--loopwatch", "test_soon.py", suites=(), ini=AUTO_INI)
    assert ended.code == 0, ended.output
    assert [each["headline"] for each in ended.report["findings"]] == []


NEW_NAMES = """
import asyncio
import sqlite3

kept = []


def test_database(tmp_path):
    kept.append(sqlite3.connect(tmp_path / "a.db"))


async def test_opened_in_a_thread(tmp_path):
    (tmp_path / "x").write_text("x")
    kept.append(await asyncio.to_thread(open, tmp_path / "x"))


async def test_begun_by_the_library():
    kept.append(asyncio.Event())  # or the task may be collected: another kind of finding
    asyncio.get_running_loop().call_soon(asyncio.ensure_future, kept[-1].wait())
    await asyncio.sleep(0)
"""


def test_baseline_knows_what_has_another_name_in_every_run(tmp_path: Path) -> None:
    (tmp_path / "test_names.py").write_text(NEW_NAMES)
    arguments = ("--loopwatch", "--loopwatch-action=raise", "--loopwatch-baseline=known.json", "test_names.py")
    first = run(tmp_path, *arguments, suites=(), ini=AUTO_INI)
    again = run(tmp_path, *arguments, suites=(), ini=AUTO_INI)
    assert (first.code, again.code) == (0, 0), again.output
    assert again.report["known_count"] == first.report["known_count"] == 3
    entries = json.loads((tmp_path / "known.json").read_text())["leaks"]
    assert {entry["file"] for entry in entries} == {"test_names.py"}  # no path of this machine, or version
    assert "not met" not in again.output


UNWRITABLE = """
import shutil
import threading

from conftest import held


def test_leaks():
    threading.Thread(target=held.wait, name="left").start()
    shutil.rmtree("there")
"""


def test_a_baseline_that_cannot_be_written_hides_nothing_and_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "test_unwritable.py").write_text(UNWRITABLE)
    ended = run(tmp_path, "--loopwatch", "--loopwatch-baseline=there/known.json", "test_unwritable.py", suites=())
    assert ended.code == 1, ended.output
    assert "could not write the baseline" in ended.output
    assert [(each["name"], each["known"]) for each in ended.report["findings"]] == [("left", False)]
    assert "thread 'left' created at" in ended.output


def test_what_is_clean_or_known_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "test_one.py").write_text(UNWRITABLE.replace('shutil.rmtree("there")', "assert shutil"))
    clean = run(tmp_path, "--loopwatch", "--loopwatch-threads=no", "test_one.py", suites=())
    assert "loopwatch: no findings, 1 test under guard\n" in clean.output
    run(tmp_path, "--loopwatch", "--loopwatch-baseline=known.json", "test_one.py", suites=())
    known = run(tmp_path, "--loopwatch", "--loopwatch-baseline=known.json", "test_one.py", suites=())
    assert "loopwatch: 0 new findings, 1 known, 1 test under guard\n" in known.output


def test_a_run_without_a_guarded_test_writes_no_baseline_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "test_none.py").write_text("def test_nothing():\n    pass\n")
    ended = run(tmp_path, "--loopwatch-baseline=known.json", "test_none.py", suites=())
    assert ended.code == 0 and "No test was under guard: add --loopwatch, or mark tests" in ended.output
    assert not (tmp_path / "known.json").exists()
    for words in (["--collect-only"], ["-k", "matches_none"]):
        ended = run(tmp_path, "--loopwatch", "--loopwatch-baseline=known.json", *words, "test_none.py", suites=())
        assert "under guard" not in ended.output and not (tmp_path / "known.json").exists(), ended.output


WORKERS = """
import importlib.util
import os

import anyio
import pytest

BACKENDS = ["asyncio", "trio"]
if importlib.util.find_spec("uvloop"):
    BACKENDS.append(("asyncio", {"use_uvloop": True}))


@pytest.fixture(params=BACKENDS)
def anyio_backend(request):
    return request.param


@pytest.mark.anyio
async def test_worker():
    assert await anyio.to_process.run_sync(len, "abc") == 3


@pytest.mark.anyio
async def test_worker_and_more():
    assert await anyio.to_process.run_sync(len, "abc") == 3
    os.pipe()
"""


def test_workers_of_anyio_are_no_leak_and_what_lies_beside_them_is(tmp_path: Path) -> None:
    (tmp_path / "test_workers.py").write_text(WORKERS)
    ended = run(tmp_path, "--loopwatch", "-p", "no:asyncio", "test_workers.py", suites=())
    assert ended.code == 0, ended.output
    told = {(each["kind"], each["name"], each["test"].partition("[")[0]) for each in ended.report["findings"]}
    assert told == {("descriptor", "pipe", "test_workers.py::test_worker_and_more")}
    shown = run(tmp_path, "--loopwatch", "--loopwatch-default-ignores=no", "test_workers.py", suites=())
    assert {"process", "descriptor"} <= {each["kind"] for each in shown.report["findings"]}


STACKS = """
import asyncio
import threading

import pytest
from conftest import held


def start(name):
    threading.Thread(target=held.wait, name=name).start()


@pytest.fixture
def sync_fixture():
    start("by-fixture")


@pytest.fixture
async def async_fixture():
    asyncio.create_task(asyncio.sleep(60), name="by-async-fixture")


def test_sync(sync_fixture):
    start("by-test")


async def test_async(async_fixture):
    asyncio.create_task(asyncio.sleep(60), name="by-async-test")
    start("by-thread-of-async-test")
"""


def test_creation_stacks_begin_at_the_test_or_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_stacks.py").write_text(STACKS)
    ended = run(tmp_path, "--loopwatch", "test_stacks.py", suites=(), ini=AUTO_INI)
    outermost = {each["name"]: each["stack"][0]["name"] for each in ended.report["findings"]}
    assert outermost == {
        "by-fixture": "sync_fixture",
        "by-async-fixture": "async_fixture",
        "by-test": "test_sync",
        "by-async-test": "test_async",
        "by-thread-of-async-test": "test_async",
    }


BLIND = """
import pytest


@pytest.mark.no_leaks("tasks")
def test_sync():
    pass


@pytest.mark.no_leaks("tasks")
@pytest.mark.trio
async def test_trio():
    pass


@pytest.mark.no_leaks("tasks")
@pytest.mark.asyncio
async def test_asyncio():
    pass


@pytest.mark.no_leaks("tasks")
class TestMixed:  # the marker is meant for those of its tests that have a loop
    def test_beside(self):
        pass


@pytest.mark.no_leaks("taks")
def test_wrong():
    pass
"""


def test_a_marker_that_can_see_nothing_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "test_blind.py").write_text(BLIND)
    ended = run(tmp_path, "test_blind.py", suites=())
    warned = ended.output.partition("warnings summary")[2]
    assert "no_leaks looks for nothing in this test: it asks for tasks" in warned, ended.output
    assert "test_sync" in warned and "test_trio" in warned
    assert "test_asyncio" not in warned and "test_beside" not in warned
    assert "During handling" not in ended.output


def test_a_misspelt_key_to_ignore_is_no_name(tmp_path: Path) -> None:
    ended = run(tmp_path, "--loopwatch", "--loopwatch-ignore=creatr=confirm", suites=("bare",), ini=INI)
    assert ended.code == 4 and "'creatr' is no key, did you mean 'creator'?" in ended.output
