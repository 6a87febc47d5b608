"""What the monitor raises an alarm for, and what it says then."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from traceback import FrameSummary
from types import SimpleNamespace
from typing import Any

import pytest
from targets.monitored import LOOPS, cancel, forever, marked_line, quick

import loopwatch
from loopwatch import _core

if not hasattr(_core, "count_tasks"):
    pytest.skip("needs the C core", allow_module_level=True)

from loopwatch import Ignore
from loopwatch.findings import Cause, EventLoopBlock
from loopwatch.leaks.suppress import ignores_from
from loopwatch.monitor import Alarm, Monitor
from loopwatch.monitor import alarms as alarms_module
from loopwatch.monitor import lagjudge as lagjudge_module
from loopwatch.monitor.alarms import AlarmBook, LeftOut
from loopwatch.monitor.lagjudge import HangJudge, LagJudge
from loopwatch.monitor.loopbook import LoopBook, WatchedLoop


def line_of(text: str) -> int:
    return marked_line(__file__, text)


def leak_until_alarm(
    monitor: Monitor, alarms: list[Alarm], leak: Any, seconds: float = 8, factory: Any = asyncio.new_event_loop
) -> None:
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

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


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


@pytest.mark.parametrize("factory", LOOPS)
def test_timers_that_schedule_themselves_again(factory: Any) -> None:
    class Poller:
        def poll(self) -> None:
            asyncio.get_running_loop().call_later(0.3, self.poll)  # here: timer

    alarms: list[Alarm] = []
    leak_until_alarm(quick_monitor(alarms), alarms, lambda: Poller().poll(), factory=factory)
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


@pytest.mark.parametrize("ignored", ["busy", "the task", Ignore(qualname="busy"), Ignore(kind="block")])
def test_a_block_is_ignored_by_what_ran(ignored: Any) -> None:
    def alarms_with(ignore: Any) -> list[Alarm]:
        judge = LagJudge(ignores_from(ignore), AlarmBook(0.0))
        return judge.judge(
            [EventLoopBlock(1, 0.25, 0.2, 1000.0, None, cause=Cause.GIL, callback="busy", task="the task")]
        )

    assert alarms_with(()) and not alarms_with(ignored)


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
