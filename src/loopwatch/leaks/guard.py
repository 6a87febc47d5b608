"""``LeakGuard``: the machinery of every guard that looks for what a scope left behind.

At the entry each kind begins a session.  At the exit the guard looks, and where something is left looks again after
growing pauses (a loop iteration, then 1 ms, doubling), until all is clean, or waiting cannot help, or the grace period
is over.  ``async with`` never blocks the loop meanwhile.  Sessions end whatever happens.
"""

import asyncio
import contextlib
import logging
import math
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from loopwatch.actions import Action, Handler, LeakAction, Report, Site, dispatch, parse_action
from loopwatch.errors import LeakError, add_note
from loopwatch.leaks.kinds import Kind, Leak, Session
from loopwatch.leaks.suppress import Ignore, Ignores, NameFilter, first_match, fits, ignores_from, name_filter_from
from loopwatch.loops import running_loop
from loopwatch.visits import Guard, Visit, check_async, current_task

__all__ = ["LeakGuard", "Rule"]

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05
_CANCEL_GRACE = 1.0
_LONGEST_GRACE = 1e9


@dataclass(frozen=True)
class Rule:
    """One kind with its options in one guard.  ``grace_period`` is in seconds."""

    kind: Kind
    actions: tuple[LeakAction | Handler, ...]
    name_filter: NameFilter = None
    ignores: tuple[Ignore, ...] = ()
    grace_period: float = 0.1

    def selects(self, leak: Leak) -> bool:
        """Whether a leak is to be reported: its name is asked for, and nothing says to overlook it."""
        if self.name_filter is not None and not fits(self.name_filter, leak.name):
            return False
        return not self.ignores or first_match(self.ignores, leak) is None


@dataclass
class _Watched:
    """One rule during a visit.  ``found`` is what the last look showed, ``reason`` why waiting stopped."""

    rule: Rule
    session: Session
    grace: float = 0.0
    found: Sequence[Any] = ()
    refused: Sequence[Any] = ()
    reason: str | None = None


@dataclass
class Findings:
    """What one kind left behind, at the exit.  ``survivors`` are those that were cancelled and did not end."""

    rule: Rule
    leaks: list[Any]
    apart: list[Any]
    reason: str | None
    survivors: str | None = None

    def error(self) -> LeakError:
        return self.rule.kind.error.of(self.leaks, self.apart, self.reason)


