"""The core's counters of tasks and callbacks, against programs whose numbers are known."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from loopwatch import _core
from loopwatch.leaks.task_ends import ExceptionTap
from loopwatch.loops import open_scope

if not hasattr(_core, "count_tasks"):
    pytest.skip("needs the C core", allow_module_level=True)


class Listener:
    def told(self, context: Any) -> None:
        if "exception" in context and "future" in context:
            _core.count_unretrieved(context["future"])


@contextlib.contextmanager
def counting(*, stats: bool = True) -> Iterator[Any]:
    """Count on the running loop; gives the LoopStats."""
    loop = asyncio.get_running_loop()
    tracking = _core.tasks_open(loop)
    _core.count_tasks(1)
    scope = open_scope(10**9, 10**7)
    counted = scope.watch.stats_open() if stats else None
    listener = Listener()
    tap = ExceptionTap.of(loop)
    tap.sessions.append(listener)
    try:
        yield counted
    finally:
        tap.leave(listener)
        if stats:
            scope.watch.stats_close()
        scope.close()
        _core.count_tasks(-1)
        _core.tasks_close(tracking)


def groups(old_ns: int = 0) -> dict[str, Any]:
    sampler = _core.task_sampler(old_ns)
    while not sampler.step(1000):
        pass
    found: dict[str, Any] = {}
    for group in sampler.result():  # one coroutine may have several, with stacks that differ further out
        name = str(group["coro"]).rpartition(".")[2]
        into = found.setdefault(name, dict(group) | {"numbers": [], "sites": [], "examples": []})
        if into["numbers"]:
            for key, value in group.items():
                if isinstance(value, int):
                    into[key] = max(into[key], value) if key in ("longest_ns", "oldest_ns") else into[key] + value
        into["numbers"].append(group["number"])
        into["sites"] += group["sites"]
        into["examples"] += group["examples"]
    return found


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def steps(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def fails() -> None:
    raise ValueError("truth")


async def nothing() -> None:
    pass


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_every_end_of_a_task_is_counted_once() -> None:
    async def main() -> None:
        with counting():
            for _ in range(4):
                await asyncio.create_task(nothing())
            for _ in range(3):
                with contextlib.suppress(ValueError):
                    await asyncio.create_task(fails())
            left = [asyncio.create_task(forever()) for _ in range(7)]
            await settle()
            for task in left[:2]:
                task.cancel()
            await settle()
            found = groups()
            assert found["nothing"]["born"] == 4 and found["nothing"]["returned"] == 4
            assert found["fails"]["born"] == 3 and found["fails"]["failed"] == 3
            assert found["fails"]["unretrieved"] == found["fails"]["unretrieved_held"] == 0
            assert found["forever"]["born"] == 7 and found["forever"]["pending"] == 5
            assert found["forever"]["cancelled"] == 2 and found["forever"]["retained"] == 2
            assert found["forever"]["held"] == 7
            del left[:2], task
            gc.collect()
            found = groups()
            assert found["forever"]["retained"] == 0 and found["forever"]["cancelled"] == 2
            assert found["forever"]["held"] == 5
            for task in left:
                task.cancel()
            await settle()

    asyncio.run(main())


def test_tasks_destroyed_pending_and_exceptions_never_retrieved(caplog: pytest.LogCaptureFixture) -> None:
    async def orphan() -> None:
        await asyncio.Future()

    async def main() -> None:
        with counting(), caplog.at_level(logging.CRITICAL, "asyncio"):
            asyncio.create_task(orphan())
            lost = asyncio.create_task(fails())
            await settle()
            found = groups()
            assert found["fails"]["unretrieved_held"] == 1 and found["fails"]["unretrieved"] == 0
            del lost
            gc.collect()
            await settle()
            found = groups()
            assert found["orphan"]["destroyed"] == 1 and found["orphan"]["held"] == 0
            assert found["fails"]["unretrieved"] == 1 and found["fails"]["failed"] == 1

    asyncio.run(main())


def test_a_lost_exception_in_a_cycle_is_counted_once() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        with counting():
            lost: Any = asyncio.create_task(fails())
            await settle()
            cycle = [lost]
            cycle.append(cycle)
            del lost, cycle
            gc.collect()
            await settle()
            assert groups()["fails"]["unretrieved"] == 1

    asyncio.run(main())


def test_counting_does_not_retrieve_exceptions() -> None:
    said: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context["message"]))
        with counting():
            lost = asyncio.create_task(fails())
            await settle()
            groups()
            del lost
            gc.collect()
            await settle()

    asyncio.run(main())
    assert said == ["Task exception was never retrieved"]


def test_steps_and_callbacks_are_exact() -> None:
    async def main() -> None:
        with counting() as stats:
            await asyncio.sleep(0)
            before = stats.read()["callbacks"]["count"]
            await asyncio.create_task(steps(100))
            after = stats.read()["callbacks"]["count"]
            found = groups()["steps"]
            assert found["steps"] == 101
            assert found["busy_ns"] >= found["longest_ns"] > 0
            assert after - before == 101 + 1  # the task's steps, and our own wake-up
            hits: list[int] = []
            loop = asyncio.get_running_loop()
            before = stats.read()["callbacks"]["count"]
            handles = [loop.call_soon(hits.append, number) for number in range(10)]
            for handle in handles[::2]:
                handle.cancel()
            await asyncio.sleep(0)
            assert hits == [1, 3, 5, 7, 9]
            assert stats.read()["callbacks"]["count"] - before == 6  # those, and our own step

    asyncio.run(main())


def test_lag_holds_each_busy_span_and_no_wait() -> None:
    async def main() -> None:
        import time

        with counting() as stats:
            await asyncio.sleep(0.05)
            time.sleep(0.06)
            await asyncio.sleep(0.05)
            lag = stats.read()["lag"]
            assert 0.06e9 <= lag["max_ns"] < 0.2e9
            assert lag["sum_ns"] < 0.3e9
            assert sum(count for _, count in lag["buckets"]) == lag["count"] >= 2
            callbacks = stats.read()["callbacks"]
            assert 0.06e9 <= callbacks["max_ns"] < 0.2e9

    asyncio.run(main())


def _context_of_failure(*, counted: bool) -> dict[str, Any]:
    """What asyncio's exception handler is told of a callback that raises."""
    told: list[dict[str, Any]] = []

    def broken(number: int) -> None:
        raise ValueError(number)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: told.append(context))
        with counting() if counted else contextlib.nullcontext():
            assert _core.handle_run_active() is counted
            loop.call_soon(broken, 7)
            await settle()

    asyncio.run(main())
    assert len(told) == 1
    return told[0]


