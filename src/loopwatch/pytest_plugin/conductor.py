"""The hooks that put tests and fixtures under guard.  Registered only where at least one test is.

Each test body and each fixture is a ``Region``.  Blocks of the loop are judged where they happen.  What else a test's
body leaves is judged at its end where nothing can clean it up any more, else after the teardown of its fixtures; what a
fixture leaves, after the teardown in which it is finished.
"""

import asyncio
import functools
import inspect
import unittest
from collections.abc import Generator, Iterable
from functools import partial
from typing import Any

import pytest

from loopwatch.pytest_plugin.baseline import KnownFindings
from loopwatch.pytest_plugin.fixtures import has_teardown, is_plugins_own, owner_of_fixture, place_of
from loopwatch.pytest_plugin.judge import ItemState, Judge, is_verdict, raise_for, without_traceback
from loopwatch.pytest_plugin.plan import Planner, marker_layer
from loopwatch.pytest_plugin.region import Owner, Region
from loopwatch.pytest_plugin.stretches import Bench, BodyStretch, FixtureStretch, OpenFixture
from loopwatch.pytest_plugin.wrapping import is_async, wrap_async_fixture, wrap_test
from loopwatch.settings import SettingError

__all__ = ["Conductor"]

_MARKER = "no_leaks"

Wrapper = Generator[None, Any, Any]


