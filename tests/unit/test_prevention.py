"""The helpers that prevent leaks: what they add to the standard library, and what goes through them unchanged."""

import asyncio
import gc
import logging
import os
import signal
import threading

import pytest

from loopwatch.prevention import GracefulShutdown, TaskManager, managed_generator, timeout_task


async def forever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise KeyError("order 7")


# --- TaskManager ---


def test_a_scope_ends_its_tasks_and_takes_no_more() -> None:
    async def main() -> None:
        async with TaskManager().task_scope() as manager:
            tasks = [manager.create_task(forever(), name=f"worker-{n}") for n in range(3)]
            assert manager.tasks == set(tasks)
            await asyncio.sleep(0)
        assert all(task.cancelled() for task in tasks)
        assert not manager.tasks
        with pytest.raises(RuntimeError, match="its scope is closed"):
            manager.create_task(forever())

    asyncio.run(main())


def test_a_task_that_dies_in_a_scope_is_told_and_ends_the_others() -> None:
    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with TaskManager().task_scope() as manager:
                other = manager.create_task(forever())
                manager.create_task(fail())
                await forever()
        assert [type(error) for error in caught.value.exceptions] == [KeyError]
        assert other.cancelled()

    asyncio.run(main())


def test_a_cancellation_from_outside_goes_through_a_scope() -> None:
    async def main() -> None:
        inner: list[asyncio.Task[None]] = []
        inside = asyncio.Event()

        async def scoped() -> None:
            async with TaskManager().task_scope() as manager:
                inner.append(manager.create_task(forever()))
                inside.set()
                await forever()

        outer = asyncio.create_task(scoped())
        await inside.wait()
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer
        assert outer.cancelled()
        assert inner[0].cancelled()

    asyncio.run(main())


def test_an_exception_of_the_body_is_the_one_that_comes_out() -> None:
    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with TaskManager().task_scope() as manager:
                manager.create_task(forever())
                raise ValueError("body")
        assert [type(error) for error in caught.value.exceptions] == [ValueError]

    asyncio.run(main())


def test_without_a_scope_a_task_that_dies_is_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        manager = TaskManager()
        task = manager.create_task(fail(), name="orders")
        await asyncio.wait([task])
        assert "Task 'orders' of a TaskManager failed" in caplog.text
        assert "order 7" in caplog.text
        assert not manager.tasks

    with caplog.at_level(logging.ERROR, "loopwatch"):
        asyncio.run(main())


def test_on_error_takes_the_place_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    async def main() -> None:
        manager = TaskManager(on_error=lambda task, error: seen.append((task.get_name(), error)))
        await asyncio.wait([manager.create_task(fail(), name="orders")])

    asyncio.run(main())
    assert [(name, type(error)) for name, error in seen] == [("orders", KeyError)]
    assert "failed" not in caplog.text


