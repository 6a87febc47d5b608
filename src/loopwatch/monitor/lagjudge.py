"""Loops that are blocked for long, and loops that hang."""

import contextlib
import sys
import time
from collections.abc import Sequence

from loopwatch import _core
from loopwatch.findings import EventLoopBlock
from loopwatch.leaks.suppress import Ignore, first_match
from loopwatch.monitor.alarms import Alarm, AlarmBook
from loopwatch.monitor.judges import Subject
from loopwatch.monitor.readings import LoopReading
from loopwatch.stacks import Frame, frames_from_raw, qualified_name, user_frame
from loopwatch.summary import short_why

__all__ = ["HangJudge", "LagJudge"]


class LagJudge:
    """Each block is an alarm, the same place and cause once."""

    def __init__(self, ignores: Sequence[Ignore], book: AlarmBook) -> None:
        self._ignores = ignores
        self._book = book

    def judge(self, blocks: Sequence[EventLoopBlock]) -> list[Alarm]:
        """Take in blocks that have ended."""
        alarms = []
        for block in blocks:
            fingerprint = f"lag:{block.culprit}:{block.cause.value}"
            labels = {
                "name": [block.task or block.callback or ""],
                "stack": [qualified_name(frame) for frame in block.blocking_stack or ()],
            }
            if not self._book.due(fingerprint) or first_match(self._ignores, Subject("block", labels)) is not None:
                continue
            alarms.append(
                Alarm(
                    kind="lag",
                    subject=block.task or block.callback or block.loop or "a loop",
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
                )
            )
        return alarms


class HangJudge:
    """A loop that has not come back for long is an alarm while it still hangs.

    Python code has to run for that: where the loop holds the GIL all the while, it is told when it comes back.
    """

    def __init__(self, hang: float, book: AlarmBook) -> None:
        self._hang = hang
        self._book = book

    def judge(self, loops: Sequence[LoopReading]) -> list[Alarm]:
        """Take in a sample."""
        alarms = []
        for loop in loops:
            if self._hang <= 0 or loop.busy < self._hang or not loop.running:
                continue
            stack = _stack(loop)
            frame = user_frame(stack)
            place = None if frame is None else (frame.filename, frame.lineno or 0, qualified_name(frame))
            fingerprint = f"hang:{place}"
            if self._book.due(fingerprint):
                alarms.append(
                    Alarm(
                        kind="hang",
                        subject=loop.name,
                        reason=f"a loop has not come back for {loop.busy:.1f} s, thread {loop.thread!r}",
                        value=loop.busy,
                        before=0.0,
                        limit=self._hang,
                        unit="s",
                        rate=1.0,
                        since=time.time() - loop.busy,
                        time=time.time(),
                        fingerprint=fingerprint,
                        place=place,
                        stack=stack,
                    )
                )
        return alarms


def _stack(loop: LoopReading) -> tuple[Frame, ...]:
    with contextlib.suppress(Exception):
        return frames_from_raw(_core.stack_of(loop.native_id))
    frames = []
    frame = sys._current_frames().get(loop.thread_id)
    while frame is not None:
        code = frame.f_code
        frames.append((code.co_filename, code.co_qualname, frame.f_lineno, 0, -1, -1))
        frame = frame.f_back
    return frames_from_raw(reversed(frames))
