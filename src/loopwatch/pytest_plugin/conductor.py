"""The hooks that put tests and fixtures under guard.  Registered only where at least one test is.

Each test body and each fixture is a ``Region``.  Blocks of the loop are judged where they happen.  What else a test's
body leaves is judged at its end where nothing can clean it up any more, else after the teardown of its fixtures; what a
fixture leaves, when that fixture is finished.
"""

import asyncio
import inspect
import logging
import unittest
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from loopwatch.actions import LeakAction
from loopwatch.errors import LeakError, LeakErrorGroup, add_note
from loopwatch.pytest_plugin.baseline import KnownFindings
from loopwatch.pytest_plugin.plan import Plan, Planner, marker_layer, seen_from
from loopwatch.pytest_plugin.records import Record, record
from loopwatch.pytest_plugin.region import SHORT_WAIT, Claims, Found, Owner, Region
from loopwatch.pytest_plugin.wrapping import is_async, wrap_async_fixture, wrap_test
from loopwatch.settings import SettingError

__all__ = ["Conductor"]

_MARKER = "no_leaks"
_PLUGINS = ("_pytest.", "pytest_asyncio.", "anyio.", "pytest_trio.", "xdist.")
_XUNIT = ("xunit_", "unittest_")
_FLAG = "_loopwatch_raised"

_FAILURES = (Exception, pytest.fail.Exception)

Wrapper = Generator[None, Any, Any]


class ItemState:
    """One run of one test, from its setup to its teardown."""

    def __init__(self, item: pytest.Item, plan: Plan) -> None:
        self.item = item
        self.plan = plan
        self.cleaners = False
        self.failed = False
        self.error: BaseException | None = None
        self.undecided: list[Region] = []
        self.bodies: list[BodyStretch] = []
        self.errors: list[LeakError] = []
        self.records: list[Record] = []
        self.troubles: list[str] = []

    def take(self) -> tuple[list[Record], list[str]]:
        """What was found since the last report."""
        taken = self.records, self.troubles
        self.records, self.troubles = [], []
        return taken


