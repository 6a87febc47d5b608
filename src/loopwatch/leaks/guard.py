"""``LeakGuard``: the machinery of every guard that looks for what a scope left behind.

At the entry each kind begins a session.  At the exit the guard looks, and where something is left looks again after
growing pauses (a loop iteration, then 1 ms, doubling), until all is clean, or waiting cannot help, or the grace period
is over.  ``async with`` never blocks the loop meanwhile.  Sessions end whatever happens.
"""

import logging
import math
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from loopwatch.actions import Action, LeakAction, Report, Site, dispatch, parse_action
from loopwatch.errors import add_note
from loopwatch.leaks.config import standing
from loopwatch.leaks.kinds import Kind
from loopwatch.leaks.suppress import Ignores, NameFilter, ignores_from, name_filter_from
from loopwatch.leaks.waiting import (
    Findings,
    Rule,
    Watched,
    all_clean,
    cancel_again,
    is_cancellation,
    judge,
    sleep_async,
    wait_no_more,
)
from loopwatch.loops import running_loop
from loopwatch.visits import Guard, Visit, check_async

__all__ = ["LeakGuard"]

_LONGEST_GRACE = 1e9


class _Visit(Visit):
    """One time through a guard: its open sessions, and the loop on which it began."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        super().__init__()
        loop = running_loop()
        self.loop = _weak(loop)
        self.watched: list[Watched] = []
        try:
            for rule in rules:
                self.watched.append(Watched(rule, rule.kind.begin(), rule.grace_period))
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        for watched in reversed(self.watched):
            try:
                watched.session.end()
            except Exception:
                logging.getLogger("loopwatch").exception("loopwatch could not end a session of %s", watched.rule.kind)


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
        self._logger = check_logger(logger)
        self._asynchronous = asynchronous
        actions, names, ignores = parse_action(action), name_filter_from(name_filter), ignores_from(ignore) + standing()
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
            if not rule.kind.can_begin():
                raise RuntimeError(
                    f"{self.name}() was entered where no event loop runs, so there is nothing to watch: use it inside "
                    "a coroutine (`async def`), or decorate that coroutine's function with it"
                )
        return self._rules

    def _enter(self) -> _Visit:
        return _Visit(self._rules_here())

    def _leave(self, visit: _Visit, body: BaseException | None, site: Callable[[], Site]) -> None:
        found: list[Findings] = []
        try:
            if self._misplaced(visit, body) or all_clean(visit.watched):
                self._keep(())
                return
            for pause in judge(visit.watched, body, found):
                time.sleep(pause)
        except Exception as failure:
            _pass_on(failure, body)
        finally:
            visit.abandon()
        self._report(found, body, site)

    async def _leave_async(self, visit: _Visit, body: BaseException | None, site: Callable[[], Site]) -> None:
        found: list[Findings] = []
        interrupt: BaseException | None = None
        try:
            if self._misplaced(visit, body) or all_clean(visit.watched):
                self._keep(())
                return
            judging = judge(visit.watched, body, found)
            for pause in judging:
                try:
                    await sleep_async(pause)
                except BaseException as error:  # mostly a cancellation: it must not wait
                    interrupt = error
                    wait_no_more(judging)
        except Exception as failure:
            _pass_on(failure, body)
        finally:
            visit.abandon()
        if interrupt is None:
            self._report(found, body, site)
        elif body is None or not is_cancellation(interrupt):
            self._report(found, interrupt, site)
            raise interrupt
        else:  # the body's exception goes on
            self._report(found, body, site)
            if not is_cancellation(body):
                cancel_again(interrupt)

    def _misplaced(self, visit: _Visit, body: BaseException | None) -> bool:
        """Whether the visit is left where it cannot be judged: raises RuntimeError, or notes it on the body's error."""
        if visit.inherited:
            return True
        entered, here = visit.loop(), running_loop()
        if entered is here and here is not None:
            return False
        if not any(watched.rule.kind.needs_loop for watched in visit.watched):
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
        self._keep(found)
        for findings in found:
            if findings.leaks:
                self._dispatch(findings, body, site)

    def _keep(self, found: Sequence[Findings]) -> None:
        """Hold the findings for who asks; say of those that fail nothing that they were seen."""
        self.leaks = [leak for findings in found for leak in findings.leaks]
        self.apart = [leak for findings in found for leak in findings.apart]
        for findings in found:
            if findings.apart and not findings.leaks:
                lines = [f"{len(findings.apart)} {findings.rule.kind.error.what}"]
                lines += [f"  {leak.headline()}" for leak in findings.apart]
                self._log(logging.INFO, "Seen meanwhile, not of this scope: %s", "\n".join(lines))

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


def _pass_on(failure: Exception, body: BaseException | None) -> None:
    """Raise what went wrong in the guard itself, unless the body's own exception would be lost."""
    if body is None:
        raise failure
    add_note(body, f"loopwatch could not look for leaks: {failure!r}")


def _weak(loop: object) -> Callable[[], Any]:
    try:
        return weakref.ref(loop)
    except TypeError:
        return lambda: loop


def check_logger(logger: logging.Logger | None) -> logging.Logger | None:
    """Raise TypeError unless it is a logger or None."""
    if logger is not None and not callable(getattr(logger, "warning", None)):
        raise TypeError(f"logger must be a logging.Logger or None, got {logger!r} of type {type(logger).__name__}")
    return logger


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
