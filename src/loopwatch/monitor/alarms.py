"""An alarm, as people and tools see it; and the book of those that were given."""

import json
import os
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from traceback import FrameSummary
from typing import Any

from loopwatch.findings import place_text
from loopwatch.monitor.readings import AwaitReading, ExampleTask, Place
from loopwatch.printable import printable
from loopwatch.requests import RequestInfo, request_text
from loopwatch.stacks import format_stack, is_library, is_runner, qualified_name

__all__ = ["SCHEMA", "Alarm", "AlarmBook", "LeftOut"]

SCHEMA = "loopwatch.alarm/1"
LONGER = 4  # times as long as what was told: a block that is told before its time
_KEPT = 100
_FINGERPRINTS = 2000
_STACK = 40  # frames in JSON


@dataclass(frozen=True)
class LeftOut:
    """Blocks or hangs that were not told, as the same alarm had been given a short while ago.

    ``since``: Unix time of that alarm.  ``total`` and ``longest``: seconds; None for hangs, whose end is not seen.
    """

    count: int
    since: float
    total: float | None
    longest: float | None

    def __str__(self) -> str:
        text = f"{self.count:,} more since {_moment(self.since)} were not told"
        return text if self.longest is None else f"{text}: {self.total:.2f} s in all, the longest {self.longest:.2f} s"


@dataclass(frozen=True)
class Alarm:
    """Something grew, or is beyond a bound.

    kind: "tasks" (alive), "retained" (done, but held), "timers", "memory", "lag" (a block) or "hang".
    subject: what it is about: the qualified name of a coroutine or callback, a type of objects, or else a loop.
    reason: the rule that fired, in words.
    value, before, limit: the number now, its mean before (or at its first sample), and what it exceeded; in ``unit``.
    rate: growth in units a second.  since: Unix time from which on it is so.  time: when the alarm was given.
    place: the line to fix: where the tasks or timers were created, memory was allocated, or the loop was blocked; None
        where that is not known.
    stack: how the program came there, outermost first.
    waits: where the tasks wait, with how many each.  examples: up to three of the oldest tasks.
    detail: more lines of text, such as the types of objects that grew.
    request: route, method and request_id of the web request that blocked, where an integration is used.
    fingerprint: the same for the same fault; an alarm is repeated at most once an hour for each, but a block that is
        four times as long as the longest told at once.
    pid: the process.  thread, task: of "lag" and "hang", the names of the loop's thread and of the asyncio task that
        ran; None where not known.
    left_out: of "lag" and "hang", how many were not told since the alarm of this fingerprint before; None for none.
    """

    kind: str
    subject: str
    reason: str
    value: float
    before: float
    limit: float
    unit: str
    rate: float
    since: float
    time: float
    fingerprint: str
    place: Place | None = None
    stack: tuple[FrameSummary, ...] = field(default=(), repr=False)
    waits: tuple[AwaitReading, ...] = ()
    examples: tuple[ExampleTask, ...] = ()
    detail: tuple[str, ...] = ()
    request: RequestInfo | None = field(default=None, hash=False)
    left_out: LeftOut | None = None
    pid: int = field(default_factory=os.getpid)
    thread: str | None = None
    task: str | None = None

    def headline(self) -> str:
        """One line: what, by how much, where."""
        return f"{self.reason}; {_MADE[self.kind]} {place_text(self.place)}"

    def __str__(self) -> str:
        return f"loopwatch: {self._text()}"

    def stamped(self) -> str:
        """As ``str()``, with time and process id, for where nothing else adds them."""
        return f"{stamp(self.time, self.pid)}{self._text()}"

    def _text(self) -> str:
        lines = [self.headline()]
        if self.kind in ("lag", "hang"):
            names = (("task", self.task), ("thread", self.thread))
            lines.append(
                ", ".join([f"  in {printable(self.subject)}", *(f"{what} {name!r}" for what, name in names if name)])
            )
        else:
            lines.append(f"  since {_moment(self.since)}, {rate_text(self.rate, self.unit)}")
        lines += [f"  {one.count} wait at {place_text(one.place)} for {one.waits_for}" for one in self.waits[:3]]
        lines += [f"  {example}" for example in self.examples]
        lines += [f"  {line}" for line in self.detail]
        if self.left_out:
            lines.append(f"  {self.left_out}")
        if self.request:
            lines.append(f"  Request: {request_text(self.request)}")
        shown = telling(self.stack)
        if shown:
            lines += ["  Stack:", *(f"  {line}" for line in format_stack(shown).splitlines())]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """What a line of JSON holds."""
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "subject": self.subject,
            "reason": self.reason,
            "value": self.value,
            "before": self.before,
            "limit": self.limit,
            "unit": self.unit,
            "rate": self.rate,
            "since": self.since,
            "time": self.time,
            "pid": self.pid,
            "thread": self.thread,
            "task": self.task,
            "fingerprint": self.fingerprint,
            "place": place_dict(self.place),
            "waits": [
                {"place": place_dict(one.place), "waits_for": one.waits_for, "count": one.count} for one in self.waits
            ],
            "examples": [
                {"name": one.name, "age": one.age, "wait": one.wait, "request": one.request} for one in self.examples
            ],
            "request": self.request,
            "left_out": None if self.left_out is None else asdict(self.left_out),
            "detail": list(self.detail),
            "stack": [
                {"file": frame.filename, "line": frame.lineno or 0, "name": qualified_name(frame)}
                for frame in self.stack[-_STACK:]
            ],
        }

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.as_dict())