class Conductor:
    """See above.  What ``baseline`` knows is recorded, and does nothing else."""

    def __init__(self, planner: Planner, baseline: KnownFindings | None) -> None:
        self._planner = planner
        self._baseline = baseline
        self._claims: Claims = {}
        self._state: ItemState | None = None
        self._fixtures: list[Region] = []

    # -- setup --------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._state = None
        marker = item.get_closest_marker(_MARKER)
        try:
            layer = None if marker is None else marker_layer(marker.args, marker.kwargs, item.nodeid)
            plan = self._planner.plan(layer)
        except (SettingError, TypeError, ValueError) as error:
            pytest.fail(str(error), pytrace=False)
        if plan and isinstance(item, pytest.Function):
            self._state = ItemState(item, plan)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Wrapper:
        state = self._state
        if state is None or _is_plugins_own(fixturedef):
            value = yield
            if state is not None:
                self._watch_end_of_loop(fixturedef, value)
            return value
        region = Region(_owner(fixturedef, state.item), state.plan, self._claims)
        stretch = FixtureStretch(self, region)
        fixturedef.addfinalizer(partial(self._fixture_finished, region))  # the first to be added is the last to run
        before = len(getattr(fixturedef, "_finalizers", ()))
        function = fixturedef.func
        if is_async(function) or inspect.isasyncgenfunction(function):
            wrapped = fixturedef.func = wrap_async_fixture(function, getattr(request, "instance", None), stretch)
            try:
                value = yield
            finally:
                if fixturedef.func is wrapped:
                    fixturedef.func = function
        else:
            stretch.begin()
            try:
                value = yield
            finally:
                stretch.leave_now(None)
        if fixturedef.scope == "function" and (
            len(getattr(fixturedef, "_finalizers", ())) > before or _has_teardown(fixturedef, function, request)
        ):
            state.cleaners = True
        self._watch_end_of_loop(fixturedef, value)
        return value

    def _watch_end_of_loop(self, fixturedef: Any, value: Any) -> None:
        """See what is left right before a fixture that is a loop, or runs one, closes it."""
        if isinstance(value, asyncio.AbstractEventLoop) or (hasattr(value, "get_loop") and hasattr(value, "run")):
            fixturedef.addfinalizer(self._settle_undecided)

    def _settle_undecided(self) -> None:
        for region in self._open_regions():
            if region.undecided:
                region.settle_now()

    def _open_regions(self) -> Sequence[Region]:
        undecided = [] if self._state is None else self._state.undecided
        return [*undecided, *self._fixtures]

    # -- call ---------------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Wrapper:
        state = self._state
        if state is None or state.item is not item or not isinstance(item, pytest.Function):
            return (yield)
        instance = item.instance
        if isinstance(instance, unittest.TestCase):
            state.cleaners = True
            self._guard_test_case(item, instance, state)
        function = item.obj
        hypothesis = getattr(function, "hypothesis", None)
        owner, name = (hypothesis, "inner_test") if hasattr(hypothesis, "inner_test") else (item, "obj")
        original = getattr(owner, name)
        wrapped = wrap_test(original, lambda: BodyStretch(self, state, original))
        setattr(owner, name, wrapped)
        if isinstance(instance, unittest.TestCase) and is_async(original):
            setattr(instance, item.originalname or item.name, wrapped)
        try:
            result = yield
        except BaseException as error:
            self._leave_bodies(state, error)
            state.errors.clear()
            raise
        finally:
            setattr(owner, name, original)
        self._leave_bodies(state, None)
        errors, state.errors = state.errors, []
        raise_for(errors)  # here, and not in the loop, where trio would wrap it and hypothesis would look for its cause
        return result

    def _leave_bodies(self, state: ItemState, error: BaseException | None) -> None:
        """Something broke through the loop (a timeout, Control-C): the test's coroutine was not resumed."""
        for body in list(state.bodies):
            body.leave_now(error)

    def _guard_test_case(self, item: pytest.Function, instance: unittest.TestCase, state: ItemState) -> None:
        """Guard setUp as a fixture, and judge after tearDown and all cleanups."""
        regions: list[Region] = []

        def judge() -> None:
            for region in [*state.undecided, *regions]:
                region.settle_now()
                region.cancel_now()
            self._judge_all(state, regions)

        async def judge_in_loop() -> None:
            for region in [*state.undecided, *regions]:
                await region.settle()
                await region.cancel()
            self._judge_all(state, regions)

        if isinstance(instance, unittest.IsolatedAsyncioTestCase):
            instance.addAsyncCleanup(judge_in_loop)
            names = ["asyncSetUp"]
        else:
            instance.addCleanup(judge)
            names = []
        for name in ["setUp", *names]:
            region = Region(Owner(item.nodeid, name, "function"), state.plan, self._claims)
            regions.append(region)
            stretch = FixtureStretch(self, region)
            setattr(instance, name, wrap_test(getattr(instance, name), partial(_itself, stretch)))

    def _judge_all(self, state: ItemState, regions: Sequence[Region]) -> None:
        undecided, state.undecided = state.undecided, []
        for region in [*undecided, *regions]:
            state.errors += self.judge(region, state, state.error)
            self.forget(region)

    # -- teardown -----------------------------------------------------------------------------------------------

    def _fixture_finished(self, region: Region) -> None:
        """The last finalizer of a fixture."""
        self.forget(region)
        region.settle_now()
        region.cancel_now()
        if self._state is not None:
            raise_for(self.judge(region, self._state, self._state.error))
        region.end()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Wrapper:
        state = self._state
        if state is None or state.item is not item:
            return (yield)
        try:
            result = yield
        except BaseException as error:
            self._judge_late(state, error)
            raise
        self._judge_late(state, None)
        return result

    def _judge_late(self, state: ItemState, error: BaseException | None) -> None:
        undecided, state.undecided = state.undecided, []
        errors: list[LeakError] = []
        for region in undecided:
            region.settle_now()
            region.cancel_now()
            errors += self.judge(region, state, error or state.error)
        raise_for(errors)

    # -- verdicts -----------------------------------------------------------------------------------------------

    def remember(self, region: Region) -> None:
        """A fixture left something behind that its teardown may clean up."""
        self._fixtures.append(region)

    def forget(self, region: Region) -> None:
        if region in self._fixtures:
            self._fixtures.remove(region)

    async def look_around(self, longest: float) -> None:
        """In the loop, which may be closed before the next chance: see what of all undecided is left."""
        loop = asyncio._get_running_loop()
        for region in self._open_regions():
            if region.loop is loop and region.undecided:
                await region.settle(longest)

    def judge(self, region: Region, state: ItemState, error: BaseException | None = None) -> list[LeakError]:
        """Record what is left in a region and run the actions; returns the errors to raise.

        ``error`` is the exception with which its code ended: it gets a note, and nothing is raised.
        """
        errors: list[LeakError] = []
        for found in region.verdict():
            new = self._record(found, region.owner, state, error)
            if not new.findings:
                continue
            if isinstance(error, _FAILURES):
                add_note(error, f"{_told(region.owner)}: {new.error()}")
            self._act(new)
            if error is None and LeakAction.RAISE in new.rule.actions:
                errors.append(new.error())
        state.troubles += region.troubles
        region.troubles = []
        return errors

    def _record(self, found: Found, owner: Owner, state: ItemState, error: BaseException | None) -> Found:
        new = found.findings if self._baseline is None else self._baseline.new(found.findings)
        fresh = set(map(id, new))
        raising = error is None and LeakAction.RAISE in found.rule.actions
        for finding in found.findings:
            known = id(finding) not in fresh
            entry = record(finding, found, owner, known=known, raised=raising and not known, failed=state.failed)
            state.records.append(entry)
            if not known:
                state.item.user_properties.append((f"loopwatch.{entry['kind']}", entry["headline"]))
        return replace(found, findings=new)

    def _act(self, found: Found) -> None:
        for action in found.rule.actions:
            if action is LeakAction.LOG:
                logging.getLogger("loopwatch").warning("%s", found.error())
            elif not isinstance(action, LeakAction):
                action(list(found.findings))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        report = yield
        state = self._state
        if state is None or state.item is not item:
            return report
        if call.excinfo is not None:
            state.failed = state.failed or report.failed
            if getattr(call.excinfo.value, _FLAG, False) and report.longrepr is not None:
                report.longrepr = _without_traceback(call.excinfo)
        records, troubles = state.take()
        if report.when == "call" or records or troubles:
            report.loopwatch = {"findings": records, "troubles": troubles}
        if report.when == "teardown":
            if records and state.failed:
                text = "\n\n".join(entry["text"] for entry in records if not entry["known"])
                report.sections.append(("loopwatch teardown", text))
            state.error = None
            self._state = None
        return report


