"""A region: one stretch of a test run whose leftovers have one owner, a test's body, a fixture's setup or teardown.

Its sessions begin where the owner's code begins, inside its event loop.  What is left when that code ends is the
region's own; whether it is a leak is judged later, when every fixture that may clean it up is through.  Looking at what
belongs to a loop needs the loop alive: once it is closed, the last look before that counts.

Waiting uses neither ``asyncio.sleep`` nor ``time``: tests replace these, or the loop's clock.
"""

import _thread
import asyncio
import sys
import types
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loopwatch.actions import LeakAction
from loopwatch.errors import LeakError
from loopwatch.leaks.descriptors import LeakedDescriptor
from loopwatch.leaks.effort import IN_TESTS, allow
from loopwatch.leaks.kinds import Session
from loopwatch.leaks.owners import Search, descriptor_types, numbers_of, pids_of, process_types
from loopwatch.leaks.processes import LeakedProcess
from loopwatch.leaks.waiting import Rule, told
from loopwatch.loops import running_loop

__all__ = ["Claims", "Found", "Owner", "Region"]

SHORT_WAIT = 0.01
_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.02
_CANCEL_WAIT = 1.0
_TURNS = 3
_BLOCKING = "blocking"
_IDENTITIES = ("task_id", "ident", "native_id", "pid", "fd")


@dataclass(frozen=True)
class Owner:
    """Whose region it is: a test, or the fixture that this test was the first to ask for."""

    test: str
    fixture: str | None = None
    scope: str | None = None
    place: tuple[str, int, str] | None = None


@dataclass
class Found:
    """What one rule found in a region.  ``cancelled`` is what became of it where the action is "cancel"."""

    rule: Rule
    findings: list[Any]
    reason: str | None = None
    cancelled: str | None = None

    def error(self) -> LeakError:
        return self.rule.kind.error.of(self.findings, (), self.reason)


@dataclass
class _Watched:
    rule: Rule
    session: Session
    found: list[Any] = field(default_factory=list)
    own: set[object] | None = None
    reason: str | None = None
    cancelled: str | None = None


Claims = dict[object, "Region"]


