"""EventLoopBlockError: attributes, texts, pickling."""

from __future__ import annotations

import pickle
from typing import Any

from loopwatch import EventLoopBlockError, LeakError
from loopwatch.blocks import block_from_raw


def error(raw: Any) -> EventLoopBlockError:
    first = raw.block(raw.segment(("/app.py", "main", 3), ms=605, cause="syscall", syscall="clock_nanosleep"))
    second = raw.block(raw.segment(("/app.py", "main", 4), ms=300))
    return EventLoopBlockError("Detected 2 event loop blocks", [block_from_raw(first, 1), block_from_raw(second, 2)])


def test_it_is_a_leak_error_with_its_blocks(raw: Any) -> None:
    caught = error(raw)
    assert isinstance(caught, LeakError)
    assert caught.block_count == len(caught.blocking_events) == 2


def test_text_lists_every_block(raw: Any) -> None:
    lines = str(error(raw)).splitlines()
    assert lines[:8] == [
        "Detected 2 event loop blocks",
        "",
        "Event Loop Block: block-1",
        "  Duration: 0.605s (threshold: 0.200s)",
        "  Timestamp: 1749051796.302",
        "  Cause: system call clock_nanosleep",
        "  Blocking Stack:",
        '    File "/app.py", line 3, in main',
    ]
    assert lines[8] == "Event Loop Block: block-2"


def test_summary_has_one_line_a_block(raw: Any) -> None:
    assert error(raw).get_block_summary().splitlines() == [
        "Detected 2 event loop blocks",
        "  block-1: 0.605s at /app.py:3 in main, cause: system call clock_nanosleep",
        "  block-2: 0.300s at /app.py:4 in main, cause: Python code",
    ]


def test_it_survives_pickling_with_its_notes(raw: Any) -> None:
    caught = error(raw)
    caught.add_note("a note")
    again = pickle.loads(pickle.dumps(caught))
    assert str(again) == str(caught)
    assert again.__notes__ == ["a note"]
    assert again.blocking_events == caught.blocking_events
    assert again.block_count == 2


def test_without_blocks_the_message_is_all() -> None:
    assert str(EventLoopBlockError("nothing", [])) == "nothing"