class Conductor:
    """See above."""

    def __init__(self, planner: Planner, baseline: KnownFindings | None) -> None:
        self._planner = planner
        self._bench = Bench(Judge(baseline))

    def _state_of(self, item: pytest.Item) -> ItemState | None:
        state = self._bench.state
        return state if state is not None and state.item is item else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        state = self._bench.state = ItemState(item, ())
        marker = item.get_closest_marker(_MARKER)
        plan, wrong = None, ""
        try:
            layer = None if marker is None else marker_layer(marker.args, marker.kwargs, item.nodeid)
            plan = self._planner.plan(layer)
        except (SettingError, TypeError, ValueError) as error:
            wrong = str(error)
        if wrong:  # outside of the handler: pytest would show both
            pytest.fail(wrong, pytrace=False)
        if plan and isinstance(item, pytest.Function):
            state.plan = plan

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Wrapper:
        state = self._bench.state
        if state is None or not state.plan or is_plugins_own(fixturedef):
            value = yield
            self._watch_end_of_loop(fixturedef, value)
            return value
        region = Region(owner_of_fixture(fixturedef, state.item), state.plan, self._bench.claims)
        fixture = OpenFixture(region)
        stretch = FixtureStretch(self._bench, fixture)
        self._bench.fixtures.append(fixture)
        fixturedef.addfinalizer(partial(self._fixture_finished, fixture))  # the first to be added is the last to run
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
        added = len(getattr(fixturedef, "_finalizers", ())) > before
        fixture.value, fixture.cleans = value, has_teardown(fixturedef, function, request, added)
        state.cleaners = state.cleaners or (fixture.cleans and fixturedef.scope == "function")
        if fixture.cleans and not inspect.isasyncgenfunction(function):
            fixturedef.addfinalizer(partial(self._bench.begin_teardown, fixture))  # the last to be added runs first
        self._watch_end_of_loop(fixturedef, value)
        return value

    def _watch_end_of_loop(self, fixturedef: Any, value: Any) -> None:
        """See what is left right before a fixture that is a loop, or runs one, closes it."""
        if isinstance(value, asyncio.AbstractEventLoop) or (hasattr(value, "get_loop") and hasattr(value, "run")):
            fixturedef.addfinalizer(self._bench.look_around_now)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Wrapper:
        state = self._state_of(item)
        if state is None or not state.plan or not isinstance(item, pytest.Function):
            return (yield)
        instance = item.instance
        is_case = isinstance(instance, unittest.TestCase)
        if is_case:
            state.cleaners = True
            self._guard_test_case(item, instance, state)
        function = item.obj
        hypothesis = getattr(function, "hypothesis", None)
        owner, name = (hypothesis, "inner_test") if hasattr(hypothesis, "inner_test") else (item, "obj")
        original = getattr(owner, name)
        bodies: list[BodyStretch] = []

        def body() -> BodyStretch:
            bodies.append(BodyStretch(self._bench, state, original))
            return bodies[-1]

        wrapped = wrap_test(original, body)
        setattr(owner, name, wrapped)
        if is_case and is_async(original):
            setattr(instance, item.originalname or item.name, wrapped)
        try:
            result = yield
        except BaseException as error:
            _leave(bodies, error)
            state.raising.clear()
            raise
        finally:
            setattr(owner, name, original)
        _leave(bodies, None)
        raising, state.raising = state.raising, []
        raise_for(raising)  # here, and not in the loop, where trio would wrap it and hypothesis look for its cause
        return result

    def _guard_test_case(self, item: pytest.Function, instance: Any, state: ItemState) -> None:
        """Guard setUp and tearDown as fixtures, and judge after all cleanups."""
        regions: list[Region] = []

        def judge() -> None:
            for region in [*state.undecided, *regions]:
                region.settle_now()
                region.cancel_now()
            self._judge(state, [*state.undecided, *regions])

        async def judge_in_loop() -> None:
            for region in [*state.undecided, *regions]:
                await region.settle()
                await region.cancel()
            self._judge(state, [*state.undecided, *regions])

        names = ["setUp", "tearDown"]
        if isinstance(instance, unittest.IsolatedAsyncioTestCase):
            instance.addAsyncCleanup(judge_in_loop)
            names += ["asyncSetUp", "asyncTearDown"]
        else:
            instance.addCleanup(judge)
        for name in names:
            owner = Owner(item.nodeid, name, "function", place_of(getattr(instance, name)))
            region = Region(owner, state.plan, self._bench.claims)
            regions.append(region)
            stretch = FixtureStretch(self._bench, OpenFixture(region))
            setattr(instance, name, wrap_test(getattr(instance, name), partial(_itself, stretch)))
        regions.append(self._guard_cleanups(item, instance, state))

    def _guard_cleanups(self, item: pytest.Function, instance: Any, state: ItemState) -> Region:
        """The region of what addCleanup() added: it begins with the cleanup that is added last, after tearDown."""
        owner = Owner(item.nodeid, "addCleanup", "function", place_of(item.function))
        region = Region(owner, state.plan, self._bench.claims)
        tear_down = instance.tearDown

        async def begin_in_loop() -> None:
            region.begin()

        @functools.wraps(tear_down)
        def torn_down() -> None:
            try:
                tear_down()
            finally:
                if isinstance(instance, unittest.IsolatedAsyncioTestCase):
                    instance.addAsyncCleanup(begin_in_loop)
                else:
                    instance.addCleanup(region.begin)

        instance.tearDown = torn_down
        return region

    def _judge(self, state: ItemState, regions: Iterable[Region]) -> None:
        """Judge after the teardown of what may clean up; what is to be raised is kept in the state."""
        state.undecided = []
        for region in regions:
            keep = self._bench.held_elsewhere(region) if region.undecided else frozenset()
            state.raising += self._bench.judge.judge(region, state, state.ended, keep)

    def _fixture_finished(self, fixture: OpenFixture) -> None:
        """The last finalizer of a fixture.  What it left may be cleaned up by those that it asked for."""
        if fixture in self._bench.fixtures:
            self._bench.fixtures.remove(fixture)
        state = self._bench.state
        raising: list[BaseException] = []
        for region in fixture.regions():
            region.look()
            if not region.frozen:
                region.freeze()
            if state is not None and region.undecided:
                state.undecided.append(region)
                continue
            if state is not None:
                raising += self._bench.judge.judge(region, state, state.ended)
            region.end()
        raise_for(raising)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Wrapper:
        state = self._state_of(item)
        if state is None:
            return (yield)
        try:
            result = yield
        except BaseException as error:
            state.ended = state.ended or error
            self._judge_late(state)
            raise
        self._judge_late(state)
        return result

    def _judge_late(self, state: ItemState) -> None:
        for region in state.undecided:
            region.look()
            if region.undecided and region.keys() - self._bench.held_elsewhere(region):
                region.settle_now()
                region.cancel_now()
        self._judge(state, state.undecided)
        raising, state.raising = state.raising, []
        raise_for(raising)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Wrapper:
        report = yield
        state = self._state_of(item)
        if state is None:
            return report
        if call.excinfo is not None:
            if is_verdict(call.excinfo.value):
                if report.longrepr is not None:
                    report.longrepr = without_traceback(call.excinfo)
            else:
                state.ended = state.ended or call.excinfo.value
            state.failed = state.failed or report.failed
        sent = state.take()
        if sent is None and state.plan and report.when == "call":
            sent = {"findings": [], "troubles": []}
        if sent is not None:
            report.loopwatch = sent
        if report.when == "teardown":
            found = [] if sent is None else sent["findings"]
            untold = [entry["text"] for entry in found if not entry["known"] and not entry["raised"]]
            if untold and state.failed:
                report.sections.append(("loopwatch teardown", "\n\n".join(untold)))
            state.ended = None  # it holds the frames of the test
            self._bench.state = None
        return report


def _leave(bodies: Iterable[BodyStretch], error: BaseException | None) -> None:
    """Something broke through the loop (a timeout, Control-C): the test's coroutine was not resumed."""
    for body in bodies:
        body.leave_now(error)


def _itself(stretch: FixtureStretch) -> FixtureStretch:
    return stretch