class Region:
    """See above.  ``claims`` is shared by all regions of a run: what one of them owns, no other reports."""

    def __init__(self, owner: Owner, rules: Sequence[Rule], claims: Claims) -> None:
        self.owner = owner
        self.rules = rules
        self.troubles: list[str] = []
        self.loop: Any = None
        self.frozen = False
        self._claims = claims
        self._watched: list[_Watched] = []

    def begin(self) -> None:
        """Begin here and now every session that can begin here."""
        self.loop = running_loop()
        for rule in self.rules:
            try:
                if rule.kind.can_begin():
                    self._watched.append(_Watched(rule, rule.kind.begin()))
            except Exception as error:
                self.troubles.append(f"{rule.kind.name} could not be watched: {error!r}")

    @property
    def blind(self) -> bool:
        """Whether nothing of what it was asked for can be seen here."""
        return bool(self.rules) and not self._watched

    @property
    def undecided(self) -> bool:
        """Whether something is left that may still be cleaned up: a block cannot."""
        return any(each.found and each.rule.kind.name != _BLOCKING for each in self._watched)

    def keys(self) -> set[object]:
        """What is left that may still be cleaned up, by identity."""
        found = [each.found for each in self._watched if each.rule.kind.name != _BLOCKING]
        return {identity(leak) for leaks in found for leak in leaks}

    @property
    def loop_closed(self) -> bool:
        is_closed = getattr(self.loop, "is_closed", None)
        return callable(is_closed) and bool(is_closed())

    def look(self) -> None:
        """See what is left now."""
        for watched in reversed(self._watched):
            self._look_at(watched)

    def _look_at(self, watched: _Watched) -> None:
        if watched.rule.kind.needs_loop and self.loop_closed:
            return
        if watched.own is not None and not watched.found:
            return
        try:
            leaks = watched.session.look()
        except Exception as error:
            self.troubles.append(f"{watched.rule.kind.name} could not be looked at: {error!r}")
            leaks = []
        if leaks:
            leaks = [leak for leak in leaks if self._is_mine(watched, leak) and watched.rule.selects(leak)]
        watched.found = leaks

    def _is_mine(self, watched: _Watched, leak: Any) -> bool:
        key = identity(leak)
        if watched.own is not None:
            return key in watched.own
        return self._claims.get(key, self) is self

    def freeze(self) -> None:
        """The owner's code is over: from now on only what is there now counts."""
        self.frozen = True
        for watched in self._watched:
            watched.own = {identity(leak) for leak in watched.found}
            for key in watched.own:
                self._claims[key] = self
            if not watched.own:
                watched.session.end()

    async def settle(self, longest: float | None = None) -> None:
        """Look, and while something is left let the loop run on and look again; at most for the grace periods."""
        await self._settle(self._watched, longest)

    async def _settle(self, watched: Sequence[_Watched], longest: float | None) -> None:
        for pause in self._looks(watched, longest):
            await _run_on(pause)

    def settle_now(self, longest: float | None = None, *, of_loop: bool = False) -> None:
        """The same where no loop runs; the region's own loop is run meanwhile, if it can be.

        ``of_loop``: only what belongs to a loop, which is about to be closed.
        """
        watched = [each for each in self._watched if each.rule.kind.needs_loop or not of_loop]
        for each in reversed(watched):
            self._look_at(each)
        if not any(each.found for each in watched):
            return
        loop = self.loop
        if _can_run(loop):
            coroutine = self._settle(watched, longest)
            try:
                loop.run_until_complete(coroutine)
                return
            except Exception as error:
                coroutine.close()
                self.troubles.append(f"the loop could not be run on: {error!r}")
        for pause in self._looks([each for each in watched if not each.rule.kind.needs_loop], longest):
            _pause(pause)

    def _looks(self, watched: Sequence[_Watched], longest: float | None) -> Generator[float, None, None]:
        """Look after each pause.  What ends with the last moment of its grace period has turns of the loop after it."""
        waiting = list(watched)
        waited, pause, first = 0.0, 0.0, True
        over: set[int] = set()
        while True:
            still = []
            left = 0.0
            for each in reversed(waiting):  # blocking, the last to begin, closes first
                self._look_at(each)
                grace = each.rule.grace_period if longest is None else min(longest, each.rule.grace_period)
                if not each.found or grace <= 0 or id(each) in over:
                    continue
                each.reason = None if first else each.session.settled()
                if each.reason is None:
                    still.append(each)
                    left = max(left, grace - waited)
                    if waited >= grace:
                        over.add(id(each))
            if not still:
                return
            waiting, first = still, False
            pause = min(pause, max(left, 0.0))
            yield pause
            waited += pause
            pause = min(pause * 2, _LONGEST_PAUSE) or _FIRST_PAUSE

    async def cancel(self) -> None:
        """Cancel what is left where the action says so, and wait for it to end."""
        asked = self._ask_to_end()
        for pause in self._looks([each for each, _ in asked], _CANCEL_WAIT):
            await _run_on(pause)
        self._tell_survivors(asked)

    def cancel_now(self) -> None:
        """The same where no loop runs."""
        loop = self.loop
        if not self._to_cancel():
            return
        if _can_run(loop):
            loop.run_until_complete(self.cancel())
            return
        asked = self._ask_to_end()
        for pause in self._looks([each for each, _ in asked], _CANCEL_WAIT):
            _pause(pause)
        self._tell_survivors(asked)

    def _to_cancel(self) -> list[_Watched]:
        return [each for each in self._watched if each.found and LeakAction.CANCEL in each.rule.actions]

    def _ask_to_end(self) -> list[tuple[_Watched, list[Any]]]:
        asked = []
        for each in self._to_cancel():
            before = list(each.found)
            refused = each.session.cancel(before)
            if len(refused) == len(before):
                each.cancelled = each.rule.kind.refusal
            else:
                asked.append((each, before))
        return asked

    def _tell_survivors(self, asked: Iterable[tuple[_Watched, list[Any]]]) -> None:
        for each, before in asked:
            left = [leak.headline() for leak in each.found]
            each.cancelled = f"Cancelled, but {len(left)} did not end: {'; '.join(left)}" if left else "Cancelled."
            each.found = before

    def live(self) -> dict[object, list[object]]:
        """The live objects of what is left, by identity; what has none is left out."""
        found = [leak for each in self._watched for leak in each.found]
        things = {identity(leak): [getattr(leak, name, None) for name in getattr(leak, "live", ())] for leak in found}
        numbers = {leak.fd: identity(leak) for leak in found if isinstance(leak, LeakedDescriptor)}
        pids = {leak.pid: identity(leak) for leak in found if isinstance(leak, LeakedProcess)}
        with allow(IN_TESTS):
            search = Search()
            owners = search.owned_by(descriptor_types(), numbers_of, numbers) if numbers else {}
            reapers = search.owned_by(process_types(), pids_of, pids) if pids else {}
        things.update({numbers[number]: [owner] for number, owner in owners.items()})
        things.update({pids[pid]: [reaper] for pid, reaper in reapers.items()})
        return {key: known for key, thing in things.items() if (known := [one for one in thing if one is not None])}

    def verdict(self, keep: frozenset[object] = frozenset()) -> list[Found]:
        """All that was found, by rule, in the order of the plan.

        The region is over, and its sessions end: but for what is to be kept, which stays undecided.
        """
        verdict = []
        decided = [[finding for finding in each.found if identity(finding) not in keep] for each in self._watched]
        sessions = [each.session for each in self._watched]
        for each, (_, found) in zip(self._watched, told(list(zip(sessions, decided, strict=True))), strict=True):
            if found:
                verdict.append(Found(each.rule, found, each.reason, each.cancelled))
            if keep:
                each.own = {key for key in each.own or () if key in keep}
                each.found = [finding for finding in each.found if identity(finding) in keep]
        if not keep:
            self.end()
        return verdict

    def end(self) -> None:
        """Let go of everything."""
        watched, self._watched = self._watched, []
        for each in reversed(watched):
            try:
                each.session.end()
            except Exception as error:
                self.troubles.append(f"{each.rule.kind.name} could not be ended: {error!r}")
            for key in each.own or ():
                if self._claims.get(key) is self:
                    del self._claims[key]


