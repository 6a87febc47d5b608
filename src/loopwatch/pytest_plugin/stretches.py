"""The guarded code of a test's body and of a fixture's setup and teardown: what happens at its begin and at its end."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from loopwatch.pytest_plugin.fixtures import held_by, place_of
from loopwatch.pytest_plugin.judge import FAILURES, ItemState, Judge
from loopwatch.pytest_plugin.plan import seen_from
from loopwatch.pytest_plugin.region import SHORT_WAIT, Claims, Owner, Region

__all__ = ["Bench", "BodyStretch", "FixtureStretch", "OpenFixture"]


@dataclass
class OpenFixture:
    """A fixture that is set up.

    ``late``: what is judged when it is finished, too: what bodies of tests made and its value holds, and what its own
    teardown made.  ``cleans``: it has a teardown.
    """

    region: Region
    value: object = None
    cleans: bool = False
    late: list[Region] = field(default_factory=list)

    def regions(self) -> Iterator[Region]:
        yield self.region
        yield from self.late


class Bench:
    """What waits for its verdict in a run, and who gives it."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.claims: Claims = {}
        self.state: ItemState | None = None
        self.fixtures: list[OpenFixture] = []

    def undecided(self) -> list[Region]:
        """All regions with something left that may still be cleaned up."""
        regions = [] if self.state is None else list(self.state.undecided)
        for fixture in self.fixtures:
            regions += fixture.regions()
        return [region for region in regions if region.undecided]

    def begin_teardown(self, fixture: OpenFixture) -> Region | None:
        """Here begins the teardown of a fixture, whose leftovers are the fixture's."""
        if self.state is None or not self.state.plan:
            return None
        region = Region(fixture.region.owner, self.state.plan, self.claims)
        region.begin()
        fixture.late.append(region)
        return region

    async def look_around(self, longest: float) -> None:
        """In the loop, which may be closed before the next chance: see what of the undecided is left."""
        loop = asyncio._get_running_loop()
        for region in self.undecided():
            if region.loop is loop:
                await region.settle(longest)

    def look_around_now(self) -> None:
        """The same right before the loop is closed, where none runs."""
        for region in self.undecided():
            region.settle_now(of_loop=True)

    def held_elsewhere(self, region: Region) -> frozenset[object]:
        """Hand what a wider fixture's value holds over to that fixture; returns what it is."""
        live = region.live()
        kept: set[object] = set()
        for fixture in self.fixtures:
            if not live or not fixture.cleans or fixture.region.owner.scope == "function":
                continue
            ids = held_by(fixture.value, [thing for things in live.values() for thing in things])
            mine = {key for key, things in live.items() if ids.intersection(map(id, things))}
            if mine:
                kept |= mine
                if region not in fixture.late:
                    fixture.late.append(region)
                break
        return frozenset(kept)


class BodyStretch:
    """The body of a test, under guard.  One that something broke through has ``left`` false."""

    def __init__(self, bench: Bench, state: ItemState, function: Callable[..., Any]) -> None:
        self._bench = bench
        self._state = state
        self.left = True
        place = place_of(function)
        self._region = Region(Owner(state.item.nodeid, place=place), seen_from(state.plan, place), bench.claims)

    def begin(self) -> None:
        self.left = False
        self._region.begin()
        own = self._state.item.own_markers  # one of the class or module is meant for others
        if self._region.blind and not self._region.troubles and any(mark.name == "no_leaks" for mark in own):
            kinds = ", ".join(rule.kind.name for rule in self._region.rules)
            text = f"no_leaks looks for nothing in this test: it asks for {kinds}, which only an asyncio loop has"
            self._state.item.warn(pytest.PytestWarning(text))

    async def leave(self, error: BaseException | None) -> None:
        if self.left:
            return
        await self._region.settle(SHORT_WAIT if self._state.cleaners else None)
        self._region.freeze()
        await self._bench.look_around(0.0)
        if not self._state.cleaners:
            await self._region.cancel()
        self._decide(error)

    def leave_now(self, error: BaseException | None) -> None:
        if self.left:
            return
        if error is None or isinstance(error, FAILURES):
            self._region.settle_now(SHORT_WAIT if self._state.cleaners or error is not None else None)
        else:
            self._region.look()
        self._region.freeze()
        if not self._state.cleaners:
            self._region.cancel_now()
        self._decide(error)

    def clean_up(self) -> None:
        pass

    async def over(self, error: BaseException | None) -> None:
        pass

    def _decide(self, error: BaseException | None) -> None:
        self.left = True
        state, region = self._state, self._region
        state.end_with(error)
        if state.cleaners and region.undecided:
            state.undecided.append(region)
            return
        keep = self._bench.held_elsewhere(region) if region.undecided else frozenset()
        state.raising += self._bench.judge.judge(region, state, error, keep)


class FixtureStretch:
    """The setup of a fixture, under guard; and its teardown, where that runs in a loop."""

    def __init__(self, bench: Bench, fixture: OpenFixture) -> None:
        self._bench = bench
        self._fixture = fixture
        self._teardown: Region | None = None

    def begin(self) -> None:
        self._fixture.region.begin()

    async def leave(self, error: BaseException | None) -> None:
        self.leave_now(error)

    def leave_now(self, error: BaseException | None) -> None:
        self._fixture.region.look()
        self._fixture.region.freeze()

    def clean_up(self) -> None:
        self._teardown = self._bench.begin_teardown(self._fixture)

    async def over(self, error: BaseException | None) -> None:
        region, self._teardown = self._teardown, None
        if region is not None and error is None:
            await region.settle(SHORT_WAIT)
            region.freeze()
        elif region is not None:  # what a teardown leaves that broke off is no news
            self._fixture.late.remove(region)
            region.end()
        if error is None:
            await self._bench.look_around(SHORT_WAIT)