class BodyStretch:
    """The body of a test, under guard."""

    def __init__(self, conductor: Conductor, state: ItemState, function: Callable[..., Any]) -> None:
        self._conductor = conductor
        self._state = state
        code = getattr(inspect.unwrap(function), "__code__", None)
        place = None if code is None else (code.co_filename, code.co_firstlineno, code.co_qualname)
        self._region = Region(Owner(state.item.nodeid, place=place), seen_from(state.plan, place), conductor._claims)

    def begin(self) -> None:
        self._state.bodies.append(self)
        self._region.begin()

    async def leave(self, error: BaseException | None) -> None:
        if self not in self._state.bodies:
            return
        await self._region.settle(SHORT_WAIT if self._state.cleaners else None)
        self._region.freeze()
        await self._conductor.look_around(0.0)
        if not self._state.cleaners:
            await self._region.cancel()
        self._decide(error)

    def leave_now(self, error: BaseException | None) -> None:
        if self not in self._state.bodies:
            return
        if error is None or isinstance(error, _FAILURES):
            self._region.settle_now(SHORT_WAIT if self._state.cleaners or error is not None else None)
        else:
            self._region.look()
        self._region.freeze()
        if not self._state.cleaners:
            self._region.cancel_now()
        self._decide(error)

    async def over(self) -> None:
        pass

    def _decide(self, error: BaseException | None) -> None:
        region, state = self._region, self._state
        state.bodies.remove(self)
        if error is not None:
            state.error = error
            state.failed = state.failed or isinstance(error, _FAILURES)
        if state.cleaners and region.undecided:
            state.undecided.append(region)
            return
        state.errors += self._conductor.judge(region, state, error)