def _can_run(loop: Any) -> bool:
    """Whether a loop can be run on for a while from here."""
    if not isinstance(loop, asyncio.AbstractEventLoop) or asyncio._get_running_loop() is not None:
        return False
    return not loop.is_closed() and not loop.is_running()


def identity(leak: Any) -> object:
    """What tells one finding from another, also when it is seen again."""
    numbers = [getattr(leak, name, None) for name in _IDENTITIES]
    things = [id(getattr(leak, name, None)) for name in getattr(leak, "live", ())]
    return (leak.kind, *numbers, *things, leak.name, leak.place())


def _pause(seconds: float) -> None:
    """Sleep, for other threads; by means that no test replaces."""
    if seconds > 0:
        lock = _thread.allocate_lock()
        lock.acquire()
        lock.acquire(timeout=seconds)


@types.coroutine
def _bare_yield() -> Generator[None, None, None]:
    yield


async def _run_on(pause: float) -> None:
    """Pause, then let the loop do what came due meanwhile."""
    _pause(pause)
    for _ in range(_TURNS):
        await _turn()


def _turn() -> Awaitable[None]:
    """Let the loop that runs here go round once."""
    if asyncio._get_running_loop() is None or asyncio.current_task() is None:
        lowlevel = sys.modules.get("trio.lowlevel")
        if lowlevel is not None:
            checkpoint: Callable[[], Awaitable[None]] = lowlevel.checkpoint
            return checkpoint()
    return _bare_yield()
