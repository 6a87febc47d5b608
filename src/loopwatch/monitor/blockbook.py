"""Blocks by the line to fix and the cause: counted in the loop's thread, told of by the monitor's."""

import threading
from collections import deque
from typing import TYPE_CHECKING

from loopwatch.blocks import block_from_raw
from loopwatch.findings import Cause, EventLoopBlock
from loopwatch.monitor.readings import BlockReading, Place

if TYPE_CHECKING:
    from loopwatch._core import RawBlock

__all__ = ["BlockBook"]

_PLACES = 1000
_WAITING = 100


class BlockBook:
    """Counts for each (place, cause); the newest blocks wait for the monitor's thread.  ``wake`` is called for each."""

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake
        self._lock = threading.RLock()  # a signal handler may run a loop
        self._entries: dict[tuple[Place | None, str], BlockReading] = {}
        self._waiting: deque[EventLoopBlock] = deque(maxlen=_WAITING)
        self._born_ns = 0
        self.count = 0
        self.dropped = 0

    def begin(self, now_ns: int) -> None:
        """What began before this moment is not ours: a forked child's parent reports it."""
        self._lock = threading.RLock()
        self._born_ns = now_ns

    def add(self, raw: "RawBlock", loop: str) -> None:
        """Take in a block that has just ended.  Time that the machine took from the process is none."""
        if raw["start_ns"] < self._born_ns or raw["stall"]:
            return
        with self._lock:
            self.count += 1
            number = self.count
        block = block_from_raw(raw, number, loop=loop)
        if block.cause in (Cause.STARVED, Cause.STOPPED):
            return
        key = block.culprit, block.cause.value
        with self._lock:
            self._waiting.append(block)
            if key not in self._entries and len(self._entries) >= _PLACES:
                self.dropped += 1
                key = None, block.cause.value
            known = self._entries.get(key)
            self._entries[key] = BlockReading(
                place=key[0],
                cause=block.cause.value,
                count=1 + (known.count if known else 0),
                total=block.duration + (known.total if known else 0.0),
                longest=max(block.duration, known.longest if known else 0.0),
                last=block.timestamp,
            )
        self._wake.set()

    def take(self) -> list[EventLoopBlock]:
        """The blocks that came since the last time, at most a hundred."""
        with self._lock:
            blocks = list(self._waiting)
            self._waiting.clear()
        return blocks

    def read(self) -> tuple[BlockReading, ...]:
        """All places, the most time first."""
        with self._lock:
            return tuple(sorted(self._entries.values(), key=lambda entry: -entry.total))
