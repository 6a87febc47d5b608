"""Loops that are blocked for long, and loops that hang."""

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import Sequence

from loopwatch import _core
from loopwatch.blocks import callback_name, thread_name
from loopwatch.findings import EventLoopBlock
from loopwatch.leaks.suppress import Ignore, first_match
from loopwatch.monitor.alarms import Alarm, AlarmBook
from loopwatch.monitor.judges import Subject
from loopwatch.monitor.loopbook import WatchedLoop
from loopwatch.printable import printable
from loopwatch.stacks import Frame, frames_from_raw, qualified_name, user_frame
from loopwatch.summary import short_why

__all__ = ["HangJudge", "LagJudge"]

_PAUSE = 0.01


class LagJudge:
    """Each block is an alarm, the same place and cause once, or again where far longer; the others are counted."""

    def __init__(self, ignores: Sequence[Ignore], book: AlarmBook) -> None:
        self._ignores = ignores
        self._book = book

    def judge(self, blocks: Sequence[EventLoopBlock]) -> list[Alarm]:
        """Take in blocks that have ended."""
        alarms = []
        for block in blocks:
            fingerprint = f"lag:{block.culprit}:{block.cause.value}"
            if self._ignores and first_match(self._ignores, _subject(block)) is not None:
                continue
            if not self._book.due(fingerprint, block.duration):
                self._book.leave_out(fingerprint, block.duration)
                continue
            alarms.append(
                Alarm(
                    kind="lag",
                    subject=block.callback or block.task or block.loop or "a loop",
                    reason=f"a loop was blocked for {block.duration:.2f} s: {short_why(block)}",
                    value=block.duration,
                    before=0.0,
                    limit=block.threshold,
                    unit="s",
                    rate=0.0,
                    since=block.timestamp,
                    time=time.time(),
                    fingerprint=fingerprint,
                    place=block.culprit,
                    stack=tuple(block.holder_stack or block.blocking_stack or ()),
                    request=block.request,
                    thread=block.thread_name,
                    task=block.task,
                )
            )
        return alarms


class HangJudge:
    """A loop that has not come back for long is an alarm while it still hangs.

    Each look reads one number a loop.  ``due`` is when to look next (monotonic): the moment at which a span that lasts
    now is a hang, and no span that begins later can be one before.  So each hang is told as it becomes one, for about
    one look every ``hang`` seconds.

    Python code has to run for that: where the loop holds the GIL all the while, it is told when it comes back.
    """

    def __init__(self, hang: float, book: AlarmBook) -> None:
        self._hang = hang
        self._book = book
        self._judged: dict[int, tuple[int, float]] = {}  # loop: when the span began that was judged, and when that was
        self.due = 0.0 if hang > 0 else math.inf

    def look(self, loops: Sequence[WatchedLoop]) -> list[Alarm]:
        """Look whether one hangs now."""
        now = time.monotonic()
        due = now + self._hang
        self.due = max(due, now + _PAUSE)  # whatever goes wrong below
        alarms = []
        before, self._judged = self._judged, {}
        for loop in loops:
            since = loop.busy_since
            span, judged = before.get(id(loop), (0, 0.0))
            if since and span == since and now < judged + max(self._book.repeat, self._hang):
                self._judged[id(loop)] = span, judged
            elif since and now < since / 1e9 + self._hang:
                due = min(due, since / 1e9 + self._hang)
            elif since:
                self._judged[id(loop)] = since, now
                with contextlib.suppress(Exception):  # the loop, or its thread, ends meanwhile
                    alarms += self._alarm(loop, since, now - since / 1e9)
        self.due = max(due, now + _PAUSE)
        return alarms

    def _alarm(self, loop: WatchedLoop, since: int, busy: float) -> list[Alarm]:
        stack = _stack(loop)
        task, coroutine = _task(loop)
        if loop.busy_since != since:  # it came back meanwhile: the stack is of something else
            return []
        frame = user_frame(stack)
        place = None if frame is None else (frame.filename, frame.lineno or 0, qualified_name(frame))
        fingerprint = f"hang:{place}"
        if not self._book.due(fingerprint):
            self._book.leave_out(fingerprint, busy)
            return []
        return [
            Alarm(
                kind="hang",
                subject=callback_name(coroutine, stack) or loop.name,
                reason=f"a loop has not come back for {busy:.1f} s",
                value=busy,
                before=0.0,
                limit=self._hang,
                unit="s",
                rate=1.0,
                since=time.time() - busy,
                time=time.time(),
                fingerprint=fingerprint,
                place=place,
                stack=stack,
                thread=thread_name(loop.native_id, loop.thread_id),
                task=task,
            )
        ]


def _subject(block: EventLoopBlock) -> Subject:
    labels = {
        "name": [name for name in (block.task, block.callback) if name],
        "qualname": [block.callback] if block.callback else [],
        "stack": [qualified_name(frame) for frame in block.blocking_stack or ()],
    }
    return Subject("block", labels)


def _task(loop: WatchedLoop) -> tuple[str | None, str | None]:
    """Name and coroutine of the task that runs on another thread's loop, where asyncio knows it."""
    with contextlib.suppress(Exception):
        task = asyncio.current_task(loop.loop)
        if task is not None:
            coroutine = getattr(_core.task_coroutine(task), "__qualname__", None)
            return printable(task.get_name()), None if coroutine is None else printable(coroutine)
    return None, None


def _stack(loop: WatchedLoop) -> tuple[Frame, ...]:
    with contextlib.suppress(Exception):
        return frames_from_raw(_core.stack_of(loop.native_id))
    frames = []
    frame = sys._current_frames().get(loop.thread_id)
    while frame is not None:
        code = frame.f_code
        frames.append((code.co_filename, code.co_qualname, frame.f_lineno, 0, -1, -1))
        frame = frame.f_back
    return frames_from_raw(reversed(frames))