class _Visit(Visit):
    """One time through a guard: its open sessions, and the loop on which it began."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        super().__init__()
        loop = running_loop()
        self.loop_known = loop is not None
        self.loop = _weak(loop)
        self.watched: list[_Watched] = []
        try:
            for rule in rules:
                self.watched.append(_Watched(rule, rule.kind.begin()))
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        for watched in reversed(self.watched):
            with contextlib.suppress(Exception):
                watched.session.end()


class LeakGuard(Guard[_Visit]):
    """A guard for one or more kinds of leaks.

    name: the function that users call, for messages.  kinds: what to look for.  action, name_filter, logger, ignore:
    as users give them, checked here.  grace_period: seconds to wait at most for leaks to end; default None: as long as
    the kind says.  asynchronous: it cannot be entered with a sync ``with``, nor decorate a function that is not async.

    ``leaks`` are the findings of the exit last made, ``apart`` what was seen meanwhile but is not the scope's fault.
    Raises TypeError and ValueError for options that are wrong.
    """

    strict = True

    def __init__(
        self,
        name: str,
        kinds: Sequence[Kind],
        action: Action = LeakAction.WARN,
        *,
        name_filter: NameFilter = None,
        logger: logging.Logger | None = None,
        grace_period: float | None = None,
        ignore: Ignores = (),
        asynchronous: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        if logger is not None and not callable(getattr(logger, "warning", None)):
            raise TypeError(f"logger must be a logging.Logger or None, got {logger!r}")
        self._logger = logger
        self._asynchronous = asynchronous
        actions, names, ignores = parse_action(action), name_filter_from(name_filter), ignores_from(ignore)
        grace = None if grace_period is None else seconds("grace_period", grace_period)
        self._rules = [
            Rule(kind, actions, names, ignores, kind.grace_period if grace is None else grace) for kind in kinds
        ]
        self.leaks: list[Any] = []
        self.apart: list[Any] = []

    def _check_function(self, function: object) -> None:
        if self._asynchronous:
            check_async(self.name, function)
        else:
            super()._check_function(function)

    def _check_sync(self) -> None:
        if self._asynchronous:
            raise RuntimeError(
                f"{self.name}() looks again while the event loop runs on, which a sync `with` cannot: write "
                f"`async with {self.name}():`"
            )

    def _rules_here(self) -> Sequence[Rule]:
        """The rules that can begin here.  Raises RuntimeError where one needs a loop and none runs."""
        for rule in self._rules:
            if rule.kind.needs_loop and running_loop() is None:
                raise RuntimeError(
                    f"{self.name}() was entered where no event loop runs, so there is nothing to watch: use it inside "
                    "a coroutine (`async def`), or decorate that coroutine's function with it"
                )
        return self._rules

    def _enter(self) -> _Visit:
        return _Visit(self._rules_here())

    def _leave(self, visit: _Visit, body: BaseException | None, site: Callable[[], Site]) -> None:
        try:
            if self._misplaced(visit, body):
                return
            for pause in _looks(visit, body):
                time.sleep(pause)
            found = _findings(visit)
            for pause in _cancel(visit, found):
                time.sleep(pause)
            _note_survivors(visit, found)
        finally:
            visit.abandon()
        self._report(found, body, site)

    async def _leave_async(self, visit: _Visit, body: BaseException | None, site: Callable[[], Site]) -> None:
        interrupt: BaseException | None = None
        try:
            if self._misplaced(visit, body):
                return
            interrupt = await _pauses(_looks(visit, body))
            found = _findings(visit)
            cancelling = _cancel(visit, found)
            if interrupt is None:
                interrupt = await _pauses(cancelling)
            else:  # ask them to end, but wait no more
                next(cancelling, None)
            _note_survivors(visit, found)
        finally:
            visit.abandon()
        if interrupt is None:
            self._report(found, body, site)
        elif body is None or type(body) is type(interrupt):
            self._report(found, body or interrupt, site)
            if body is None:
                raise interrupt
        else:  # the body's exception goes on; the cancellation comes at the next await
            self._report(found, body, site)
            _cancel_again(interrupt)

    def _misplaced(self, visit: _Visit, body: BaseException | None) -> bool:
        """Whether the visit is left where it cannot be judged: raises RuntimeError, or notes it on the body's error."""
        if not any(watched.rule.kind.needs_loop for watched in visit.watched):
            return False
        entered, here = visit.loop(), running_loop()
        if entered is here and here is not None:
            return False
        closed = entered is None or (callable(getattr(entered, "is_closed", None)) and entered.is_closed())
        misuse = RuntimeError(
            f"this {self.name}() guard was entered on {'an event loop that is closed' if closed else repr(entered)} "
            f"and left {'where no event loop runs' if here is None else f'on {here!r}'}: leave it before its loop ends"
        )
        if body is None:
            raise misuse
        add_note(body, str(misuse))
        return True

    def _report(self, found: Sequence[Findings], body: BaseException | None, site: Callable[[], Site]) -> None:
        self.leaks = [leak for findings in found for leak in findings.leaks]
        self.apart = [leak for findings in found for leak in findings.apart]
        for findings in found:
            if findings.apart and not findings.leaks:
                self._log(logging.INFO, "Not of this scope: %s", findings.error())
            if findings.leaks:
                self._dispatch(findings, body, site)

    def _dispatch(self, findings: Findings, body: BaseException | None, site: Callable[[], Site]) -> None:
        error = findings.error()
        if LeakAction.CANCEL in findings.rule.actions and findings.survivors is None:
            self._log(logging.INFO, "Cancelled: %s", error)
        report = Report(findings.leaks, error, lambda: findings.survivors, self._logger)
        dispatch(findings.rule.actions, report, site, body)

    def _log(self, level: int, text: str, *args: object) -> None:
        logger = self._logger or logging.getLogger("loopwatch")
        log = getattr(logger, "log", None)
        if callable(log):
            log(level, text, *args)


