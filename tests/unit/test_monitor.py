"""``Monitor`` in this process: what it reads, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import logging
import os
import re
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from traceback import FrameSummary
from types import SimpleNamespace
from typing import Any

import pytest

import loopwatch
from loopwatch import _core

if not hasattr(_core, "count_tasks"):
    pytest.skip("needs the C core", allow_module_level=True)

from loopwatch.findings import Cause, EventLoopBlock
from loopwatch.monitor import Alarm, CoroutineReading, Monitor, Reading
from loopwatch.monitor import alarms as alarms_module
from loopwatch.monitor import lagjudge as lagjudge_module
from loopwatch.monitor import running as monitor_module
from loopwatch.monitor.alarms import AlarmBook, LeftOut
from loopwatch.monitor.lagjudge import HangJudge, LagJudge
from loopwatch.monitor.loopbook import LoopBook, WatchedLoop
from loopwatch.monitor.sinks import Sinks


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def quick() -> None:
    await asyncio.sleep(0)


async def cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def of(reading: Reading, name: str) -> CoroutineReading:
    found = [entry for entry in reading.coroutines if entry.qualname.rpartition(".")[2] == name]
    assert len(found) == 1, [str(entry) for entry in reading.coroutines]
    return found[0]


def line_of(text: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if f"# {text}" in line]
    return number


def test_coroutines_by_creation_place_with_examples() -> None:
    async def main() -> None:
        with Monitor(interval=10) as monitor:
            left = [asyncio.create_task(forever(), name=f"left {number}") for number in range(5)]  # here: left
            for _ in range(7):
                await asyncio.create_task(quick())
            await asyncio.sleep(0)
            reading = monitor.read()
            found = of(reading, "forever")
            assert (found.alive, found.born, found.ended, found.retained) == (5, 5, 0, 0)
            assert found.place is not None and found.place[:2] == (__file__, line_of("here: left"))
            assert found.awaits[0].count == 5 and found.awaits[0].place is not None
            assert found.awaits[0].place[2] == "forever"
            assert {example.name for example in found.examples} <= {task.get_name() for task in left}
            assert len(found.examples) == 3 and "waits for" in found.examples[0].wait
            found = of(reading, "quick")
            assert (found.alive, found.born, found.returned, found.steps) == (0, 7, 7, 14)
            await cancel(left)
            found = of(monitor.read(), "forever")
            assert (found.alive, found.cancelled, found.retained) == (0, 5, 5)
            del left

    asyncio.run(main())


def test_loops_of_all_threads_now_and_later() -> None:
    async def other(started: threading.Event, end: threading.Event) -> None:
        started.set()
        await asyncio.to_thread(end.wait)

    def begin() -> tuple[threading.Thread, threading.Event]:
        started, end = threading.Event(), threading.Event()
        thread = threading.Thread(target=asyncio.run, args=(other(started, end),))
        thread.start()
        started.wait()
        return thread, end

    before, end_before = begin()
    with Monitor(interval=10) as monitor:
        after, end_after = begin()
        until = time.monotonic() + 5
        while len(monitor.read().loops) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        reading = monitor.read()
        assert {loop.thread for loop in reading.loops} == {before.name, after.name}
        assert all(loop.kind == "selector-epoll" and loop.exact and loop.running for loop in reading.loops)
        end_after.set()
        after.join()
        reading = monitor.read()
        assert {loop.thread for loop in reading.loops} == {before.name}
        assert reading.ended_loops == 1 and reading.ended_lag.count > 0
    end_before.set()
    before.join()
    assert not [thread for thread in threading.enumerate() if thread.name == "loopwatch-monitor"]


def test_what_a_loop_did() -> None:
    async def main() -> None:
        with Monitor(interval=10, on_alarm=lambda alarm: None) as monitor:
            await asyncio.sleep(0.1)
            time.sleep(0.25)  # here: blocked
            await asyncio.sleep(0.01)
            handle = asyncio.get_running_loop().call_later(60, print)
            reading = monitor.read()
            (loop,) = reading.loops
            assert 0.25 <= loop.lag.max < 1 and loop.lag.quantile(1) == loop.lag.max
            assert loop.iterations == loop.lag.count >= 2
            assert loop.callbacks.count >= 2 and loop.timers == 1
            assert 0.3 < loop.utilization_overall < 1
            (block,) = reading.blocks
            assert block.place == (__file__, line_of("here: blocked"), main.__qualname__)
            assert block.cause == "syscall" and block.count == 1 and 0.25 <= block.longest < 1
            handle.cancel()

    asyncio.run(main())


def test_one_loop_run_several_times_keeps_its_numbers() -> None:
    loop = asyncio.new_event_loop()
    with Monitor(interval=10) as monitor:
        left = []

        async def make() -> None:
            left.append(asyncio.create_task(forever()))
            await quick()

        for _ in range(3):
            loop.run_until_complete(make())
        reading = monitor.read()
        assert of(reading, "forever").alive == 3 and of(reading, "forever").place is not None
        assert len(reading.loops) == 1 and not reading.loops[0].running and reading.loops[0].lag.count >= 3
        loop.run_until_complete(cancel(left))
        loop.close()
        assert monitor.read().loops == ()


def state() -> tuple[Any, ...]:
    from asyncio import events

    return (
        asyncio.Handle._run,  # type: ignore[attr-defined]
        asyncio._set_running_loop,
        events._set_running_loop,
        list(gc.callbacks),
        list(sys.meta_path),
        [thread.name for thread in threading.enumerate()],
    )


def test_start_and_stop_are_idempotent_and_leave_nothing() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        before = state(), dict(vars(loop)), dict(vars(loop._selector))
        monitor = Monitor(interval=0.02)
        for _ in range(3):
            assert monitor.start() is monitor and monitor.start() is monitor and monitor.running
            await asyncio.sleep(0.05)
            assert monitor.read().overhead.samples >= 1
            monitor.stop()
            monitor.stop()
            assert not monitor.running
        after = state(), dict(vars(loop)), dict(vars(loop._selector))
        assert after[0] == before[0]
        assert after[2] == before[2]
        assert after[1].keys() == before[1].keys()
        assert loop.get_task_factory() is None
        with pytest.raises(RuntimeError, match="start"):
            monitor.read()

    asyncio.run(main())


def test_two_monitors_share_the_counters() -> None:
    async def main() -> None:
        with Monitor(interval=10) as first:
            left = [asyncio.create_task(forever()) for _ in range(3)]
            with Monitor(interval=10) as second:
                left += [asyncio.create_task(forever()) for _ in range(2)]
                await asyncio.sleep(0)
                alive = [sum(e.alive for e in m.read().coroutines if e.qualname == "forever") for m in (first, second)]
                assert alive == [5, 5]
            assert sum(entry.alive for entry in first.read().coroutines if entry.qualname == "forever") == 5
            await cancel(left)

    asyncio.run(main())


def test_growth_between_two_snapshots() -> None:
    async def main() -> None:
        class Thing:
            pass

        with Monitor(interval=10) as monitor:
            earlier = monitor.snapshot()
            left = [asyncio.create_task(forever()) for _ in range(12)]  # here: grown
            held = [Thing() for _ in range(500)]
            done = [asyncio.create_task(quick()) for _ in range(4)]
            await asyncio.gather(*done)
            later = monitor.snapshot()
            report = monitor.compare(earlier, later)
            grown = report.tasks[0]
            assert grown.place is not None
            assert (grown.name, grown.place[1], grown.grown) == ("forever", line_of("here: grown"), 12)
            assert [(entry.name, entry.grown) for entry in report.retained] == [("quick", 4)]
            assert report.awaits[0].place is not None and report.awaits[0].place[2] == "forever"
            assert any(entry.name.endswith("Thing") and entry.grown == 500 for entry in report.objects)
            text = str(report)
            assert f"{__file__}:{line_of('here: grown')}" in text and "+12" in text and "RSS, MB" in text
            assert json.loads(json.dumps(report.as_dict()))["tasks"][0]["grown"] == 12
            head = report.text(limit=0)
            assert "RSS, MB" in head and f"were created (0 of {len(report.tasks)} that grew):" in head
            with pytest.raises(ValueError, match="at least 0, got -1"):
                report.text(limit=-1)
            with pytest.raises(ValueError, match="exchange"):
                monitor.compare(later, earlier)
            with pytest.raises(TypeError, match=r"needs two readings, got 2 of type int: take them with snapshot\(\)"):
                monitor.compare(earlier, 2)  # type: ignore[arg-type]
            await cancel(left)
            del held

    asyncio.run(main())


def leak_until_alarm(monitor: Monitor, alarms: list[Alarm], leak: Any, seconds: float = 8) -> None:
    async def main() -> None:
        with monitor:
            until = time.monotonic() + 0.6
            while time.monotonic() < until:  # what is normal
                await asyncio.create_task(quick())
                await asyncio.sleep(0.005)
            until = time.monotonic() + seconds
            while not alarms and time.monotonic() < until:
                leak()
                await asyncio.sleep(0.005)

    asyncio.run(main())


def quick_monitor(alarms: list[Alarm], **options: Any) -> Monitor:
    return Monitor(**{"interval": 0.05, "window": 8, "on_alarm": alarms.append, "lag": 5.0} | options)


def test_leaked_tasks_are_an_alarm_with_their_line() -> None:
    alarms: list[Alarm] = []
    left = []
    leak_until_alarm(quick_monitor(alarms), alarms, lambda: left.append(asyncio.create_task(forever())))  # here: task
    (alarm,) = alarms
    assert alarm.kind == "tasks" and alarm.subject == "forever" and alarm.value >= 10 and alarm.rate > 0
    assert alarm.place is not None and alarm.place[:2] == (__file__, line_of("here: task"))
    assert len(alarm.examples) == 3 and all("waits for" in example.wait for example in alarm.examples)
    text = str(alarm)
    assert "tasks of forever(), up from " in text and f"{__file__}:{line_of('here: task')}" in text
    assert "in forever for _asyncio.Future" in text


def test_done_tasks_that_are_held_are_told_apart() -> None:
    alarms: list[Alarm] = []
    left = []
    leak_until_alarm(quick_monitor(alarms), alarms, lambda: left.append(asyncio.create_task(quick())))  # here: done
    (alarm,) = alarms
    assert alarm.kind == "retained" and "done tasks that something still holds" in alarm.reason
    assert alarm.place is not None and alarm.place[:2] == (__file__, line_of("here: done"))


def test_timers_that_schedule_themselves_again() -> None:
    class Poller:
        def poll(self) -> None:
            asyncio.get_running_loop().call_later(0.3, self.poll)  # here: timer

    alarms: list[Alarm] = []
    leak_until_alarm(quick_monitor(alarms), alarms, lambda: Poller().poll())
    (alarm,) = alarms
    assert alarm.kind == "timers" and alarm.subject.endswith("Poller.poll") and alarm.value >= 10
    assert alarm.place is not None and alarm.place[:2] == (__file__, line_of("here: timer"))


def test_a_bound_on_tasks_fires_once_and_says_so() -> None:
    alarms: list[Alarm] = []

    async def main() -> None:
        left = [asyncio.create_task(forever()) for _ in range(30)]
        with quick_monitor(alarms, max_tasks=20):
            await asyncio.sleep(2)
        await cancel(left)

    asyncio.run(main())
    (alarm,) = alarms
    assert "30 tasks of forever(), more than 20 (max_tasks)" in alarm.reason
    assert alarm.place is None and "before the monitor began" in alarm.detail[0]


def test_what_is_ignored_is_no_alarm() -> None:
    alarms: list[Alarm] = []
    ignores = [loopwatch.Ignore(qualname="forever", reason="heartbeat")]

    async def main() -> None:
        left = [asyncio.create_task(forever()) for _ in range(30)]
        with quick_monitor(alarms, max_tasks=20, ignore=ignores):
            await asyncio.sleep(1.6)
        await cancel(left)

    asyncio.run(main())
    assert alarms == []


def test_a_burst_of_load_is_no_alarm() -> None:
    alarms: list[Alarm] = []

    async def request() -> None:
        await asyncio.sleep(0.05)

    async def main() -> None:
        with quick_monitor(alarms, max_tasks=20):
            for load in (1, 1, 1, 1, 1, 1, 40, 40, 40, 40, 40, 40, 1, 1, 1, 1):
                for _ in range(2):
                    await asyncio.gather(*(asyncio.create_task(request()) for _ in range(load)))

    asyncio.run(main())
    assert alarms == []


def test_a_block_is_an_alarm_at_once_and_once() -> None:
    alarms: list[Alarm] = []

    async def main() -> None:
        with Monitor(interval=60, lag=0.1, on_alarm=alarms.append):
            for _ in range(3):
                time.sleep(0.15)  # here: slow
                await asyncio.sleep(0.05)

    asyncio.run(main())
    (alarm,) = alarms
    assert alarm.kind == "lag" and alarm.place is not None and alarm.place[1] == line_of("here: slow")
    assert 0.15 <= alarm.value < 1


def test_a_hang_is_told_while_it_lasts() -> None:
    alarms: list[Alarm] = []
    told = threading.Event()

    def take(alarm: Alarm) -> None:
        alarms.append(alarm)
        told.set()

    async def main() -> None:
        with Monitor(interval=600, lag=60, hang=0.2, on_alarm=take) as monitor:
            asyncio.current_task().set_name("the one")  # type: ignore[union-attr]
            assert told.wait(10)  # here: hang
            assert monitor.read().overhead.samples == 0  # it took none for that

    asyncio.run(main())
    assert alarms[0].kind == "hang" and alarms[0].place is not None
    assert alarms[0].place[1] == line_of("here: hang")
    assert (alarms[0].subject, alarms[0].task) == (main.__qualname__, "the one")
    assert (alarms[0].pid, alarms[0].thread) == (os.getpid(), threading.current_thread().name)
    assert f"  in {main.__qualname__}, task {alarms[0].task!r}, thread 'MainThread'\n" in str(alarms[0])


def blocked(seconds: float, line: int = 7) -> EventLoopBlock:
    frame = FrameSummary("shop.py", line, "report", lookup_line=False)
    return EventLoopBlock(1, seconds, 0.2, 1000.0, [frame], cause=Cause.SYSCALL, loop="a loop")


def told_of(book: AlarmBook, judge: LagJudge, *blocks: EventLoopBlock) -> list[Alarm]:
    return [given for alarm in judge.judge(blocks) if (given := book.give(alarm)) is not None]


def test_blocks_left_out_are_told_of_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5000.0
    monkeypatch.setattr(alarms_module, "time", SimpleNamespace(
        monotonic=lambda: now, time=lambda: 1e9 + now, strftime=time.strftime, localtime=time.gmtime
    ))  # fmt: skip
    book = AlarmBook(3600.0)
    judge = LagJudge((), book)
    (first,) = told_of(book, judge, blocked(0.25), blocked(0.5))  # the second came with it
    assert first.value == 0.25 and first.left_out is None and first.as_dict()["left_out"] is None
    now += 3000
    assert told_of(book, judge, blocked(0.75), blocked(0.25)) == []
    now += 600
    (second,) = told_of(book, judge, blocked(0.3))
    assert second.left_out == LeftOut(3, 1e9 + 5000, 1.5, 0.75)
    assert "  3 more since 2001-09-09 03:10:00 were not told: 1.50 s in all, the longest 0.75 s" in str(second)
    assert json.loads(second.as_json())["left_out"]["longest"] == 0.75
    now += 3600
    (third,) = told_of(book, judge, blocked(0.3))
    assert third.left_out is None  # there were none meanwhile


def test_a_block_four_times_as_long_is_told_at_once() -> None:
    book = AlarmBook(3600.0)
    judge = LagJudge((), book)
    assert [alarm.value for alarm in told_of(book, judge, *map(blocked, (0.25, 0.9, 1.0, 3.9, 9.0, 9.0)))] == [
        0.25,
        1.0,
        9.0,
    ]
    assert [alarm.left_out and alarm.left_out.count for alarm in book.read()] == [None, 1, 1]
    assert told_of(book, judge, blocked(0.25, line=8))  # another place


def test_blocks_that_are_ignored_are_not_counted_as_left_out() -> None:
    book = AlarmBook(3600.0)
    judge, ignoring = LagJudge((), book), LagJudge((loopwatch.Ignore(stack="report", reason="known"),), book)
    assert told_of(book, judge, blocked(1.0)) and told_of(book, ignoring, blocked(0.5), blocked(9.0)) == []
    book.repeat = 0.0
    (alarm,) = told_of(book, judge, blocked(1.0))
    assert alarm.left_out is None


def test_hangs_left_out_are_counted() -> None:
    book = AlarmBook(3600.0)
    loop = SimpleNamespace(busy_since=1, native_id=0, thread_id=0, name="a loop", loop=None)
    judge = HangJudge(0.5, book)

    def look() -> list[Alarm]:
        loop.busy_since += 1  # another hang
        return [given for alarm in judge.look([loop]) if (given := book.give(alarm)) is not None]  # type: ignore[list-item]

    (first,) = look()
    assert first.left_out is None and look() == [] and look() == []
    book.repeat = 0.0
    (last,) = look()
    assert last.left_out is not None and (last.left_out.count, last.left_out.longest) == (2, None)
    assert "  2 more since " in str(last) and " were not told\n" in f"{last}\n"


def test_a_loop_that_is_looked_at_while_it_is_being_opened_stays() -> None:
    trio = pytest.importorskip("trio")
    seen: list[list[WatchedLoop]] = []
    book = LoopBook(10**9, 10**8, lambda raw, name: None, lambda: seen.append(book.loops))

    async def main() -> None:
        book.start()
        try:
            assert [watched.kind for watched in book.loops] == ["trio"]
        finally:
            book.stop()

    trio.run(main)
    assert len(seen) == 1  # as the monitor's thread does, which begins with the first loop


def test_hangs_are_looked_for_when_one_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop(WatchedLoop):
        busy_since = 0  # type: ignore[assignment]

    now = 1000.0
    monkeypatch.setattr(lagjudge_module, "time", SimpleNamespace(monotonic=lambda: now, time=time.time))
    judge = HangJudge(7.0, AlarmBook(0.0))
    loop, other = Loop(object()), Loop(object())
    assert judge.look([loop, other]) == [] and judge.due == now + 7  # nothing can hang before
    now, loop.busy_since, other.busy_since = 1005.0, 1000_500_000_000, 1004_000_000_000
    assert judge.look([loop, other]) == [] and judge.due == 1007.5
    now = 1007.5
    (alarm,) = judge.look([loop, other])
    assert (alarm.kind, alarm.value, alarm.limit) == ("hang", 7.0, 7.0) and judge.due == 1011.0
    now = 1011.0
    (alarm,) = judge.look([loop, other])  # the first still hangs: that has been told
    assert alarm.value == 7.0 and judge.due == 1018.0
    now, loop.busy_since = 1018.0, 1011_000_000_000
    alarm, lasting = judge.look([loop, other])  # it hangs anew; the other is told again, as there is no `repeat`
    assert lasting.value == 14.0
    assert alarm.value == 7.0
    assert HangJudge(0.0, AlarmBook(0.0)).due == float("inf")


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
        ("{tmp}/none/alarms.jsonl", "there is no folder '.*/none'; create it"),
        ("{tmp}", "the path of a file, got the folder '.*': name a file in it"),
        ("{tmp}/file/alarms.jsonl", "there is no folder '.*/file'"),
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
    (alarm,) = LagJudge((), AlarmBook(0.0)).judge([
        replace(blocked(0.25), task="order 7", callback="Shop.report", thread_name="shop-1")
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
        assert "sinks.py" not in said and ("in broken" in said) == ("pager" in reason)
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


def test_growing_memory_is_named_by_type_and_line() -> None:
    alarms: list[Alarm] = []
    cache: list[Any] = []

    async def main() -> None:
        async def handler() -> None:
            cache.append([bytearray(2000) for _ in range(500)])  # here: memory

        with quick_monitor(alarms, memory="sampled") as monitor:
            if monitor.read().notes:
                pytest.skip(monitor.read().notes[0])
            await asyncio.sleep(0.8)
            until = time.monotonic() + 10
            while not alarms and time.monotonic() < until:
                await asyncio.create_task(handler())
                await asyncio.sleep(0.01)

    asyncio.run(main())
    (alarm,) = alarms
    assert alarm.kind == "memory" and alarm.unit == "MB" and alarm.value > alarm.before
    assert alarm.place is not None and alarm.place[:2] == (__file__, line_of("here: memory"))
    assert "handler" in str(alarm)


def test_exceptions_nobody_asks_for_are_counted_and_still_told_of() -> None:
    told: list[str] = []

    async def fails() -> None:
        raise ValueError

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["message"]))
        with Monitor(interval=0.02) as monitor:
            lost = asyncio.create_task(fails())
            await asyncio.sleep(0.1)
            del lost
            gc.collect()
            await asyncio.sleep(0.05)
            assert of(monitor.read(), "fails").never_retrieved == 1

    asyncio.run(main())
    assert told == ["Task exception was never retrieved"]


def test_a_forked_child_has_no_monitor_and_may_have_its_own() -> None:
    async def in_child(monitor: Monitor) -> None:
        assert not monitor.running and asyncio.get_running_loop().get_task_factory() is None
        assert "select" not in vars(asyncio.get_running_loop()._selector)  # type: ignore[attr-defined]
        monitor.start()
        await asyncio.create_task(quick())
        assert of(monitor.read(), "quick").born == 1
        monitor.stop()

    async def main() -> None:
        with Monitor(interval=0.05) as monitor:
            await asyncio.sleep(0.1)
            child = os.fork()
            if child == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    asyncio.run(in_child(monitor))
                    code = 0
                os._exit(code)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert monitor.running and monitor.read().loops

    asyncio.run(main())


def test_what_a_sample_cannot_do_does_not_end_the_monitor(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    async def main() -> None:
        with Monitor(interval=0.02) as monitor:
            monkeypatch.setattr(monitor_module, "read_process", lambda uss: 1 / 0)
            await asyncio.sleep(0.2)
            monkeypatch.undo()
            await asyncio.sleep(0.1)
            overhead = monitor.read().overhead
            assert overhead.errors >= 1 and "ZeroDivisionError" in (overhead.last_error or "")

    asyncio.run(main())
    assert caplog.text.count("a sample of the monitor failed") == 1


def test_monitors_leak_nothing() -> None:
    async def rounds() -> list[tuple[int, int, int]]:
        counts = []
        for number in range(40):
            with Monitor(interval=0.01) as monitor:
                await asyncio.create_task(quick())
                monitor.read()
            if number % 10 == 9:
                gc.collect()
                threads = threading.active_count()
                counts.append((len(gc.get_objects()), len(os.listdir("/proc/self/fd")), threads))
        return counts

    asyncio.run(rounds())
    counts = asyncio.run(rounds())
    assert counts[-1][1:] == counts[0][1:]
    assert counts[-1][0] - counts[0][0] < 60, counts  # of 30 rounds
