"""Tasks by coroutine and creation place: one walk of the core's sampler, in slices, merged into readings."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from loopwatch import _core, requests
from loopwatch.leaks.waits import wait_of
from loopwatch.monitor.readings import AwaitReading, CoroutineReading, ExampleTask, Place
from loopwatch.printable import printable
from loopwatch.stacks import Frame, frames_from_raw, qualified_name, user_frame

if TYPE_CHECKING:
    from loopwatch._core import RawTaskGroup

__all__ = ["CoroutineBook", "Sample"]

_SLICE_NS = 500_000
_PAUSE = 0.0002
_AWAITS = 20
_WAIT_LENGTH = 300


class Sample:
    """One walk: readings, with the records of example tasks kept until they are asked for."""

    def __init__(self, coroutines: tuple[CoroutineReading, ...], records: dict[tuple[str, Place | None], list[Any]]):
        self.coroutines = coroutines
        self._records = records

    def examples(self, reading: CoroutineReading) -> tuple[ExampleTask, ...]:
        """Up to three of the oldest tasks of a coroutine that are still there."""
        found = []
        for record in self._records.get((reading.qualname, reading.place), ()):
            task = record()
            if task is not None and not task.done():
                age = max(0.0, time.monotonic() - record.born_ns / 1e9)
                found.append(ExampleTask(_name(task), age, _wait(task), requests.of_task(task)))
        found.sort(key=lambda example: -example.age)
        return tuple(found[:3])


class CoroutineBook:
    """Walks the tasks, and remembers the creation place of each group.

    ``old`` is from how many seconds on a task is counted as old.
    """

    def __init__(self, old: float) -> None:
        self._old_ns = round(old * 1e9)
        self._places: dict[int, Place | None] = {}

    def sample(self, pause: Callable[[float], object] = time.sleep) -> Sample:
        """Walk in slices of half a millisecond; between two of them the program runs on."""
        sampler = _core.task_sampler(self._old_ns)
        while not sampler.step(_SLICE_NS):
            pause(_PAUSE)
        merged: dict[tuple[str, Place | None], list[RawTaskGroup]] = {}
        for group in sampler.result():
            name = group["coro"] or ("(tasks past the places told apart)" if group["number"] == 0 else "(unknown)")
            if group["born"] or group["held"]:
                merged.setdefault((name, self.place(group["number"])), []).append(group)
        readings = []
        records = {}
        for (name, place), groups in merged.items():
            readings.append(_reading(name, place, groups))
            records[name, place] = [record for group in groups for record in group["examples"]]
        readings.sort(key=lambda reading: (-reading.alive, -reading.born, reading.qualname))
        return Sample(tuple(readings), records)

    def place(self, number: int) -> Place | None:
        """The program's own line of a group's creation stack."""
        if number not in self._places:
            frame = user_frame(self.stack(number))
            self._places[number] = None if frame is None else (frame.filename, frame.lineno or 0, qualified_name(frame))
        return self._places[number]

    @staticmethod
    def stack(number: int) -> tuple[Frame, ...]:
        """A group's creation stack, outermost first; empty where there is none."""
        return frames_from_raw(_core.task_group_frames(number)) if number > 0 else ()


def _reading(name: str, place: Place | None, groups: "Sequence[RawTaskGroup]") -> CoroutineReading:
    alive = sum(group["pending"] for group in groups)
    awaits: dict[tuple[Place | None, str], int] = {}
    for group in groups:
        for frame, kind, count in group["sites"]:
            key = (None if frame is None else (frame[0], frame[2], frame[1])), kind
            awaits[key] = awaits.get(key, 0) + count
    ordered = sorted(awaits.items(), key=lambda entry: -entry[1])[:_AWAITS]
    return CoroutineReading(
        qualname=name,
        place=place,
        alive=alive,
        old=sum(group["old"] for group in groups),
        born=sum(group["born"] for group in groups),
        returned=sum(group["returned"] for group in groups),
        failed=sum(group["failed"] for group in groups),
        cancelled=sum(group["cancelled"] for group in groups),
        retained=sum(group["retained"] for group in groups),
        old_retained=sum(group["old_retained"] for group in groups),
        destroyed=sum(group["destroyed"] for group in groups),
        never_retrieved=sum(group["unretrieved"] for group in groups),
        oldest=max(group["oldest_ns"] for group in groups) / 1e9,
        mean_age=sum(group["age_sum_ns"] for group in groups) / 1e9 / alive if alive else 0.0,
        steps=sum(group["steps"] for group in groups),
        busy=sum(group["busy_ns"] for group in groups) / 1e9,
        longest_step=max(group["longest_ns"] for group in groups) / 1e9,
        awaits=tuple(AwaitReading(where, kind, count) for (where, kind), count in ordered),
        groups=tuple(group["number"] for group in groups),
    )


def _name(task: Any) -> str:
    get_name = getattr(task, "get_name", None)
    return printable(str(get_name()) if callable(get_name) else repr(task))


def _wait(task: Any) -> str:
    try:
        return printable(wait_of(task).text)[:_WAIT_LENGTH]
    except Exception as error:  # it runs meanwhile in another thread: what is read may be half of something
        return f"waits for something that cannot be told ({type(error).__name__})"