def test_cancel_all_returns_and_names_what_would_not_stop(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        let_go = asyncio.Event()

        async def stubborn() -> None:
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    pass

        manager = TaskManager(deadline=0.05)
        good, bad = manager.create_task(forever(), name="good"), manager.create_task(stubborn(), name="bad")
        await asyncio.sleep(0)
        try:
            assert await manager.cancel_all() == [bad]
        finally:
            let_go.set()
        assert good.cancelled()
        await bad

    with caplog.at_level(logging.WARNING, "loopwatch"):
        asyncio.run(main())
    assert "Task 'bad' did not end within 0.05 s of its cancellation" in caplog.text
    assert "test_prevention.py" in caplog.text
    assert "Event" in caplog.text


def test_no_task_is_created_while_they_are_being_cancelled_and_one_can_be_afterwards() -> None:
    async def main() -> None:
        manager = TaskManager()
        refused = []

        async def breeds() -> None:
            try:
                await forever()
            finally:
                try:
                    manager.create_task(forever())
                except RuntimeError as error:
                    refused.append(str(error))

        manager.create_task(breeds())
        await asyncio.sleep(0)
        assert await manager.cancel_all() == []
        assert len(refused) == 1 and "cancel_all()" in refused[0]
        later = manager.create_task(asyncio.sleep(0))
        await later

    asyncio.run(main())


def test_two_that_cancel_all_at_once_leave_the_manager_open() -> None:
    async def main() -> None:
        manager = TaskManager()
        let_go = asyncio.Event()

        async def slow_to_end() -> None:
            try:
                await forever()
            finally:
                await let_go.wait()

        manager.create_task(slow_to_end())
        await asyncio.sleep(0)
        first = asyncio.create_task(manager.cancel_all(deadline=0))
        await asyncio.sleep(0)
        second = asyncio.create_task(manager.cancel_all())
        assert len(await first) == 1
        with pytest.raises(RuntimeError, match="cancel_all"):  # the second goes on
            manager.create_task(forever())
        let_go.set()
        await second
        await manager.create_task(asyncio.sleep(0))

    asyncio.run(main())


def test_a_managed_task_may_cancel_all_the_others() -> None:
    async def main() -> None:
        manager = TaskManager()
        other = manager.create_task(forever())
        ender = manager.create_task(manager.cancel_all())
        assert await asyncio.wait_for(ender, 5) == []
        assert other.cancelled()

    asyncio.run(main())


def test_a_refused_coroutine_is_closed(recwarn: pytest.WarningsRecorder) -> None:
    manager = TaskManager()
    with pytest.raises(RuntimeError):
        manager.create_task(forever())  # no loop runs
    gc.collect()
    assert not [warning for warning in recwarn if "never awaited" in str(warning.message)]
    with pytest.raises(TypeError, match="needs a coroutine"):
        manager.create_task(forever)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [-1, "3", None, True, float("nan")])
def test_a_deadline_must_be_seconds(wrong: object) -> None:
    with pytest.raises(ValueError, match="deadline must be a number of seconds"):
        TaskManager(deadline=wrong)  # type: ignore[arg-type]


# --- timeout_task ---


def test_a_call_that_takes_too_long_is_ended_and_named() -> None:
    cleaned = []

    @timeout_task(0.01)
    async def slow() -> None:
        try:
            await forever()
        finally:
            cleaned.append(True)

    with pytest.raises(TimeoutError, match=r"slow did not end within 0\.01 s"):
        asyncio.run(slow())
    assert cleaned == [True]


def test_results_and_a_timeout_of_the_functions_own_go_through() -> None:
    @timeout_task(5)
    async def add(a: int, b: int) -> int:
        if b == 0:
            raise TimeoutError("the database's")
        return a + b

    assert add.__name__ == "add"
    assert asyncio.run(add(1, 2)) == 3
    with pytest.raises(TimeoutError, match="the database's"):
        asyncio.run(add(1, 0))


def test_a_cancellation_from_outside_is_no_timeout() -> None:
    @timeout_task(60)
    async def slow(begun: asyncio.Event) -> None:
        begun.set()
        await forever()

    async def main() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(slow(begun))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


@pytest.mark.parametrize(
    ("wrong", "error"), [(0, ValueError), (-1, ValueError), (float("inf"), ValueError), ("3", TypeError)]
)
def test_a_limit_must_be_seconds(wrong: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="seconds"):
        timeout_task(wrong)  # type: ignore[arg-type]


def test_what_cannot_be_limited_is_refused() -> None:
    with pytest.raises(TypeError, match=r"write @timeout_task\(30\.0\)"):
        timeout_task(forever)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="async functions only"):
        timeout_task(1)(lambda: None)  # type: ignore[arg-type, return-value]


# --- managed_generator ---


@pytest.mark.parametrize("made", [True, False])
def test_a_generator_left_by_break_is_closed_at_the_end_of_its_block(made: bool) -> None:
    closed = []

    async def numbers(count: int):  # type: ignore[no-untyped-def]
        try:
            for number in range(count):
                yield number
        finally:
            await asyncio.sleep(0)
            closed.append(asyncio.current_task())

    async def main() -> None:
        source = managed_generator(numbers(10)) if made else managed_generator(numbers, 10)
        async with source as generator:
            async for number in generator:
                if number == 3:
                    break
        assert closed == [asyncio.current_task()]

    asyncio.run(main())


