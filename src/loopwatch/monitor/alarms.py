"""An alarm, as people and tools see it; and the book of those that were given."""

import json
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from traceback import FrameSummary
from typing import Any

from loopwatch.findings import place_text
from loopwatch.monitor.readings import AwaitReading, ExampleTask, Place
from loopwatch.requests import RequestInfo, request_text
from loopwatch.stacks import format_stack, qualified_name

__all__ = ["SCHEMA", "Alarm", "AlarmBook"]

SCHEMA = "loopwatch.alarm/1"
_KEPT = 100
_FINGERPRINTS = 2000
_STACK = 40  # frames in JSON


@dataclass(frozen=True)
class Alarm:
    """Something grew, or is beyond a bound.

    kind: "tasks" (alive), "retained" (done, but held), "timers", "memory", "lag" (a block) or "hang".
    subject: what it is about, such as a coroutine's qualified name.
    reason: the rule that fired, in words.
    value, before, limit: the number now, its mean before (or at its first sample), and what it exceeded; in ``unit``.
    rate: growth in units a second.  since: Unix time from which on it is so.  time: when the alarm was given.
    place: the line to fix: where the tasks or timers were created, memory was allocated, or the loop was blocked; None
        where that is not known.
    stack: how the program came there, outermost first.
    waits: where the tasks wait, with how many each.  examples: up to three of the oldest tasks.
    detail: more lines of text, such as the types of objects that grew.
    request: route, method and request_id of the web request that blocked, where an integration is used.
    fingerprint: the same for the same fault; an alarm is repeated at most once an hour for each.
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

    def headline(self) -> str:
        """One line: what, by how much, where."""
        return f"{self.reason}; {_MADE[self.kind]} {place_text(self.place)}"

    def __str__(self) -> str:
        lines = [f"loopwatch: {self.headline()}"]
        if self.kind not in ("lag", "hang"):
            began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
            lines.append(f"  since {began}, {self.rate:+.3g} {self.unit} a second")
        lines += [f"  {one.count} wait at {place_text(one.place)} for {one.waits_for}" for one in self.waits[:3]]
        lines += [f"  {example}" for example in self.examples]
        lines += [f"  {line}" for line in self.detail]
        if self.request:
            lines.append(f"  Request: {request_text(self.request)}")
        if self.stack:
            lines += ["  Stack:", *(f"  {line}" for line in format_stack(self.stack).splitlines())]
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
            "fingerprint": self.fingerprint,
            "place": place_dict(self.place),
            "waits": [
                {"place": place_dict(one.place), "waits_for": one.waits_for, "count": one.count} for one in self.waits
            ],
            "examples": [
                {"name": one.name, "age": one.age, "wait": one.wait, "request": one.request} for one in self.examples
            ],
            "request": self.request,
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


def place_dict(place: Place | None) -> Mapping[str, Any] | None:
    """A place as JSON has it."""
    return None if place is None else {"file": place[0], "line": place[1], "name": place[2]}


class AlarmBook:
    """Which alarms were given.  ``repeat``: seconds before the same one is given again."""

    def __init__(self, repeat: float) -> None:
        self._repeat = repeat
        self._given: OrderedDict[str, float] = OrderedDict()
        self._kept: deque[Alarm] = deque(maxlen=_KEPT)
        self.count = 0

    def due(self, fingerprint: str) -> bool:
        """Whether an alarm with this fingerprint would be given now."""
        given = self._given.get(fingerprint)
        return given is None or time.monotonic() - given >= self._repeat

    def give(self, alarm: Alarm) -> bool:
        """Note an alarm; False where the same one was given a short while ago."""
        if not self.due(alarm.fingerprint):
            return False
        self._given[alarm.fingerprint] = time.monotonic()
        self._given.move_to_end(alarm.fingerprint)
        while len(self._given) > _FINGERPRINTS:
            self._given.popitem(last=False)
        self._kept.append(alarm)
        self.count += 1
        return True

    def read(self) -> tuple[Alarm, ...]:
        """The last hundred."""
        return tuple(self._kept)