def test_a_callback_that_raises_is_told_of_with_asyncio_s_own_words() -> None:
    bare, counted = _context_of_failure(counted=False), _context_of_failure(counted=True)
    assert counted["message"] == bare["message"]
    assert counted.keys() == bare.keys()
    assert repr(counted["exception"]) == repr(bare["exception"]) == "ValueError(7)"
    assert isinstance(counted["handle"], asyncio.Handle)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_ends_the_program_goes_through(error: type[BaseException]) -> None:
    def broken() -> None:
        raise error(3)

    async def main() -> None:
        with counting():
            asyncio.get_running_loop().call_soon(broken)
            await asyncio.sleep(1)

    with pytest.raises(error):
        asyncio.run(main())
    assert not _core.handle_run_active()


def test_the_context_of_a_callback_is_entered_and_left() -> None:
    import contextvars

    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    seen: list[int] = []

    async def main() -> None:
        with counting():
            variable.set(5)
            asyncio.get_running_loop().call_soon(lambda: (seen.append(variable.get()), variable.set(6)))
            await settle()
            seen.append(variable.get())

    asyncio.run(main())
    assert seen == [5, 5]


def test_a_subclass_of_handle_runs_its_own_way() -> None:
    ran: list[str] = []

    class Mine(asyncio.Handle):
        def _run(self) -> None:
            ran.append("before")
            super()._run()

    async def main() -> None:
        with counting():
            loop: Any = asyncio.get_running_loop()
            loop._ready.append(Mine(ran.append, ("callback",), loop, None))
            await settle()

    asyncio.run(main())
    assert ran == ["before", "callback"]


def test_who_wrapped_run_before_is_left_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    original = asyncio.Handle._run  # type: ignore[attr-defined]
    seen: list[object] = []

    def wrapped(handle: Any) -> None:
        seen.append(handle)
        original(handle)

    async def main() -> None:
        with counting():
            await settle()
            assert asyncio.Handle._run is wrapper  # type: ignore[attr-defined]

    wrapper = wrapped
    monkeypatch.setattr(asyncio.Handle, "_run", wrapper)
    asyncio.run(main())
    assert seen and asyncio.Handle._run is wrapper  # type: ignore[attr-defined]


def test_who_wraps_run_after_us_keeps_what_he_made() -> None:
    original = asyncio.Handle._run  # type: ignore[attr-defined]
    seen: list[object] = []

    async def main() -> None:
        with counting():
            ours = asyncio.Handle._run  # type: ignore[attr-defined]

            def wrapped(handle: Any) -> None:
                seen.append(handle)
                ours(handle)

            asyncio.Handle._run = wrapped  # type: ignore[attr-defined]
            await settle()
        before = len(seen)
        assert asyncio.Handle._run is wrapped  # type: ignore[attr-defined]
        await settle()
        assert len(seen) > before  # it still works, passing through what was ours

    try:
        asyncio.run(main())
        with_ours_below = len(seen)
        assert with_ours_below
    finally:
        asyncio.Handle._run = original  # type: ignore[attr-defined]

    async def again() -> None:
        with counting() as stats:
            await settle()
            assert stats.read()["callbacks"]["count"] > 0

    asyncio.run(again())
    assert asyncio.Handle._run is original  # type: ignore[attr-defined]


