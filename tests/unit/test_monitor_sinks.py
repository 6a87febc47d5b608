"""Where the monitor's alarms go, and that none is lost on the way."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import tempfile
import threading
import time
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import pytest

from loopwatch import _core

if not hasattr(_core, "count_tasks"):
    pytest.skip("needs the C core", allow_module_level=True)

from loopwatch.findings import Cause, EventLoopBlock
from loopwatch.monitor import Alarm, Monitor
from loopwatch.monitor.alarms import AlarmBook
from loopwatch.monitor.lagjudge import LagJudge
from loopwatch.monitor.sinks import Sinks


def test_json_lines_and_the_other_ways(tmp_path: Path, capfd: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "alarms.jsonl"
    seen: list[Alarm] = []

    def broken(alarm: Alarm) -> None:
        seen.append(alarm)
        raise RuntimeError("the pager is down")

    async def main() -> None:
        log = logging.getLogger("test.monitor")
        with Monitor(interval=60, lag=0.1, on_alarm=broken, logger=log, json=path, stderr=True) as monitor:
            time.sleep(0.15)
            await asyncio.sleep(0)
            for _ in range(100):
                if path.exists() and seen:
                    break
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            reading = monitor.read()
            assert reading.overhead.sink_errors == 1 and "the pager is down" in (reading.overhead.last_error or "")
            assert [alarm.kind for alarm in reading.alarms] == ["lag"]

    asyncio.run(main())
    (line,) = path.read_text().splitlines()
    found = json.loads(line)
    assert found["schema"] == "loopwatch.alarm/1" and found["kind"] == "lag" and found["place"]["file"] == __file__
    assert "a loop was blocked for" in capfd.readouterr().err
    assert "a loop was blocked for" in caplog.text


def test_a_file_takes_json_lines_too() -> None:
    alarm = Alarm("memory", "dict", "why", 1.0, 0.5, 0.7, "MB", 0.1, 1.0, 2.0, "memory")
    file = io.StringIO()
    Sinks(None, None, file, False).send(alarm)
    assert json.loads(file.getvalue())["subject"] == "dict"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("{tmp}/none/alarms.jsonl", "there is no folder .*/none: create it"),
        ("{tmp}", "is a folder: name a file in it"),
        ("{tmp}/file/alarms.jsonl", "there is no folder .*/file"),
        ("", "must be the path of a file, got '': name one"),
    ],
)
def test_a_json_path_that_cannot_be_written_is_an_error_at_once(path: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = threading.active_count()
    with pytest.raises(ValueError, match=says):
        Monitor(json=path.format(tmp=tmp_path)).start()
    assert threading.active_count() == before


def test_a_json_path_of_somebody_else_is_an_error_at_once() -> None:
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        file, theirs = Path(folder, "alarms.jsonl"), Path(folder, "theirs")
        file.touch(mode=0o444)
        theirs.mkdir(mode=0o555)
        Path(folder).chmod(0o755)  # where a folder above it cannot be entered, that is what is to be permitted
        try:
            if root:  # who may write anywhere
                os.seteuid(65534)
            for path in (file, theirs / "alarms.jsonl"):
                with pytest.raises(ValueError, match="permit it"):
                    Monitor(json=path).start()
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize("stderr", ["yes", None])
def test_stderr_is_yes_or_no(stderr: Any) -> None:
    with pytest.raises(TypeError, match="stderr must be True or False"):
        Monitor(stderr=stderr)


def test_a_json_file_that_takes_no_text_is_an_error_at_once(tmp_path: Path) -> None:
    path = tmp_path / "alarms.jsonl"
    path.touch()
    with open(path, "ab") as binary, pytest.raises(TypeError, match="open for writing text"):
        Monitor(json=binary)  # type: ignore[arg-type]
    with open(path) as reading, pytest.raises(ValueError, match="open it with 'a'"):
        Monitor(json=reading)


def test_who_and_when_is_said_where_nothing_else_says_it(capfd: Any, caplog: pytest.LogCaptureFixture) -> None:
    frame = FrameSummary("shop.py", 7, "report", lookup_line=False)
    (alarm,) = LagJudge((), AlarmBook(0.0)).judge([
        EventLoopBlock(
            1, 0.25, 0.2, 1000.0, [frame], cause=Cause.SYSCALL, task="order 7", callback="Shop.report",
            thread_name="shop-1", loop="a loop",
        )
    ])  # fmt: skip
    found = alarm.as_dict()
    assert (found["subject"], found["task"], found["thread"]) == ("Shop.report", "order 7", "shop-1")
    assert found["pid"] == os.getpid()
    plain = r"a loop was blocked .*; at shop\.py:7 in report\n  in Shop.report, task 'order 7', thread 'shop-1'\n"
    stamped = rf"loopwatch: \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{{4}} pid {os.getpid()}: {plain}"
    Sinks(None, None, None, True).send(alarm)
    assert re.match(stamped, capfd.readouterr().err)
    Sinks(None, logging.getLogger("test.monitor"), None, False).send(alarm)
    assert re.match(f"loopwatch: {plain}", caplog.messages[0])  # its handlers add time and process
    bare = logging.getLogger("test.monitor.bare")
    bare.propagate = False
    Sinks(None, bare, None, False).send(alarm)  # nothing was set up: logging writes the text to stderr, and only that
    assert re.match(stamped, capfd.readouterr().err)


def test_an_alarm_that_finds_no_way_goes_to_stderr_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def broken(alarm: Alarm) -> None:
        raise RuntimeError("the pager is down")

    alarm = Alarm("memory", "dict", "why", 1.0, 0.5, 0.7, "MB", 0.1, 1.0, 2.0, "memory")
    for sinks, reason in (
        (Sinks(None, None, "/dev/full", False), "to json='/dev/full': OSError: [Errno 28] No space left on device\n"),
        (Sinks(broken, None, None, False), "to on_alarm: RuntimeError: the pager is down\n"),
    ):
        sinks.send(alarm)
        said = capfd.readouterr().err
        assert said.startswith("loopwatch: ") and f" pid {os.getpid()}: an alarm could not be handed {reason}" in said
        assert f"\n{alarm.stamped()}\n" in said
        assert "/sinks.py" not in said and ("in broken" in said) == ("pager" in reason)
        assert sinks.errors == 1
    Sinks(None, None, "/dev/full", True).send(alarm)
    assert capfd.readouterr().err.count(alarm.headline()) == 1  # it is there anyway


def test_a_line_that_was_cut_does_not_spoil_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    alarm = Alarm("memory", "dict", "why", 1.0, 0.5, 0.7, "MB", 0.1, 1.0, 2.0, "memory")
    monkeypatch.chdir(tmp_path)
    sinks = Sinks(None, None, "alarms.jsonl", False)
    write, written = os.write, 0

    def full(target: int, data: bytes) -> int:
        nonlocal written
        written += 1
        if target > 2 and written > 1:
            raise OSError(28, "No space left on device")
        return write(target, data[:50] if target > 2 else data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        sinks.send(alarm)
    os.chdir("/")
    sinks.send(alarm)
    torn, whole = (tmp_path / "alarms.jsonl").read_text().splitlines()
    assert len(torn) == 50 and json.loads(whole) == alarm.as_dict()
    assert "No space left on device" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("rate", "says"),
    [
        (1234.5, "+1,234 tasks a second"),
        (32.94, "+32.9 tasks a second"),
        (0.5, "+30 tasks a minute"),
        (-0.5, "-30 tasks a minute"),
        (15 / 3600, "+15 tasks an hour"),
        (3 / 86400, "+3 tasks a day"),
        (0.0, "unchanged from then on"),
        (1e-9, "unchanged from then on"),
    ],
)
def test_a_rate_is_a_number_that_can_be_read(rate: float, says: str) -> None:
    alarm = Alarm(
        "tasks", "http", "15 tasks of http(), up from 0", 15, 0, 10, "tasks", rate, 1e9, 1e9 + 9, "tasks:http"
    )
    assert str(alarm).splitlines()[1].endswith(f", {says}")