_MADE = {
    "tasks": "created at",
    "retained": "created at",
    "timers": "scheduled at",
    "memory": "allocated at",
    "lag": "at",
    "hang": "at",
}


def telling(stack: Sequence[FrameSummary]) -> Sequence[FrameSummary]:
    """The part of a stack that tells something: what a loop called, down to the first line of a library's."""
    last = max((number for number, frame in enumerate(stack) if not is_library(frame.filename)), default=len(stack))
    first = max((number + 1 for number in range(min(last, len(stack))) if is_runner(stack[number].filename)), default=0)
    return stack[first : last + 2] or stack


def place_dict(place: Place | None) -> Mapping[str, Any] | None:
    """A place as JSON has it."""
    return None if place is None else {"file": place[0], "line": place[1], "name": place[2]}


def rate_text(rate: float, unit: str) -> str:
    """Growth, in units a second, by the unit of time in which it is a number above 1."""
    for seconds, name in ((1, "a second"), (60, "a minute"), (3600, "an hour"), (86400, "a day")):
        number = rate * seconds
        if abs(number) >= 1:
            return f"{number:+,.0f} {unit} {name}" if abs(number) >= 100 else f"{number:+.3g} {unit} {name}"
    return "unchanged from then on"


def stamp(moment: float, pid: int) -> str:
    """What a line on stderr begins with: several workers may write there."""
    return f"loopwatch: {_moment(moment, ' %z')} pid {pid}: "


def _moment(unix: float, zone: str = "") -> str:
    return time.strftime(f"%Y-%m-%d %H:%M:%S{zone}", time.localtime(unix))


@dataclass
class _Given:
    """An alarm that was given: when (monotonic, Unix time), and the longest seconds told of; what came after it."""

    at: float
    time: float
    longest_told: float
    count: int = 0
    total: float = 0.0
    longest: float = 0.0


class AlarmBook:
    """Which alarms were given.  ``repeat``: seconds before the same one is given again.

    Of what is an event each (a block, a hang), those left out meanwhile are counted.
    """

    def __init__(self, repeat: float) -> None:
        self.repeat = repeat
        self._given: OrderedDict[str, _Given] = OrderedDict()
        self._kept: deque[Alarm] = deque(maxlen=_KEPT)
        self.count = 0

    def due(self, fingerprint: str, block: float = 0.0) -> bool:
        """Whether an alarm with this fingerprint would be given now; ``block``: of a block, its seconds."""
        given = self._given.get(fingerprint)
        if given is None or time.monotonic() - given.at >= self.repeat:
            return True
        return block >= LONGER * given.longest_told > 0

    def leave_out(self, fingerprint: str, seconds: float) -> None:
        """Count one that was not due."""
        given = self._given.get(fingerprint)
        if given is not None:
            given.count += 1
            given.total += seconds
            given.longest = max(given.longest, seconds)

    def give(self, alarm: Alarm) -> Alarm | None:
        """Note an alarm, and give it with what was left out before; None where it is to be left out itself."""
        event = alarm.kind in ("lag", "hang")
        told = alarm.value if alarm.kind == "lag" else 0.0
        if not self.due(alarm.fingerprint, told):
            if event:
                self.leave_out(alarm.fingerprint, alarm.value)
            return None
        before = self._given.get(alarm.fingerprint)
        if event and before is not None and before.count:
            total, longest = (before.total, before.longest) if alarm.kind == "lag" else (None, None)
            alarm = replace(alarm, left_out=LeftOut(before.count, before.time, total, longest))
            told = max(told, longest or 0.0)
        self._given[alarm.fingerprint] = _Given(time.monotonic(), time.time(), told)
        self._given.move_to_end(alarm.fingerprint)
        while len(self._given) > _FINGERPRINTS:
            self._given.popitem(last=False)
        self._kept.append(alarm)
        self.count += 1
        return alarm

    def read(self) -> tuple[Alarm, ...]:
        """The last hundred."""
        return tuple(self._kept)
