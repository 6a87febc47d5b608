"""The verdict on what a region left behind: recorded for the report, and the actions run."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from loopwatch.actions import LeakAction
from loopwatch.errors import LeakError, LeakErrorGroup, add_note
from loopwatch.leaks.effort import IN_TESTS, allow
from loopwatch.pytest_plugin.baseline import KnownFindings
from loopwatch.pytest_plugin.plan import Plan
from loopwatch.pytest_plugin.records import Record, record
from loopwatch.pytest_plugin.region import Found, Owner, Region

__all__ = ["FAILURES", "ItemState", "Judge", "is_verdict", "raise_for", "without_traceback"]

FAILURES = (Exception, pytest.fail.Exception)
_FLAG = "_loopwatch_raised"
_OWNER = "_loopwatch_owner"


@dataclass
class ItemState:
    """One run of one test, from its setup to its teardown.

    ``cleaners``: fixtures of this test are to be torn down, which may clean up.  ``ended``: the exception with which
    its setup or body ended, be it a failure or a skip; ``failed``: a failure.  ``undecided``: regions to be judged
    after teardown.  ``raising``: what is to be raised when the loop has been left.
    """

    item: pytest.Item
    plan: Plan
    cleaners: bool = False
    failed: bool = False
    ended: BaseException | None = None
    undecided: list[Region] = field(default_factory=list)
    raising: list[BaseException] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def end_with(self, error: BaseException | None) -> None:
        """Remember how the test ended."""
        if error is not None:
            self.ended = error
            self.failed = self.failed or isinstance(error, FAILURES)

    def take(self) -> dict[str, Any] | None:
        """What was found since the last report, as plain data."""
        if not self.records and not self.troubles:
            return None
        taken = {"findings": self.records, "troubles": self.troubles}
        self.records, self.troubles = [], []
        return taken


class Judge:
    """Judges regions.  What ``baseline`` knows is recorded, and does nothing else."""

    def __init__(self, baseline: KnownFindings | None) -> None:
        self._baseline = baseline

    def judge(
        self, region: Region, state: ItemState, ended: BaseException | None, keep: frozenset[object] = frozenset()
    ) -> list[BaseException]:
        """Record what is left in a region and run the actions; returns what is to be raised.

        ``ended`` is the exception with which its code ended: a failure gets a note, and nothing is raised.  ``keep`` is
        what is not to be judged yet.
        """
        raising: list[BaseException] = []
        with allow(IN_TESTS):
            verdict = region.verdict(keep)
        for found in verdict:
            new = self._record(found, region.owner, state, ended)
            if not new.findings:
                continue
            if isinstance(ended, FAILURES):
                add_note(ended, f"{_whose(region.owner)}: {_text(new.error())}")
            raising += _act(new)
            if ended is None and LeakAction.RAISE in new.rule.actions:
                error = new.error()
                setattr(error, _OWNER, region.owner)
                raising.append(error)
        state.troubles += region.troubles
        region.troubles = []
        return raising

    def _record(self, found: Found, owner: Owner, state: ItemState, ended: BaseException | None) -> Found:
        new = found.findings if self._baseline is None else self._baseline.new(found.findings, owner.place)
        fresh = set(map(id, new))
        raised = ended is None and LeakAction.RAISE in found.rule.actions
        for finding in found.findings:
            known = id(finding) not in fresh
            entry = record(finding, found, owner, known=known, raised=raised and not known, failed=state.failed)
            state.records.append(entry)
            if not known:
                state.item.user_properties.append((f"loopwatch.{entry['kind']}", entry["headline"]))
        return replace(found, findings=new)


def _act(found: Found) -> list[BaseException]:
    """Run the actions that are not left to the caller; returns what they raised."""
    failures: list[BaseException] = []
    for action in found.rule.actions:
        try:
            if action is LeakAction.LOG:
                logging.getLogger("loopwatch").warning("%s", found.error())
            elif not isinstance(action, LeakAction):
                action(list(found.findings))
        except FAILURES as error:
            failures.append(error)
    return failures


def raise_for(raising: Sequence[BaseException]) -> None:
    """Raise what was found as one group, as pyleak does; what an action raised goes before."""
    __tracebackhide__ = True
    errors = [error for error in raising if isinstance(error, LeakError)]
    failures = [error for error in raising if not isinstance(error, LeakError)]
    if failures:
        for error in errors:
            add_note(failures[0], str(error))
        raise failures[0]
    if errors:
        group = LeakErrorGroup("loopwatch found:\n" + "\n\n".join(map(_owned_text, errors)), errors)
        setattr(group, _FLAG, True)
        raise group


def is_verdict(error: BaseException) -> bool:
    """Whether ``raise_for`` raised it."""
    return bool(getattr(error, _FLAG, False))


def without_traceback(excinfo: "pytest.ExceptionInfo[BaseException]") -> Any:
    """How a verdict is reported: its text says where; a traceback through the plugin would say nothing."""
    from _pytest._code.code import ReprExceptionInfo, ReprTracebackNative

    text = str(getattr(excinfo.value, "message", excinfo.value))
    crash = excinfo._getreprcrash()
    if crash is not None:
        crash.message = text.partition("\n")[2].partition("\n")[0] or text
    return ReprExceptionInfo(reprtraceback=ReprTracebackNative([text + "\n"]), reprcrash=crash)


def _text(error: LeakError) -> str:
    """The text of an error, with the lines that say where things were created: its own text may leave these out."""
    count, _, rest = str(error).partition("\n")
    lines = [f"  {leak.headline()}" for leak in getattr(error, "leaks", ())]
    return "\n".join([count, *lines, rest])


def _owned_text(error: LeakError) -> str:
    """The same, after whose it is where that is a fixture: the test that is to blame is not this one."""
    owner = getattr(error, _OWNER, None)
    if not isinstance(owner, Owner) or owner.fixture is None:
        return _text(error)
    return f"{_whose(owner)}: {_text(error)}"


def _whose(owner: Owner) -> str:
    if owner.fixture is None:
        return "Left by this test"
    test = owner.test.partition("::")[2]
    if owner.scope == "function":
        return f"Left by fixture {owner.fixture!r} of {test}"
    wide = owner.test if owner.scope in ("session", "package") else test
    return f"Left by fixture {owner.fixture!r} of this {owner.scope}, first used by {wide}"