class FixtureStretch:
    """The setup of a fixture, under guard."""

    def __init__(self, conductor: Conductor, region: Region) -> None:
        self._conductor = conductor
        self._region = region

    def begin(self) -> None:
        self._region.begin()

    async def leave(self, error: BaseException | None) -> None:
        self.leave_now(error)

    def leave_now(self, error: BaseException | None) -> None:
        self._region.look()
        self._region.freeze()
        if self._region.leftover:
            self._conductor.remember(self._region)

    async def over(self) -> None:
        await self._conductor.look_around(SHORT_WAIT)


def raise_for(errors: Sequence[LeakError]) -> None:
    """Raise what was found, as one group."""
    __tracebackhide__ = True
    if errors:
        group = LeakErrorGroup("loopwatch found:\n" + "\n\n".join(str(error) for error in errors), errors)
        setattr(group, _FLAG, True)
        raise group


def _itself(stretch: FixtureStretch) -> FixtureStretch:
    return stretch


def _told(owner: Owner) -> str:
    return "Left by this test" if owner.fixture is None else f"Left by fixture {owner.fixture!r}"


def _owner(fixturedef: Any, item: pytest.Item) -> Owner:
    function = inspect.unwrap(fixturedef.func)
    code = getattr(function, "__code__", None)
    place = None if code is None else (code.co_filename, code.co_firstlineno, code.co_qualname)
    return Owner(item.nodeid, _name(fixturedef), fixturedef.scope, place)


def _name(fixturedef: Any) -> str:
    """The name of a fixture as the suite has it: pytest turns setup_function and its like into fixtures."""
    name: str = fixturedef.argname
    for prefix in _XUNIT:
        if name.lstrip("_").startswith(prefix):
            return name.lstrip("_").removeprefix(prefix).partition("_fixture")[0]
    return name


def _has_teardown(fixturedef: Any, function: Any, request: Any) -> bool:
    if not inspect.isgeneratorfunction(function) and not inspect.isasyncgenfunction(function):
        return False
    name = _name(fixturedef)
    if name == fixturedef.argname:
        return True
    teardown = name.replace("setup", "teardown").replace("setUp", "tearDown")
    return any(hasattr(owner, teardown) for owner in (request.cls, request.module))


def _is_plugins_own(fixturedef: Any) -> bool:
    """Whether a fixture belongs to pytest or to a plugin that runs loops, and not to the suite."""
    module = getattr(fixturedef.func, "__module__", None) or ""
    return module.startswith(_PLUGINS) and not fixturedef.argname.lstrip("_").startswith(_XUNIT)


def _without_traceback(excinfo: pytest.ExceptionInfo[BaseException]) -> Any:
    """The report of a finding: its text says where; a traceback through the plugin would say nothing."""
    from _pytest._code.code import ReprExceptionInfo, ReprTracebackNative

    text = str(getattr(excinfo.value, "message", excinfo.value))
    crash = excinfo._getreprcrash()
    if crash is not None:
        crash.message = text.partition("\n")[2].partition("\n")[0] or text
    return ReprExceptionInfo(reprtraceback=ReprTracebackNative([text + "\n"]), reprcrash=crash)
