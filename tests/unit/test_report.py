"""The texts and the JSON of ``loopwatch run``, and the totals behind them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from loopwatch import report as report_module
from loopwatch import summary as summary_module
from loopwatch.blocks import block_from_raw
from loopwatch.errors import EventLoopBlockError
from loopwatch.json_report import document
from loopwatch.outfile import write_atomically
from loopwatch.printable import printable, printable_source
from loopwatch.report import Terminal, block_text, short_path, summary_text, wants_colour
from loopwatch.summary import Patterns, Summary

LIBRARY = "/venv/lib/python3.11/site-packages/db/core.py"


def sleep_block(raw: Any, line: int = 42, ms: float = 512, number: int = 1, **more: Any) -> Any:
    part = raw.segment(("/srv/app.py", "handler", line), ms=ms, cause="syscall", syscall="fsync", task="x", **more)
    return block_from_raw(raw.block(part), number)


def library_block(raw: Any) -> Any:
    return block_from_raw(raw.block(raw.segment(("/srv/app.py", "handler", 42), (LIBRARY, "Core.get", 7))), 1)


def test_the_headline_says_what_where_why_and_who(raw: Any) -> None:
    text = block_text(sleep_block(raw))
    assert text.splitlines() == [
        "BLOCK 0.512s  /srv/app.py:42 in handler  cause: system call fsync  [task 'x']",
        '  File "/srv/app.py", line 42, in handler',
    ]


def test_the_innermost_library_frame_is_shown_below_the_own_ones(raw: Any) -> None:
    lines = block_text(library_block(raw)).splitlines()
    assert "/srv/app.py:42 in handler" in lines[0]
    assert lines[-1].strip() == f'File "{LIBRARY}", line 7, in get'


def test_other_functions_of_a_block_are_named_too(raw: Any) -> None:
    parts = [raw.segment(("/srv/app.py", "loop", line), ms=200, cause="python") for line in (1, 2, 3)] + [
        raw.segment(("/srv/app.py", "pay", 9), ms=100, cause="syscall", syscall="fsync")
    ]
    parts.append(raw.segment(("/srv/app.py", "quick", 11), ms=20))
    lines = block_text(block_from_raw(raw.block(*parts), 1), process=7).splitlines()
    assert lines[0].endswith("[process 7]")
    assert lines[1] == "  also 0.100s  /srv/app.py:9 in pay: system call fsync"
    assert lines[2].startswith("  File ")


def test_a_block_without_a_stack_says_why(raw: Any) -> None:
    assert "No stack: " in block_text(block_from_raw(raw.block(ms=300), 1))


def test_the_table_puts_the_most_time_first(raw: Any) -> None:
    summary = Summary(0.2)
    summary.add_loop("selector-epoll", True)
    summary.add_loop("generic", False)
    for number, (line, ms) in enumerate([(1, 900), (2, 500), (2, 600)], 1):
        assert summary.add(sleep_block(raw, line, ms, number))
    lines = summary_text(summary).splitlines()
    assert lines[0].startswith("loopwatch: 3 blocks of 0.200s or longer in ")
    assert lines[0].endswith("2 loops watched (1 generic, sampled; 1 selector-epoll)")
    assert lines[2:] == [
        "      2     1.100s     0.600s  /srv/app.py:2 in handler: system call fsync",
        "      1     0.900s     0.900s  /srv/app.py:1 in handler: system call fsync",
    ]


def test_an_empty_run_says_so() -> None:
    summary = Summary(0.2)
    assert "no block of 0.200s or longer" in summary_text(summary)
    assert "no event loop ran" in summary_text(summary)
    assert summary.add_unwatched("foo.Loop: refused")
    assert not summary.add_unwatched("foo.Loop: refused")
    assert "NOT WATCHED: foo.Loop: refused" in summary_text(summary)


def test_stalls_are_counted_apart(raw: Any) -> None:
    summary = Summary(0.2)
    stall = block_from_raw(raw.block(raw.segment(("/a.py", "f", 1)), stall=True), 1)
    assert not summary.add(stall)
    assert (summary.count, summary.stall_count) == (0, 1)
    assert "1 stall (" in summary_text(summary)
    summary.add(stall)
    assert "2 stalls (" in summary_text(summary)


@pytest.mark.parametrize(
    ("pattern", "hit"),
    [
        ("/srv/*", True),
        ("app.py", True),
        ("handler", True),
        ("app.handler", True),
        ("srv.app.*", True),
        ("db.core.Core.get", True),
        ("*/site-packages/*", True),
        ("core.handler", False),
        ("other", False),
    ],
)
def test_patterns(raw: Any, pattern: str, hit: bool) -> None:
    block = library_block(raw)
    assert Patterns(include=[pattern]).accept(block) is hit
    assert Patterns(exclude=[pattern]).accept(block) is not hit
    assert not Patterns(include=["*"], exclude=["*"]).accept(block)


def test_only_the_longest_blocks_are_kept_but_all_are_counted(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_module, "KEPT", 2)
    summary = Summary(0.2)
    for ms in (300, 500, 250, 400):
        summary.add(sleep_block(raw, ms=ms))
    assert sorted(block.duration for block in summary.blocks) == [0.4, 0.5]
    report = document(summary, program="app.py", argv=["app.py"], version="0")
    assert report["dropped"]["blocks"] == 2
    assert report["block_count"] == report["groups"][0]["count"] == 4


def test_the_document_holds_everything_and_is_json(raw: Any, tmp_path: Path) -> None:
    summary = Summary(0.2)
    summary.add_loop("uv", True)
    summary.add(sleep_block(raw, holder_id=1, holder_comm="hog", holder_frames=[("/h.py", "hog", 1, 1, 0, 3)]))
    path = tmp_path / "out.json"
    write_atomically(str(path), document(summary, program="app.py", argv=["app.py", "-x"], version="0.1.0"))
    report = json.loads(path.read_text())
    assert os.listdir(tmp_path) == ["out.json"]
    assert report["schema"] == "loopwatch.report/1"
    assert report["loops"] == [{"kind": "uv", "exact": True, "count": 1}]
    (block,) = report["blocks"]
    assert block["culprit"] == {"file": "/srv/app.py", "line": 42, "name": "handler"}
    assert block["segments"][0]["holder"]["stack"][0]["end_column"] == 3
    assert block["segments"][0]["syscall"] == "fsync"
    assert report["groups"][0]["cause"] == block["cause"] == "syscall"


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="out"):
        write_atomically(str(tmp_path / "out"), {})
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_no_plain_file_is_written_to_and_links_are_followed(tmp_path: Path) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link.json", tmp_path / "target.json"
    os.mkfifo(pipe)
    descriptor = os.open(pipe, os.O_RDWR)
    link.symlink_to(target)
    target.write_text("old")
    try:
        write_atomically(str(pipe), {"a": 1})
        assert os.read(descriptor, 100) == b'{"a":1}\n'
    finally:
        os.close(descriptor)
    write_atomically(str(link), {"a": 2})
    assert target.read_text() == '{"a":2}\n'
    assert link.is_symlink()
    assert pipe.is_fifo()
    assert sorted(tmp_path.iterdir()) == [link, pipe, target]


def test_an_open_descriptor_is_written_to_not_replaced(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        write_atomically(f"/dev/fd/{file.fileno()}", {"a": 1})
        assert os.fstat(file.fileno()).st_size == 8


def test_colour_only_on_a_terminal_that_wants_it() -> None:
    master, slave = os.openpty()
    reader, writer = os.pipe()
    try:
        assert wants_colour(slave, {})
        assert not wants_colour(slave, {"NO_COLOR": "1"})
        assert not wants_colour(slave, {"TERM": "dumb"})
        assert not wants_colour(writer, {})
        assert not wants_colour(-1, {})
        assert Terminal(slave, {}).paint("bad", "x") == "\x1b[1;31mx\x1b[0m"
        assert Terminal(writer, {}).paint("bad", "x") == "x"
    finally:
        for descriptor in (master, slave, reader, writer):
            os.close(descriptor)


def test_writing_to_a_closed_stderr_does_no_harm() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    Terminal(writer).write("lost")
    os.close(writer)
    Terminal(writer).write("lost")
    Terminal(-1).write("lost \udc80")


def test_a_descriptor_that_the_program_reused_is_not_written_to(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "stderr", os.O_CREAT | os.O_WRONLY)
    terminal = Terminal(descriptor)
    terminal.write("kept")
    os.close(descriptor)
    own = os.open(tmp_path / "data", os.O_CREAT | os.O_WRONLY)
    os.dup2(own, descriptor)
    terminal.write("lost")
    os.close(descriptor)
    if own != descriptor:
        os.close(own)
    assert (tmp_path / "stderr").read_text() == "kept"
    assert (tmp_path / "data").read_text() == ""


def test_the_frames_of_the_command_itself_are_not_shown(raw: Any) -> None:
    program = str(Path(report_module.__file__).parent / "commands" / "program.py")
    part = raw.segment(
        ("/venv/bin/loopwatch", "<module>", 8), (program, "_execute", 65), ("/srv/app.py", "handler", 42)
    )
    text = block_text(block_from_raw(raw.block(part), 1))
    assert "bin/loopwatch" not in text
    assert "commands/program.py" not in text
    assert '"/srv/app.py", line 42, in handler' in text


def test_launcher_frames_are_in_no_stack(raw: Any) -> None:
    program = str(Path(report_module.__file__).parent / "commands" / "program.py")
    runpy = [("<frozen runpy>", "_run_module_as_main", 198), ("<frozen runpy>", "_run_code", 88)]
    own = ("/srv/app.py", "main", 1)
    part = raw.segment(*runpy, (program, "run_module", 31), *runpy, own, cause="gil", holder_id=1, holder_comm="hog")
    part["holder_frames"] = [(program, "run_script", 65, 65, -1, -1), (*own[:2], 1, 1, -1, -1)]
    block = block_from_raw(raw.block(part), 1)
    for stack in (block.blocking_stack, block.segments[0].stack, block.holder_stack):
        assert stack
        assert [frame.filename for frame in stack] == ["/srv/app.py"]
    alone = block_from_raw(raw.block(raw.segment((program, "run_script", 65))), 1)
    assert alone.blocking_stack, "the innermost frame stays, whose it be"
    plain = block_from_raw(raw.block(raw.segment(*runpy, own)), 1)
    assert plain.blocking_stack
    assert len(plain.blocking_stack) == 3, "python -m itself shows runpy"


EVIL = "a\x1b]0;title\x07\r\nBLOCK 9.999s\x9b31m\u202e\x7f\x85\u2028\ud800"


def test_nothing_printed_can_drive_a_terminal_and_json_is_exact(raw: Any, tmp_path: Path) -> None:
    source = tmp_path / "evil\x1b[2J.py"
    source.write_text("x = 1\nf('\x1b[2J\x9b')\n")
    frame = (str(source), f"f.{EVIL}", 2, 2, 0, 8)
    parts = [
        raw.segment(frame, task=None if index else EVIL, callback=EVIL, callback_index=index, callback_total=2)
        for index in range(2)
    ]
    held = raw.segment(frame, ms=500, cause="gil", holder_id=1, holder_comm=EVIL)
    held["holder_frames"] = [frame]
    blocks = [
        block_from_raw(raw.block(*parts, thread_native_id=0), 1),
        block_from_raw(raw.block(held), 2),
    ]
    summary = Summary(0.2)
    summary.add_unwatched(EVIL)
    for block in blocks:
        assert summary.add(block)
    texts = [summary_text(summary), str(EventLoopBlockError("found", blocks))]
    texts += [EventLoopBlockError("found", blocks).get_block_summary()]
    texts += [text for block in blocks for text in (block_text(block), str(block), block.headline())]
    texts += [block.format_blocking_stack() for block in blocks]
    for text in texts:
        assert all(line.isprintable() for line in text.split("\n")), ascii(text)
        assert "\nBLOCK 9" not in text
    assert "\\x1b]0;title" in texts[0]
    assert "f('?[2J?')" in texts[-1]
    written = json.loads(json.dumps(document(summary, program="app.py", argv=[], version="0")))
    assert written["unwatched"] == [EVIL]
    assert written["blocks"][0]["culprit"] == {"file": str(source), "line": 2, "name": f"f.{EVIL}"}
    assert written["blocks"][0]["segments"][0]["task"] == EVIL


def test_what_is_seen_is_printed_as_it_is() -> None:
    assert printable("größe/日本\u3000x\xa0y 🙂.py") == "größe/日本\u3000x\xa0y 🙂.py"
    assert printable_source("a\tb\n  ^^\n") == "a\tb\n  ^^\n"


def test_paths_are_short_where_that_helps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert short_path(str(tmp_path / "a" / "b.py")) == "a/b.py"
    assert short_path("/usr/x.py") == "/usr/x.py"
    assert short_path("<string>") == "<string>"
    monkeypatch.chdir("/")
    assert short_path("/app/x.py") == "/app/x.py"