def test_what_is_no_generator_is_refused(recwarn: pytest.WarningsRecorder) -> None:
    async def numbers():  # type: ignore[no-untyped-def]
        yield 1

    with pytest.raises(TypeError, match="async generator"):
        managed_generator(forever)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="async generator"):
        managed_generator(forever())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="async generator"):
        managed_generator([1, 2])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="has its arguments already"):
        managed_generator(numbers(), 3)
    gc.collect()
    assert not [warning for warning in recwarn if "never awaited" in str(warning.message)]


# --- GracefulShutdown ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_what_is_tracked_and_the_handlers_come_back(number: signal.Signals) -> None:
    async def main() -> None:
        before = signal.getsignal(number)
        with GracefulShutdown(deadline=5) as ending:
            ending.setup_handlers()
            tasks = [ending.track_task(forever()), ending.track_task(asyncio.create_task(forever()))]
            await asyncio.sleep(0)
            os.kill(os.getpid(), number)
            assert await asyncio.wait_for(ending.wait(), 10) == []
            assert all(task.cancelled() for task in tasks)
            assert not ending.tasks
            with pytest.raises(RuntimeError, match="no new task"):
                ending.track_task(forever())
        assert signal.getsignal(number) == before

    asyncio.run(main())


def test_a_worker_that_looks_at_the_event_ends_by_itself_within_the_grace() -> None:
    async def main() -> None:
        ending = GracefulShutdown(grace=10)

        async def worker() -> str:
            await ending.shutdown_event.wait()
            return "flushed"

        task = ending.track_task(worker())
        await asyncio.sleep(0)
        await ending.shutdown()
        assert task.result() == "flushed"

    asyncio.run(main())


def test_what_does_not_stop_within_the_deadline_is_returned_and_named(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        let_go = asyncio.Event()

        async def flush() -> None:
            try:
                await forever()
            finally:
                await let_go.wait()

        ending = GracefulShutdown(deadline=0.02)
        task = ending.track_task(asyncio.create_task(flush(), name="flush"))
        await asyncio.sleep(0)
        try:
            assert await ending.shutdown() == [task]
            assert await ending.shutdown() == [task]
        finally:
            let_go.set()
        await asyncio.wait([task])

    with caplog.at_level(logging.WARNING, "loopwatch"):
        asyncio.run(main())
    assert "Task 'flush' did not end within 0.02 s" in caplog.text


def test_a_tracked_task_that_dies_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        ending = GracefulShutdown()
        await asyncio.wait([ending.track_task(fail())])

    asyncio.run(main())
    assert "order 7" in caplog.text


def test_the_task_that_shuts_down_is_not_cancelled() -> None:
    async def main() -> None:
        ending = GracefulShutdown(deadline=5)
        caller = ending.track_task(asyncio.create_task(ending.shutdown()))
        other = ending.track_task(forever())
        assert await caller == []
        assert other.cancelled()

    asyncio.run(main())


def test_a_second_signal_does_what_it_did_before() -> None:
    seen = []

    async def main() -> None:
        let_go = asyncio.Event()

        async def flush() -> None:
            try:
                await forever()
            finally:
                await let_go.wait()

        ending = GracefulShutdown(deadline=5)
        ending.setup_handlers([signal.SIGTERM])
        ending.track_task(flush())
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        await ending.shutdown_event.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        let_go.set()
        await ending.wait()

    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        asyncio.run(main())
    finally:
        signal.signal(signal.SIGTERM, before)


def test_handlers_outside_of_the_main_thread_are_refused() -> None:
    errors = []

    async def main() -> None:
        try:
            GracefulShutdown().setup_handlers()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join()
    assert len(errors) == 1 and "main thread" in errors[0]
