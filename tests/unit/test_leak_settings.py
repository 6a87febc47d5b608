"""Settings from text and from files: what they become, and what a mistake says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from loopwatch import Ignore, SettingError, no_leaks
from loopwatch.leaks import config
from loopwatch.settings import KINDS, SETTINGS, setting


@pytest.fixture(autouse=True)
def _forget() -> Any:
    config._configured.cache_clear()
    yield
    config._configured.cache_clear()


# --- one description -------------------------------------------------------------------------------------------------


def test_every_kind_has_a_switch_and_an_action() -> None:
    for kind in KINDS:
        assert SETTINGS[kind].type == "bool"
        actions = [entry for entry in SETTINGS.values() if entry.kind == kind and entry.option == "action"]
        assert len(actions) == 1
    assert [*inspect.signature(no_leaks).parameters][2 : 2 + len(KINDS)] == [*KINDS]


def test_pyleak_s_marker_arguments_are_settings() -> None:
    assert {
        "tasks",
        "task_action",
        "task_name_filter",
        "enable_task_creation_tracking",
        "threads",
        "thread_action",
        "thread_name_filter",
        "exclude_daemon_threads",
        "blocking",
        "blocking_action",
        "blocking_threshold",
        "blocking_check_interval",
    } <= SETTINGS.keys()


def test_names_for_ini_and_command_line() -> None:
    entry = SETTINGS["blocking_threshold"]
    assert (entry.ini, entry.command_line) == ("loopwatch_blocking_threshold", "--loopwatch-blocking-threshold")
    assert all(entry.help.endswith(".") and entry.valid for entry in SETTINGS.values())


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("tasks", "false", False),
        ("tasks", "ON", True),
        ("task_action", "raise", "raise"),
        ("action", "log, cancel", ["log", "cancel"]),
        ("grace_period", "0.5", 0.5),
        ("blocking_threshold", "1", 1.0),
        ("task_name_filter", "worker-1", "worker-1"),
        ("task_name_filter", r"re:worker-\d+", re.compile(r"worker-\d+")),
        ("task_name_filter", "", None),
        ("baseline", "leaks.json", "leaks.json"),
        (
            "ignore",
            "pool # the app's\nstack=Pool.run\nkind=timer",
            (
                Ignore(name="pool", reason="the app's"),
                Ignore(stack="Pool.run"),
                Ignore(kind="timer"),
            ),
        ),
    ],
)
def test_text_becomes_what_guards_take(name: str, text: str, value: Any) -> None:
    assert SETTINGS[name].parse(text, "pytest.ini", text=True) == value


@pytest.mark.parametrize(
    ("name", "value", "text", "message"),
    [
        ("tasks", "maybe", True, "x.ini: tasks must be true or false, got 'maybe'"),
        ("tasks", "true", False, "x.ini: tasks must be true or false, got 'true'"),
        ("tasks", 1, False, "must be true or false"),
        ("action", "rise", True, "did you mean 'raise'"),
        ("action", 3, False, "action must be 'warn', 'log', 'cancel', 'raise'"),
        ("grace_period", "soon", True, "a number of seconds, 0 or more, got 'soon'"),
        ("grace_period", True, False, "a number of seconds"),
        ("grace_period", -1, False, "a number of seconds, 0 or more"),
        ("blocking_threshold", 0, False, "a number of seconds above 0"),
        ("task_name_filter", "re:(", True, "is no regular expression"),
        ("task_name_filter", 3, False, "a name, matched whole"),
        ("baseline", 3, False, "the path of a file"),
        ("ignore", 3, False, "a list of what to overlook"),
        ("ignore", "name=re:(", True, "is no regular expression"),
        ("ignore", "kind=tasks", True, "did you mean 'task'"),
    ],
)
def test_a_wrong_value_says_where_what_and_what_instead(name: str, value: Any, text: bool, message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        SETTINGS[name].parse(value, "x.ini", text=text)


def test_a_misspelt_name_says_the_nearest() -> None:
    with pytest.raises(SettingError, match="there is no setting 'task_acton'; did you mean 'task_action'"):
        setting("task_acton", "here")
    with pytest.raises(SettingError, match="there are: action, tasks"):
        setting("zzzz", "here")


# --- the file --------------------------------------------------------------------------------------------------------

TOML = """
task_action = "raise"
threads = false
grace_period = 0.5
baseline = "leaks.json"

