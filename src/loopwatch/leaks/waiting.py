"""How a guard waits at its exit: the rules, looking again after growing pauses, cancelling.

The waiting itself is a generator that yields pauses, so that ``with`` and ``async with`` share it.
"""

import asyncio
import contextlib
import math
import sys
import time
from collections import Counter
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from loopwatch.actions import Handler, LeakAction
from loopwatch.errors import LeakError
from loopwatch.leaks.baseline import Baseline
from loopwatch.leaks.kinds import Kind, Leak, Session
from loopwatch.leaks.owners import Search
from loopwatch.leaks.suppress import Ignore, NameFilter, first_match, fits
from loopwatch.loops import running_loop
from loopwatch.visits import current_task

__all__ = ["Findings", "Rule", "Watched"]

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05
_CANCEL_GRACE = 1.0
_CANCELLED_GRACE = 0.1


@dataclass(frozen=True)
class Rule:
    """One kind with its options in one guard.  ``grace_period`` is in seconds."""

    kind: Kind
    actions: tuple[LeakAction | Handler, ...]
    name_filter: NameFilter = None
    ignores: tuple[Ignore, ...] = ()
    grace_period: float = 0.1
    baseline: Baseline | None = None

    def selects(self, leak: Leak) -> bool:
        """Whether a leak is to be reported: its name is asked for, and nothing says to overlook it."""
        if self.name_filter is not None and not fits(self.name_filter, leak.name):
            return False
        return not self.ignores or first_match(self.ignores, leak) is None


@dataclass
class Watched:
    """One rule during a visit.

    ``chosen`` is what the last look showed of what the rule selects, ``found`` those of it that no baseline knows,
    ``reason`` why waiting stopped.
    """

    rule: Rule
    session: Session
    grace: float
    chosen: Sequence[Any] = ()
    found: Sequence[Any] = ()
    refused: Sequence[Any] = ()
    reason: str | None = None
    fresh: bool = False  # it was looked at just now

    def only_refused(self) -> bool:
        """Whether all that is found could not be asked to end, so that waiting is for nothing."""
        return bool(self.refused) and not Counter(map(_identity, self.found)) - Counter(map(_identity, self.refused))

    def look(self) -> Sequence[Any]:
        baseline = self.rule.baseline
        self.chosen = [leak for leak in self.session.look() if self.rule.selects(leak)]
        self.found = self.chosen if baseline is None else baseline.new(self.chosen)
        return self.found


def _identity(leak: Leak) -> tuple[Any, ...]:
    return leak.kind, leak.name, leak.place()


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


def all_clean(watched_rules: Sequence[Watched]) -> bool:
    """Whether nothing at all is left or was seen, so that there is nothing to judge."""
    for watched in reversed(watched_rules):
        watched.fresh = True
        if watched.look() or watched.rule.baseline is not None or watched.session.apart():
            return False
    return True


class WaitNoMoreError(Exception):
    """Thrown into ``judge`` to end its waiting."""


def judge(
    watched_rules: Sequence[Watched], body: BaseException | None, found: list[Findings]
) -> Generator[float, None, None]:
    """Put all that is left behind into ``found``, after waiting, and cancel what is to be cancelled.

    Yields how long to pause before each further look; with WaitNoMoreError thrown in it looks once more and ends.
    """
    hurried = False
    try:
        yield from _until_clean(watched_rules, body)
    except WaitNoMoreError:
        hurried = True
        for watched in watched_rules:
            watched.look()
    found += _collect(watched_rules)
    asked = _cancel(watched_rules)
    if found and not hurried and not isinstance(body, GeneratorExit):
        try:
            yield 0.0  # it took time to explain what was found, and takes time to tell it
            if asked:
                yield from _until_clean(asked)
        except WaitNoMoreError:
            for watched in asked:
                watched.look()
    _note_survivors(watched_rules, found)


def wait_no_more(judging: Generator[float, None, None]) -> None:
    """Let ``judge`` come to its end without waiting."""
    with contextlib.suppress(StopIteration):
        judging.throw(WaitNoMoreError())


