"""``Monitor`` in this process: what it reads, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import json
import os
import sys
import threading
import time
from typing import Any

import pytest
import uvloop
from targets.monitored import LOOPS, cancel, forever, marked_line, quick

from loopwatch import _core, no_timer_leaks

if not hasattr(_core, "count_tasks"):
    pytest.skip("needs the C core", allow_module_level=True)

from loopwatch.monitor import CoroutineReading, Monitor, Reading
from loopwatch.monitor import blockbook as blockbook_module
from loopwatch.monitor import running as monitor_module


def of(reading: Reading, name: str) -> CoroutineReading:
    found = [entry for entry in reading.coroutines if entry.qualname.rpartition(".")[2] == name]
    assert len(found) == 1, [str(entry) for entry in reading.coroutines]
    return found[0]


def line_of(text: str) -> int:
    return marked_line(__file__, text)


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


def test_blocks_past_the_last_place_are_counted_without_theirs(monkeypatch: pytest.MonkeyPatch, raw: Any) -> None:
    monkeypatch.setattr(blockbook_module, "_PLACES", 2)
    book = blockbook_module.BlockBook(threading.Event())
    for line in (1, 2, 3, 4, 1):
        book.add(raw.block(raw.segment(("/shop.py", "sell", line, line, -1, -1), ms=300)), "a loop")
    counts = {entry.place and entry.place[1]: entry.count for entry in book.read()}
    assert counts == {1: 2, 2: 1, None: 2} and book.dropped == 2
    assert sum(entry.total for entry in book.read()) == pytest.approx(1.5)


@pytest.mark.parametrize("factory", LOOPS)
def test_how_many_callbacks_and_timers_wait(factory: Any) -> None:
    def nothing() -> None:
        pass

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with Monitor(interval=10, on_alarm=lambda alarm: None) as monitor:
            before = monitor.read().loops[0]
            assert before.timers == 0 and before.timers_by_callback == ()
            handles = [loop.call_later(60, nothing) for _ in range(3)]
            for _ in range(5):
                loop.call_soon(nothing)
            reading = monitor.read().loops[0]
            assert reading.timers == 3 and reading.ready == (before.ready or 0) + 5
            (entry,) = reading.timers_by_callback
            assert entry.count == 3 and entry.callback == nothing.__qualname__
            for handle in handles:
                handle.cancel()
            await asyncio.sleep(0)
            assert not monitor.read().loops[0].timers_by_callback

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("factory", LOOPS)
def test_timers_of_whatever_can_be_called_are_counted(factory: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        cache: dict[int, int] = {}
        other = uvloop.new_event_loop()

        class Job:
            pass

        with Monitor(interval=10, on_alarm=lambda alarm: None) as monitor:
            sleeps = [asyncio.create_task(asyncio.sleep(60)) for _ in range(4)]
            await asyncio.sleep(0)
            for callback in (
                loop.stop,
                functools.partial(other.stop),
                cache.clear,
                cache.clear,
                asyncio.Event().set,
                Job,
            ):
                loop.call_later(60, callback)
            found = monitor.read().loops[0]
            assert found.timers == 10
            counts: dict[str, int] = {}
            for entry in found.timers_by_callback:
                name = entry.callback.rpartition(".")[2]
                counts[name] = counts.get(name, 0) + entry.count
            assert counts == {"stop": 2, "clear": 2, "set": 1, "Job": 1}
            assert all(entry.place is None or isinstance(entry.place[1], int) for entry in found.timers_by_callback)
            async with no_timer_leaks(action=lambda leaks: told.extend(leaks)):
                loop.call_later(60, other.stop)
        other.close()
        await cancel(sleeps)

    told: list[Any] = []
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert [leak.name for leak in told] == ["Loop.stop"]


@pytest.mark.parametrize("factory", LOOPS)
def test_the_first_step_of_every_run_is_watched(factory: Any) -> None:
    async def blocks() -> None:
        time.sleep(0.25)

    with Monitor(interval=10, on_alarm=lambda alarm: None) as monitor, asyncio.Runner(loop_factory=factory) as runner:
        for runs in (1, 2):
            runner.run(blocks())
            assert sum(entry.count for entry in monitor.read().blocks) == runs


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
