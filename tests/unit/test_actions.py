"""Actions: what is accepted, what each does, and that no exception of the body is ever replaced."""

from __future__ import annotations

import asyncio
import logging
import warnings
from typing import Any

import pytest

from loopwatch.actions import LeakAction, Report, Site, dispatch, parse_action
from loopwatch.errors import LeakError


def report(**more: Any) -> Report:
    return Report(["finding"], LeakError("found it"), lambda: "cannot be cancelled.", **more)


def run(action: Any, body: BaseException | None = None, **more: Any) -> None:
    dispatch(parse_action(action), report(**more), Site.of_caller, body)


@pytest.mark.parametrize("action", list(LeakAction))
def test_names_and_members_are_the_same(action: LeakAction) -> None:
    assert parse_action(action) == parse_action(action.value) == (action,)


def test_several_actions_are_kept_in_order() -> None:
    assert parse_action(["log", print, ("warn", LeakAction.RAISE)]) == (
        LeakAction.LOG,
        print,
        LeakAction.WARN,
        LeakAction.RAISE,
    )


def test_a_misspelt_action_names_the_valid_ones_and_what_came() -> None:
    with pytest.raises(ValueError, match=r"'warn', 'log', 'cancel', 'raise'.*got 'rais'.*did you mean 'raise'"):
        parse_action("rais")


def test_no_action_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        parse_action([])


async def _async_action(findings: list[Any]) -> None: ...


@pytest.mark.parametrize("value", [None, 1, b"warn", LeakAction, {"warn"}, _async_action, [None]])
def test_what_is_no_action_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="action must be"):
        parse_action(value)


def test_warn_points_to_the_users_line() -> None:
    with pytest.warns(ResourceWarning, match="found it") as caught:
        run("warn")
    assert caught[0].filename == __file__


def test_log_goes_to_the_default_logger_or_the_one_given(caplog: pytest.LogCaptureFixture) -> None:
    run("log")
    run("log", logger=logging.getLogger("mine"))
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("loopwatch", "WARNING", "found it"),
        ("mine", "WARNING", "found it"),
    ]


def test_cancel_warns_of_what_cannot_be_cancelled() -> None:
    with pytest.warns(ResourceWarning, match="cannot be cancelled"):
        run("cancel")


def test_a_callable_gets_the_findings() -> None:
    got: list[Any] = []
    run(got.extend)
    assert got == ["finding"]


def test_all_actions_run_and_raise_comes_last(caplog: pytest.LogCaptureFixture) -> None:
    got: list[Any] = []

    def fails(findings: list[Any]) -> None:
        raise KeyError("broken")

    with pytest.raises(LeakError, match="found it") as caught:
        run(["raise", fails, got.extend, "log"])
    assert got == ["finding"]
    assert len(caplog.records) == 1
    assert "KeyError('broken')" in caught.value.__notes__[0]


def test_a_failing_callable_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda findings: 1 / 0)


BODIES = [ValueError("mine"), asyncio.CancelledError(), KeyboardInterrupt(), pytest.skip.Exception("skipped")]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
@pytest.mark.parametrize("action", ["warn", "log", "cancel", "raise", lambda findings: 1 / 0])
def test_the_exception_of_the_body_gets_a_note_and_a_warning(action: Any, body: BaseException) -> None:
    body.__notes__ = []
    with pytest.warns(ResourceWarning, match="found it"):
        run(action, body)
    assert body.__notes__[0] == "found it"


@pytest.mark.parametrize("end", [SystemExit(3), pytest.fail.Exception("failed")], ids=lambda end: type(end).__name__)
def test_an_action_that_ends_the_program_or_test_does_so_but_not_in_place_of_the_body_s_exception(
    end: BaseException,
) -> None:
    def ends(findings: list[Any]) -> None:
        raise end

    with pytest.raises(type(end)):
        run([ends, "raise"])
    body = asyncio.CancelledError()
    with pytest.warns(ResourceWarning):
        run(ends, body)
    assert "an action of loopwatch failed" in body.__notes__[1]


@pytest.mark.parametrize("action", ["warn", "cancel", "raise"])
def test_warnings_that_are_errors_do_not_replace_the_exception_of_the_body(action: Any) -> None:
    body = ValueError("mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(action, body)
    assert body.__notes__ == ["found it"]


def test_warnings_that_are_errors_are_raised_once_all_ran() -> None:
    got: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ResourceWarning):
            run(["warn", got.extend])
    assert got == ["finding"]


def test_a_body_that_takes_no_notes_passes_unharmed() -> None:
    class SealedError(Exception):
        def add_note(self, note: str) -> None:
            raise RuntimeError("sealed")

    with pytest.warns(ResourceWarning):
        run("raise", SealedError())