def test_all_is_put_back() -> None:
    original = asyncio.Handle._run  # type: ignore[attr-defined]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with counting(), counting():
            await settle()
        assert asyncio.Handle._run is original  # type: ignore[attr-defined]
        assert loop.get_task_factory() is None
        assert "select" not in vars(loop._selector)  # type: ignore[attr-defined]

    asyncio.run(main())
    with pytest.raises(RuntimeError, match="count_tasks"):
        _core.task_sampler()
    with pytest.raises(ValueError, match="no more -1 than 1"):
        _core.count_tasks(-1)


def test_tasks_that_were_there_before_can_be_adopted() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left = [asyncio.create_task(forever()) for _ in range(3)]
        await settle()
        with counting():
            tracking = _core.tasks_open(loop)
            assert _core.tasks_adopt(tracking, left) == 3
            assert _core.tasks_adopt(tracking, left) == 0
            found = groups()["forever"]
            assert found["pending"] == 3 and found["born"] == 0
            assert _core.task_group_frames(found["numbers"][0]) == []
            _core.tasks_close(tracking)
        for task in left:
            task.cancel()
        await settle()

    asyncio.run(main())


def test_places_ages_and_examples() -> None:
    async def main() -> None:
        with counting():
            left = [asyncio.create_task(forever(), name=f"one {number}") for number in range(5)]  # created here
            await settle()
            found = groups(old_ns=10**15)["forever"]
            assert found["old"] == 0
            found = groups()["forever"]
            assert found["old"] == found["pending"] == 5
            stack = _core.task_group_frames(found["numbers"][0])
            assert any(frame[0] == __file__ and "created here" in _line(frame[2]) for frame in stack)
            ((frame, kind, count),) = found["sites"]
            assert frame is not None and frame[1] == "forever" and kind == "_asyncio.Future" and count == 5
            assert {record().get_name() for record in found["examples"]} <= {"one 0", "one 1", "one 2"}
            for task in left:
                task.cancel()
            await settle()

    asyncio.run(main())


def _line(number: int) -> str:
    import linecache

    return linecache.getline(__file__, number)


def test_tasks_of_two_loops_in_two_threads() -> None:
    ready, go = threading.Event(), threading.Event()

    async def other() -> None:
        with counting():
            left = [asyncio.create_task(forever()) for _ in range(4)]
            await settle()
            ready.set()
            await asyncio.to_thread(go.wait)
            for task in left:
                task.cancel()
            await settle()

    async def main() -> None:
        with counting():
            left = [asyncio.create_task(forever()) for _ in range(2)]
            await settle()
            thread = threading.Thread(target=asyncio.run, args=(other(),))
            thread.start()
            await asyncio.to_thread(ready.wait)
            assert sum(group["pending"] for group in _all() if group["coro"] == "forever") == 6
            go.set()
            await asyncio.to_thread(thread.join)
            assert sum(group["pending"] for group in _all() if group["coro"] == "forever") == 2
            for task in left:
                task.cancel()
            await settle()

    asyncio.run(main())


def _all() -> list[Any]:
    sampler = _core.task_sampler()
    while not sampler.step(10**6):
        pass
    return sampler.result()


def test_tasks_may_come_and_go_between_two_slices() -> None:
    async def main() -> None:
        with counting():
            left = [asyncio.create_task(forever()) for _ in range(500)]
            await settle()
            sampler = _core.task_sampler()
            number = 0
            while not sampler.step(0):
                for task in left[:20]:
                    task.cancel()
                del left[:20]
                left += [asyncio.create_task(forever()) for _ in range(3)]
                await settle()
                number += 1
                if number % 5 == 0:
                    gc.collect()
            assert number >= 3
            found = [group for group in sampler.result() if group["coro"] == "forever"]
            assert 0 < sum(group["pending"] for group in found) <= 500
            with pytest.raises(TypeError):
                _core.task_sampler("x")  # type: ignore[arg-type]
            half = _core.task_sampler()
            with pytest.raises(RuntimeError, match="not through"):
                half.result()
            for task in left:
                task.cancel()
            await settle()
        with pytest.raises(RuntimeError, match="no longer counted"):
            half.step(1)

    asyncio.run(main())


def test_counting_leaks_nothing() -> None:
    async def one_round() -> None:
        with counting() as stats:
            tasks = [asyncio.create_task(steps(2)) for _ in range(5)]
            await settle()
            groups()
            stats.read()
            for task in tasks:
                await task

    async def rounds() -> list[int]:
        counts = []
        for number in range(1000):
            await one_round()
            if number % 250 == 249:
                gc.collect()
                counts.append(len(gc.get_objects()))
        return counts

    counts = asyncio.run(rounds())
    assert counts[-1] - counts[-3] < 100, counts  # of 500 rounds
