"""Blocks: which stack and cause are picked, callbacks, threads, texts."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest

from loopwatch import CallerContext, Cause, EventLoopBlock, Segment, _core
from loopwatch.blocks import block_from_raw, thread_name
from loopwatch.stacks import frames_from_raw, is_library, user_frame

ROOT = ("/app.py", "main", 1)


def test_causes_are_those_of_the_core() -> None:
    assert tuple(Cause) == tuple(_core.CAUSES)


def test_a_cause_unknown_to_us_is_unknown(raw: Any) -> None:
    assert block_from_raw(raw.block(raw.segment(ROOT, cause="new")), 1).cause is Cause.UNKNOWN


def test_every_cause_has_a_sentence() -> None:
    sentences = {cause.describe() for cause in Cause}
    assert len(sentences) == len(Cause)


def test_sentences_name_the_system_call_and_the_holder() -> None:
    assert Segment((), 1.0, Cause.SYSCALL, syscall="fsync").detail == "system call fsync"
    held = Segment((), 1.0, Cause.GIL, holder_thread="hog", holder_thread_id=123)
    assert held.detail == "GIL held by thread 'hog' (native id 123)"


def test_units_are_seconds(raw: Any) -> None:
    block = block_from_raw(raw.block(raw.segment(ROOT, ms=300), starved_ns=50_000_000, stopped_ns=10_000_000), 7)
    assert (block.block_id, block.duration, block.threshold) == (7, 0.3, 0.2)
    assert (block.starved, block.stopped) == (0.05, 0.01)
    assert block.timestamp == pytest.approx(1749051796.302)


def test_equal_stacks_are_added_up(raw: Any) -> None:
    one, two = ("/app.py", "a", 10), ("/app.py", "b", 20)
    segments = [raw.segment(ROOT, one, ms=60), raw.segment(ROOT, two, ms=100), raw.segment(ROOT, one, ms=60)]
    assert block_from_raw(raw.block(*segments), 1).culprit == ("/app.py", 10, "a")


def test_a_loop_over_many_lines_outweighs_one_slow_line(raw: Any) -> None:
    body = [raw.segment(ROOT, ("/app.py", "body", line), ms=40) for line in range(10, 20)]
    slow = raw.segment(("/app.py", "main", 2), ("/app.py", "slow", 50), ms=100)
    culprit = block_from_raw(raw.block(*body, slow), 1).culprit
    assert culprit is not None
    assert culprit[2] == "body"


def test_the_cause_is_the_one_with_most_time_in_all(raw: Any) -> None:
    parts = [raw.segment(ROOT, ms=60), raw.segment(ROOT, ms=100, cause="gc"), raw.segment(ROOT, ms=60)]
    block = block_from_raw(raw.block(*parts), 1)
    assert block.cause is Cause.PYTHON
    assert block.why == "Python code (0.120s), garbage collection (0.100s)"


@pytest.mark.parametrize(("stopped", "starved", "cause"), [(90, 5, Cause.STOPPED), (0, 80, Cause.STARVED)])
def test_a_stall_is_the_machines_doing(raw: Any, stopped: int, starved: int, cause: Cause) -> None:
    part = raw.segment(ROOT, cause="c_call")
    counted = {"stopped_ns": stopped * 1_000_000, "starved_ns": starved * 1_000_000}
    stall = block_from_raw(raw.block(part, stall=True, **counted), 1)
    assert stall.cause is cause
    assert stall.why == cause.describe()
    assert block_from_raw(raw.block(part, **counted), 1).cause is Cause.C_CALL


def test_a_block_without_a_stack_says_why(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "LAYOUT", "exact")
    none = block_from_raw(raw.block(ms=300), 1)
    assert none.blocking_stack is None
    assert none.culprit is none.innermost is None
    assert "no sample was taken" in str(none)
    assert "3 found no room" in str(block_from_raw(raw.block(ms=300, dropped=3), 1))
    assert "no frame could be read" in str(block_from_raw(raw.block(raw.segment()), 1))
    monkeypatch.setattr(_core, "LAYOUT", "fallback: unknown version")
    assert "fallback: unknown version" in str(block_from_raw(raw.block(ms=300), 1))


def test_many_callbacks_are_told_from_one(raw: Any) -> None:
    parts = [
        raw.segment(ROOT, ms=10, callback=f"step{i}", callback_index=i * 9, callback_total=812) for i in range(29)
    ] + [
        raw.segment(ROOT, ms=10, callback="step", callback_index=810, callback_total=812),
        raw.segment(ROOT, ms=15, callback="x", callback_index=811, callback_total=812),
    ]
    block = block_from_raw(raw.block(*parts), 1)
    assert block.scattered
    assert block.callbacks == 812
    assert "Callbacks: 812 in one iteration, heaviest 'x' (0.015s)" in str(block)
    assert "heaviest 'x' (under 1 ms)" in str(dataclasses.replace(block, heaviest=("x", 4e-5)))


def test_what_was_sampled_for_long_is_not_shared_with_those_before_it(raw: Any) -> None:
    parts = [
        raw.segment(ROOT, ms=1000, callback="culprit", callback_index=20, callback_total=22, steady_ns=940_000_000),
        raw.segment(ROOT, ms=150, callback="bystander", callback_index=21, callback_total=22, steady_ns=140_000_000),
    ]
    block = block_from_raw(raw.block(*parts), 1)
    assert block.heaviest is not None and not block.scattered
    assert block.heaviest[0] == "culprit" and 0.94 <= block.heaviest[1] < 0.96


def test_a_thread_nobody_named_is_not_told_by_the_process_name(raw: Any) -> None:
    own = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
    for comm, name in ((own, "thread-999999"), ("worker", "worker")):
        part = raw.segment(ROOT, cause="gil", holder_id=999999, holder_comm=comm, holder_frames=[])
        assert block_from_raw(raw.block(part, ms=300), 1).segments[0].holder_thread == name


def test_one_long_callback_among_many_is_one(raw: Any) -> None:
    parts = [raw.segment(ROOT, ms=10 + 200 * (i == 3), callback_index=i, callback_total=5) for i in range(5)]
    block = block_from_raw(raw.block(*parts), 1)
    assert not block.scattered
    assert "Callbacks:" not in str(block)


def test_the_thread_that_held_the_gil_is_blamed(raw: Any) -> None:
    own = threading.current_thread()
    part = raw.segment(ROOT, cause="gil", holder_id=own.native_id, holder_frames=[("/hog.py", "Hog.run", 9, 9, -1, -1)])
    block = block_from_raw(raw.block(part), 1)
    assert block.culprit == ("/hog.py", 9, "Hog.run")
    assert block.blocking_stack is not None
    assert block.blocking_stack[-1].filename == "/app.py"
    assert f"Stack of thread {own.name!r}, which held the GIL:" in str(block)
    assert f"GIL held by thread {own.name!r} (native id {own.native_id})" in str(block)


def test_thread_names() -> None:
    own = threading.current_thread()
    assert thread_name(own.native_id) == thread_name(None, own.ident) == own.name
    assert thread_name(2**31 - 1, comm="gone") == "gone"
    assert thread_name(2**31 - 1) == f"thread-{2**31 - 1}"
    assert thread_name(0, 0) is None


def test_stacks_begin_at_the_caller(raw: Any) -> None:
    frames = [("/runner.py", "run", 1), ("/app.py", "Test.case", 5), ("/app.py", "deep", 9)]
    caller = CallerContext("/app.py", "case", 3)
    assert str(caller) == "/app.py:case:3"
    stack = block_from_raw(raw.block(raw.segment(*frames)), 1, caller=caller).blocking_stack
    assert [frame.name for frame in stack or ()] == ["case", "deep"]
    elsewhere = CallerContext("/other.py", "case")
    stack = block_from_raw(raw.block(raw.segment(*frames)), 1, caller=elsewhere).blocking_stack
    assert len(stack or ()) == 3


def test_the_call_is_underlined_as_in_tracebacks(raw: Any, tmp_path: Path) -> None:
    source = tmp_path / "app.py"
    source.write_text('x = "ä" + str(sleep(1))\n', encoding="utf-8")
    column = len('x = "ä" + str('.encode())
    frame = (str(source), "f.<locals>.g", 1, 1, column, column + len("sleep(1)"))
    text = block_from_raw(raw.block(raw.segment(frame)), 1).format_blocking_stack()
    assert text.replace("~", "^").splitlines() == [  # 3.13 and later set the name apart: ~~~~~^^^
        f'  File "{source}", line 1, in g',
        '    x = "ä" + str(sleep(1))',
        "                  ^^^^^^^^",
    ]


def test_columns_that_no_longer_fit_do_no_harm(raw: Any, tmp_path: Path) -> None:
    source = tmp_path / "app.py"
    source.write_text("ä\n", encoding="utf-8")
    assert (
        "line 1" in block_from_raw(raw.block(raw.segment((str(source), "f", 1, 7, 1, 900))), 1).format_blocking_stack()
    )


def test_a_frame_is_a_frame_summary_with_the_qualified_name() -> None:
    (frame,) = frames_from_raw([("/app.py", "Handler.get", 0, 0, -1, -1)])
    assert isinstance(frame, traceback.FrameSummary)
    assert (frame.name, frame.qualname, frame.lineno, frame.colno) == ("get", "Handler.get", None, None)


def test_the_line_to_fix_is_the_programs_own() -> None:
    library = str(Path(threading.__file__))
    assert is_library(library)
    assert is_library("<frozen importlib._bootstrap>")
    assert is_library("/x/lib/python3.11/site-packages/web/app.py")
    assert not is_library(__file__)
    frames = frames_from_raw([("/app.py", "main", 3, 3, -1, -1), (library, "join", 5, 5, -1, -1)])
    assert user_frame(frames) is frames[0]
    assert user_frame(frames[1:]) is frames[1]
    assert user_frame(()) is None


def line_of(filename: str, name: str, text: str) -> traceback.FrameSummary:
    return traceback.FrameSummary(filename, 1, name, line=text)


STARTS = line_of("/app/main.py", "main", "loop.run_until_complete(serve())")
LIBRARY = line_of("/v/site-packages/lib/mid.py", "call", "time.sleep(1)")
ASYNCIO = os.path.join(os.path.dirname(asyncio.__file__), "")


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ([LIBRARY], LIBRARY),  # a loop written in C has no frame: what it called counts
        ([LIBRARY, line_of("/app/deep.py", "deep", "x()")], "/app/deep.py"),
        ([], STARTS),
        ([line_of(ASYNCIO + "base_events.py", "run_forever", "self._run_once()"), LIBRARY], LIBRARY),
        ([line_of(ASYNCIO + "base_events.py", "_run_once", "handle._run()"), LIBRARY], LIBRARY),
        # another library's method of that name: the program's line calls it
        (
            [
                line_of(ASYNCIO + "base_events.py", "_run_once", "handle._run()"),
                line_of("/app/bot.py", "listen", "socket.run_forever()"),
                line_of("/v/site-packages/websocket/_app.py", "run_forever", "read()"),
            ],
            "/app/bot.py",
        ),
        # a task that run_until_complete() itself made
        ([line_of(ASYNCIO + "tasks.py", "ensure_future", "return loop.create_task(coro)")], STARTS),
    ],
)
def test_the_line_that_starts_a_loop_is_not_to_blame(inside: list[Any], expected: Any) -> None:
    frame = user_frame([STARTS, *inside])
    assert frame is not None and expected in (frame, frame.filename)


def test_a_block_is_immutable_and_hashable(raw: Any) -> None:
    block = block_from_raw(raw.block(raw.segment(ROOT)), 1)
    assert {block: 1}[block] == 1
    assert {block.segments[0]: 1}
    with pytest.raises(AttributeError):
        block.duration = 1  # type: ignore[misc]


def test_a_block_is_made_from_the_fields_of_the_specification() -> None:
    block = EventLoopBlock(1, 0.605, 0.2, 1749051796.302)
    assert block.blocking_stack is None
    assert str(block).startswith(
        "Event Loop Block: block-1\n  Duration: 0.605s (threshold: 0.200s)\n  Timestamp: 1749051796.302\n"
    )