def seconds(name: str, value: float) -> float:
    """Check a duration in seconds, zero included.  Raises TypeError and ValueError."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number of seconds, got {value!r} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isnan(number) or number < 0 or math.isinf(number):
        raise ValueError(f"{name} must be a number of seconds, 0 or more, got {value!r}")
    return min(number, _LONGEST_GRACE)


def _looks(visit: _Visit, body: BaseException | None) -> Generator[float, None, None]:
    """Look until all is clean or waiting is over; yields how long to pause before each further look."""
    for watched in visit.watched:
        watched.grace = watched.rule.grace_period
    yield from _until_clean(visit.watched)


def _until_clean(watched_rules: Sequence[_Watched]) -> Generator[float, None, None]:
    began = time.monotonic()
    pause = 0.0
    waiting = list(watched_rules)
    while True:
        passed = time.monotonic() - began
        still: list[_Watched] = []
        left = 0.0
        for watched in waiting:
            watched.found = [leak for leak in watched.session.look() if watched.rule.selects(leak)]
            if not watched.found or passed >= watched.grace:
                continue
            watched.reason = watched.session.settled()
            if watched.reason is None:
                still.append(watched)
                left = max(left, watched.grace - passed)
        if not still:
            return
        waiting = still
        yield min(pause, left)
        pause = min(pause * 2, _LONGEST_PAUSE) or _FIRST_PAUSE


def _findings(visit: _Visit) -> list[Findings]:
    found = []
    for watched in visit.watched:
        apart = [leak for leak in watched.session.apart() if watched.rule.selects(leak)]
        if watched.found or apart:
            found.append(Findings(watched.rule, list(watched.found), apart, watched.reason))
    return found


def _cancel(visit: _Visit, found: Sequence[Findings]) -> Generator[float, None, None]:
    """Cancel what is to be cancelled, and wait for it to end."""
    asked: list[_Watched] = []
    for watched in visit.watched:
        if watched.found and LeakAction.CANCEL in watched.rule.actions:
            watched.refused = watched.session.cancel(watched.found)
            if len(watched.refused) < len(watched.found):
                watched.grace = max(watched.rule.grace_period, _CANCEL_GRACE)
                asked.append(watched)
    if asked:
        yield 0.0
        yield from _until_clean(asked)


def _note_survivors(visit: _Visit, found: Sequence[Findings]) -> None:
    """Say of each kind that was to be cancelled what is still left."""
    for findings in found:
        watched = next(watched for watched in visit.watched if watched.rule is findings.rule)
        if LeakAction.CANCEL not in watched.rule.actions or not watched.found:
            continue
        kind = watched.rule.kind
        if len(watched.refused) == len(findings.leaks):
            sentence = kind.refusal
        else:
            names = "; ".join(leak.headline() for leak in watched.found)
            sentence = f"Cancelled, but {len(watched.found)} of {len(findings.leaks)} did not end: {names}."
        findings.survivors = sentence


async def _pauses(looks: Generator[float, None, None]) -> BaseException | None:
    """Pause without blocking the loop.  A cancellation ends the waiting: it is given back after one more look."""
    interrupt: BaseException | None = None
    for pause in looks:
        try:
            await _sleep(pause)
        except BaseException as error:
            interrupt = error
            break
    return interrupt


async def _sleep(pause: float) -> None:
    loop = running_loop()
    if isinstance(loop, asyncio.AbstractEventLoop):
        await asyncio.sleep(pause)
    elif loop is not None:
        import trio

        await trio.sleep(pause)
    else:
        time.sleep(pause)  # noqa: ASYNC251 - no loop that we know runs here


def _cancel_again(interrupt: BaseException) -> None:
    """Let a cancellation that came while the guard waited come again at the next await."""
    task = current_task()
    if isinstance(interrupt, asyncio.CancelledError) and isinstance(task, asyncio.Task):
        task.uncancel()
        task.cancel(*interrupt.args[:1])


def _weak(loop: object) -> Callable[[], Any]:
    try:
        return weakref.ref(loop)
    except TypeError:
        return lambda: loop
