"""Which numbers of a sample are watched, and what an alarm says when one grows: tasks and timers.

A judge takes samples one after the other and gives alarms; it asks for more (stacks, example tasks, what allocated)
only once a number is suspected, as that costs.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from traceback import FrameSummary
from typing import TYPE_CHECKING

from loopwatch.discovery import call_in_loop
from loopwatch.findings import place_text
from loopwatch.leaks.suppress import Ignore, first_match
from loopwatch.monitor.alarms import Alarm, AlarmBook
from loopwatch.monitor.coroutines import CoroutineBook, Sample
from loopwatch.monitor.loopbook import WatchedLoop
from loopwatch.monitor.readings import CoroutineReading, LoopReading, Place
from loopwatch.monitor.series import Bound, Growth, Rule, Series
from loopwatch.monitor.sinks import in_loop
from loopwatch.stacks import making_module, qualified_name, user_frame

if TYPE_CHECKING:
    from loopwatch.monitor.timers import TimerBook

__all__ = ["Subject", "TaskJudge", "TimerJudge", "unix_time"]

LEAST = 10  # tasks or timers: below that, growth is none
_SERIES = 2000


@dataclass(frozen=True)
class Subject:
    """What an entry of ``ignore=`` is held against: it looks like a finding of the guards."""

    kind: str
    texts: Mapping[str, Sequence[str]]

    def labels(self) -> Mapping[str, Sequence[str]]:
        return self.texts


def unix_time(monotonic: float) -> float:
    """The Unix time of a moment of ``time.monotonic()``."""
    return time.time() - (time.monotonic() - monotonic)


class _Watched:
    """The series of one coroutine or callback."""

    def __init__(self, rule: Rule, past: int, born: float) -> None:
        self.growth = Series(rule, LEAST, past=past, born=born)
        self.bound = Bound(rule)


class TaskJudge:
    """Tasks alive and tasks retained, by coroutine and creation place.

    What is watched is how many are old, for tasks that come and go are load, however many there are.
    """

    def __init__(
        self, rule: Rule, max_tasks: int, ignores: Sequence[Ignore], book: AlarmBook, coroutines: CoroutineBook
    ) -> None:
        self._rule = rule
        self._max_tasks = max_tasks
        self._ignores = ignores
        self._book = book
        self._coroutines = coroutines
        self._series: dict[tuple[str, str, Place | None], _Watched] = {}
        self._samples = 0
        self.dropped = 0
        self.growing = False

    def judge(self, now: float, sample: Sample) -> list[Alarm]:
        """Take in a sample."""
        alarms: list[Alarm] = []
        self.growing = False
        seen = set()
        for reading in sample.coroutines:
            for kind, value in (("tasks", reading.old), ("retained", reading.old_retained)):
                key = (kind, reading.qualname, reading.place)
                watched = self._of(key, value, now)
                if watched is None:
                    continue
                seen.add(key)
                grown = watched.growth.add(now, value)
                beyond = watched.bound.add(now, value, self._max_tasks) if kind == "tasks" else None
                self.growing |= watched.growth.suspected and (grown is None or grown.rate > 0)
                if grown is not None or beyond is not None:
                    alarms += self._alarm(kind, reading, sample, grown, beyond)
        for key in [key for key in self._series if key not in seen]:
            self._series[key].growth.add(now, 0)
            self._series[key].bound.add(now, 0, self._max_tasks)
        for key in [key for key, watched in self._series.items() if watched.growth.ready and watched.growth.idle]:
            del self._series[key]
        self._samples += 1
        return alarms

    def _of(self, key: tuple[str, str, Place | None], value: float, now: float) -> _Watched | None:
        watched = self._series.get(key)
        if watched is None and value > 0:
            if len(self._series) >= _SERIES:
                self.dropped += 1
                return None
            watched = self._series[key] = _Watched(self._rule, self._samples, now)
        return watched

    def _alarm(
        self, kind: str, reading: CoroutineReading, sample: Sample, grown: Growth | None, beyond: Growth | None
    ) -> list[Alarm]:
        fingerprint = f"{kind}:{reading.qualname}:{reading.place}"
        if not self._book.due(fingerprint):
            return []
        stacks = [stack for stack in (self._coroutines.stack(number) for number in reading.groups) if stack]
        stack: Sequence[FrameSummary] = stacks[0] if stacks else ()
        examples = sample.examples(reading) if kind == "tasks" else ()
        labels = {
            "name": [example.name for example in examples],
            "qualname": [reading.qualname],
            "stack": [one.place[2] for one in reading.awaits if one.place],
            "creator": [qualified_name(frame) for frame in stack],
            "module": [module for module in (making_module(stack) if stack else None,) if module],
        }
        if first_match(self._ignores, Subject("task", labels)) is not None:
            return []
        found = grown or beyond
        assert found is not None
        what = "tasks" if kind == "tasks" else "done tasks that something still holds"
        if grown is not None:
            reason = f"{grown.value:.0f} {what} of {reading.qualname}(), up from {grown.before:.0f}"
        else:
            reason = f"{found.value:.0f} {what} of {reading.qualname}(), more than {self._max_tasks} (max_tasks)"
        detail = [] if kind == "tasks" else [f"{reading.alive} more of them are alive"]
        if reading.place is None:
            detail.append("they were created before the monitor began")
        return [
            Alarm(
                kind=kind,
                subject=reading.qualname,
                reason=reason,
                value=found.value,
                before=found.before,
                limit=found.limit,
                unit="tasks",
                rate=found.rate,
                since=unix_time(found.since),
                time=time.time(),
                fingerprint=fingerprint,
                place=reading.place,
                stack=tuple(stack),
                waits=reading.awaits if kind == "tasks" else (),
                examples=examples,
                detail=tuple(detail),
            )
        ]


class TimerJudge:
    """Timers by callback, over all loops."""

    def __init__(self, rule: Rule, ignores: Sequence[Ignore], book: AlarmBook) -> None:
        self._rule = rule
        self._ignores = ignores
        self._book = book
        self._series: dict[tuple[str, Place | None], Series] = {}
        self._samples = 0
        self.growing = False

    def judge(self, now: float, loops: Sequence[tuple[WatchedLoop, LoopReading]]) -> list[Alarm]:
        """Take in a sample."""
        totals: dict[tuple[str, Place | None], float] = {}
        where: dict[tuple[str, Place | None], tuple[int, WatchedLoop]] = {}
        for watched, reading in loops:
            for timer in reading.timers_by_callback:
                key = timer.callback, timer.place
                totals[key] = totals.get(key, 0) + timer.count
                where[key] = max((timer.count, watched), where.get(key, (0, watched)), key=lambda entry: entry[0])
        for key in totals:
            if key not in self._series and len(self._series) < _SERIES:
                self._series[key] = Series(self._rule, LEAST, past=self._samples, born=now)
        self._samples += 1
        self.growing = False
        alarms: list[Alarm] = []
        for key, series in list(self._series.items()):
            value = totals.get(key, 0)
            grown = series.add(now, value)
            if series.suspected and key in where:
                self.growing |= grown is None or grown.rate > 0
                watched = where[key][1]
                call_in_loop(watched.loop, watched.timers.trace)
                if grown is not None and key in totals:
                    alarms += self._alarm(key, grown, watched)
            elif series.ready and series.idle:
                del self._series[key]
        if not any(series.suspected for series in self._series.values()):
            for watched, _ in loops:
                if watched.timers.traced:
                    call_in_loop(watched.loop, watched.timers.end)
        return alarms

    def _alarm(self, key: tuple[str, Place | None], grown: Growth, watched: WatchedLoop) -> list[Alarm]:
        callback, defined = key
        fingerprint = f"timers:{callback}:{defined}"
        if not self._book.due(fingerprint):
            return []
        timers: TimerBook = watched.timers
        stack = in_loop(lambda call: call_in_loop(watched.loop, call), lambda: timers.origin(callback))
        frame = user_frame(stack) if stack else None
        place = defined if frame is None else (frame.filename, frame.lineno or 0, qualified_name(frame))
        labels = {
            "name": [callback],
            "qualname": [callback],
            "creator": [qualified_name(one) for one in stack or ()],
            "module": [module for module in (making_module(stack) if stack else None,) if module],
        }
        if first_match(self._ignores, Subject("timer", labels)) is not None:
            return []
        again = frame is not None and qualified_name(frame) == callback
        detail = [f"the callback is defined at {place_text(defined)}"] if defined is not None else []
        if again:
            detail.append("each schedules itself again from within its own callback, until somebody cancels it")
        return [
            Alarm(
                kind="timers",
                subject=callback,
                reason=f"{grown.value:.0f} timers of {callback}() wait on a loop, up from {grown.before:.0f}",
                value=grown.value,
                before=grown.before,
                limit=grown.limit,
                unit="timers",
                rate=grown.rate,
                since=unix_time(grown.since),
                time=time.time(),
                fingerprint=fingerprint,
                place=place,
                stack=tuple(stack or ()),
                detail=tuple(detail),
            )
        ]