[[ignore]]
name = 're:^pool-\\d+$'
reason = "the pool is global"

[[ignore]]
stack = "Cache.refresh"
kind = "task"
reason = "runs for good"
"""


def test_the_nearest_file_upward_counts(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (tmp_path / "loopwatch.toml").write_text(TOML)
    (tmp_path / "a" / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    found = config.configured(deep)
    assert found.path == str(tmp_path / "loopwatch.toml")
    assert found.values == {
        "task_action": "raise",
        "threads": False,
        "grace_period": 0.5,
        "baseline": str(tmp_path / "leaks.json"),
        "ignore": (
            Ignore(name=re.compile(r"^pool-\d+$"), reason="the pool is global"),
            Ignore(stack="Cache.refresh", kind="task", reason="runs for good"),
        ),
    }


def test_pyproject_and_which_goes_first(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.loopwatch]\ntasks = false\n")
    assert config.configured(tmp_path).values == {"tasks": False}
    config._configured.cache_clear()
    (tmp_path / "loopwatch.toml").write_text("timers = false\n")
    assert config.configured(tmp_path).values == {"timers": False}


def test_without_a_file_nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "find_config", lambda folder: None)
    assert config.configured(tmp_path) == config.Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks = ", "cannot be read"),
        ("task_acton = 'raise'", "loopwatch.toml: there is no setting 'task_acton'; did you mean 'task_action'"),
        ("tasks = 'no'", "loopwatch.toml: tasks must be true or false, got 'no'"),
        ("tasks = {action = 'raise'}", "tasks must be true or false"),
        ("blocking_threshold = 0", "a number of seconds above 0"),
        ("ignore = ['pool']", 'ignore entry 1 must be a table such as {name = "...", reason = "..."}'),
        ("ignore = 'pool'", "ignore must be an array of tables"),
        ("[[ignore]]\nname = 'pool'", "ignore entry 1 has no reason: say why this is no leak"),
        ("[[ignore]]\nnames = 'pool'\nreason='x'", "ignore entry 1 has an unknown key 'names'"),
        ("[[ignore]]\nname = 3\nreason='x'", "ignore entry 1: name must be a string, got 3"),
        ("[[ignore]]\nname = 're:('\nreason='x'", "ignore entry 1: 're:(' is no regular expression"),
        ("[[ignore]]\nkind = 'tasks'\nreason='x'", "did you mean 'task'"),
        ("[[ignore]]\nreason='x'", "would overlook every leak"),
    ],
)
def test_a_wrong_file_says_which_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "loopwatch.toml").write_text(text)
    with pytest.raises(SettingError, match=re.escape(message)) as caught:
        config.configured(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_wrong_table_in_pyproject(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool]\nloopwatch = 3\n")
    with pytest.raises(SettingError, match=r"\[tool.loopwatch\] must be a table, got 3"):
        config.configured(tmp_path)


def test_guards_take_the_file_s_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loopwatch.toml").write_text("default_ignores = false\n[[ignore]]\nname='x'\nreason='y'\n")
    monkeypatch.chdir(tmp_path)
    assert config.standing() == (Ignore(name="x", reason="y"),)
    (tmp_path / "loopwatch.toml").write_text("")
    config._configured.cache_clear()
    assert len(config.standing()) > 5


def test_the_documentation_names_every_setting() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "suppression.md").read_text()
    assert [name for name in SETTINGS if f"| `{name}` |" not in text] == []