def _until_clean(watched_rules: Sequence[Watched], body: BaseException | None = None) -> Generator[float, None, None]:
    """Look until all is clean or waiting is over; yields how long to pause before each further look.

    A body that was cancelled is not held up for long, one that is closed not at all.
    """
    began = time.monotonic()
    pause = 0.0
    longest = _CANCELLED_GRACE if is_cancellation(body) else math.inf
    if isinstance(body, GeneratorExit):  # a coroutine that is closed must not await
        longest = 0.0
    waiting = list(reversed(watched_rules))  # what was begun last is judged first
    waited = False
    while True:
        passed = time.monotonic() - began
        still: list[Watched] = []
        left = 0.0
        for watched in waiting:
            grace = min(watched.grace, longest)
            found = watched.found if watched.fresh else watched.look()
            watched.fresh = False
            if not found or passed >= grace or watched.only_refused():
                continue
            watched.reason = watched.session.settled()
            if watched.reason is None:
                still.append(watched)
                left = max(left, grace - passed)
        if not still:
            break
        waiting, waited = still, True
        yield min(pause, left)
        pause = min(pause * 2, _LONGEST_PAUSE) or _FIRST_PAUSE
    if waited:  # some were judged long ago
        for watched in watched_rules:
            watched.look()


def _collect(watched_rules: Sequence[Watched]) -> list[Findings]:
    """What the last look showed, and what was seen apart from it."""
    found = []
    for watched, (kept, leaks) in zip(
        watched_rules, told([(one.session, one.found) for one in watched_rules]), strict=True
    ):
        watched.found = kept
        if watched.rule.baseline is not None:
            watched.rule.baseline.note(watched.chosen)
        apart = [leak for leak in watched.session.apart() if watched.rule.selects(leak)]
        if leaks or apart:
            found.append(Findings(watched.rule, leaks, apart, watched.reason))
    return found


def told(found: Sequence[tuple[Session, Sequence[Any]]]) -> list[tuple[list[Any], list[Any]]]:
    """What is to be told of each session's findings: those that no other finding tells of, and the same completed.

    In one go: what was found is explained as it is now.
    """
    search = Search()
    covered = {part for _, leaks in found for leak in leaks for part in _parts(leak)}
    kept = [[leak for leak in leaks if not covered or not _is_part(leak, covered)] for _, leaks in found]
    return [
        (leaks, session.complete(leaks, search) if leaks else [])
        for (session, _), leaks in zip(found, kept, strict=True)
    ]


def _parts(finding: Any) -> Collection[object]:
    return finding.covers() if isinstance(finding, Leak) else ()


def _is_part(finding: Any, covered: set[object]) -> bool:
    """Whether another finding tells of all that this one is about: an executor's of its threads and processes."""
    about = finding.about() if isinstance(finding, Leak) else ()
    return bool(about) and covered.issuperset(about)


def _cancel(watched_rules: Sequence[Watched]) -> list[Watched]:
    """Cancel what is to be cancelled; gives back the kinds that were asked, which now have time to end."""
    asked: list[Watched] = []
    for watched in watched_rules:
        if watched.found and LeakAction.CANCEL in watched.rule.actions:
            watched.refused = watched.session.cancel(watched.found)
            if len(watched.refused) < len(watched.found):
                watched.grace = max(watched.rule.grace_period, _CANCEL_GRACE)
                asked.append(watched)
    return asked


def _note_survivors(watched_rules: Sequence[Watched], found: Sequence[Findings]) -> None:
    """Say of each kind that was to be cancelled what is still left."""
    for findings in found:
        watched = next(watched for watched in watched_rules if watched.rule is findings.rule)
        if LeakAction.CANCEL not in watched.rule.actions or not watched.found:
            continue
        kind = watched.rule.kind
        if len(watched.refused) == len(findings.leaks):
            sentence = kind.refusal
        else:
            names = "; ".join(leak.headline() for leak in watched.found)
            sentence = f"Cancelled, but {len(watched.found)} of {len(findings.leaks)} did not end: {names}."
        findings.survivors = sentence


async def sleep_async(pause: float) -> None:
    """Pause without blocking the loop that runs here."""
    loop = running_loop()
    if isinstance(loop, asyncio.AbstractEventLoop):
        await asyncio.sleep(pause)
    elif loop is not None:
        import trio

        await trio.sleep(pause)
    else:
        time.sleep(pause)  # noqa: ASYNC251 - no loop that we know runs here


def is_cancellation(error: BaseException | None) -> bool:
    """Whether an exception is the cancellation of a task, of asyncio or trio."""
    if isinstance(error, asyncio.CancelledError):
        return True
    trio = sys.modules.get("trio")
    return trio is not None and isinstance(error, getattr(trio, "Cancelled", ()))


def cancel_again(interrupt: BaseException) -> None:
    """Let a cancellation that came while the guard waited come again at the next await.  trio does so by itself."""
    task = current_task()
    if isinstance(interrupt, asyncio.CancelledError) and isinstance(task, asyncio.Task):
        task.uncancel()
        task.cancel(*interrupt.args[:1])
