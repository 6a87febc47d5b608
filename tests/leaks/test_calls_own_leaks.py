"""EventLoopMonitor leaves nothing behind and survives what programs do to it."""

import asyncio
import gc
import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from loopwatch import BlockingCallInfo, EventLoopMonitor, event_loop_monitor_ctx

MONITORING = getattr(sys, "monitoring", None)


@pytest.fixture(params=["sample", "exact"])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.param


def quiet(info: BlockingCallInfo) -> None:
    pass


def state() -> tuple[Any, ...]:
    tools = () if MONITORING is None else tuple(MONITORING.get_tool(number) for number in range(6))
    return sys.getprofile(), asyncio._set_running_loop, asyncio.events._set_running_loop, tools, list(sys.meta_path)


def test_everything_is_put_back(engine: Any) -> None:
    before = state()
    monitor = EventLoopMonitor(engine=engine, on_blocking_call=quiet)
    monitor.activate()
    monitor.deactivate()
    assert state() == before

    async def main() -> None:
        with event_loop_monitor_ctx(engine=engine, on_blocking_call=quiet):
            await asyncio.sleep(0)
        assert state() == before

    asyncio.run(main())
    assert state() == before


def test_nothing_grows(engine: Any) -> None:
    async def main(times: int) -> None:
        for _ in range(times):
            with event_loop_monitor_ctx(1, engine=engine, on_blocking_call=quiet):
                time.sleep(0.002)
                await asyncio.sleep(0)

    blocks = []
    for _ in range(7):
        asyncio.run(main(60))
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    grown = [after - before for before, after in itertools.pairwise(blocks)]
    assert min(grown) < 60, blocks  # caches fill in some rounds; a leak would be a block a scope in each


def test_deactivate_inside_the_callback(engine: Any) -> None:
    found: list[str] = []

    def once(info: BlockingCallInfo) -> None:
        found.append(info.method_name)
        monitor.deactivate()

    monitor = EventLoopMonitor(50, on_blocking_call=once, engine=engine)

    async def main() -> None:
        monitor.activate()
        for _ in range(2):
            time.sleep(0.07)
            await asyncio.sleep(0)

    before = state()
    asyncio.run(main())
    assert found[0] == "time.sleep"
    assert not monitor.is_active
    assert state() == before


def test_activate_inside_the_callback(engine: Any) -> None:
    found: list[str] = []
    second = EventLoopMonitor(50, on_blocking_call=lambda info: found.append(info.method_name), engine=engine)

    async def main() -> None:
        with event_loop_monitor_ctx(on_blocking_call=lambda info: second.activate(), engine=engine):
            for _ in range(3):
                time.sleep(0.07)
                await asyncio.sleep(0)
            second.deactivate()

    asyncio.run(main())
    assert "time.sleep" in found


def deep(left: int) -> int:
    return 1 + deep(left - 1) if left else 0


def endless() -> None:
    endless()


def raising(left: int) -> None:
    if left == 0:
        raise KeyError
    raising(left - 1)


def generating(left: int) -> Iterator[int]:
    if left:
        yield from generating(left - 1)
    yield left


def test_recursion_and_exceptions_tell_nothing_false() -> None:
    found: list[BlockingCallInfo] = []

    async def main() -> None:
        with event_loop_monitor_ctx(200, on_blocking_call=found.append, engine="exact"):
            until = time.thread_time() + 0.25
            while time.thread_time() < until:
                deep(200)
                with pytest.raises(KeyError):
                    raising(50)
                assert len(list(generating(20))) == 21
                with pytest.raises(ValueError):
                    int("x")
                generating(3).close()
                await asyncio.sleep(0)
            with pytest.raises(RecursionError):
                endless()

    asyncio.run(main())
    assert [str(info) for info in found if info.duration_ms > 5000 or info.method_name.endswith("sleep")] == []
    assert not [info for info in found if info.method_name.endswith(("raising", "generating"))]


def test_code_freed_while_it_is_measured() -> None:
    async def main() -> None:
        with event_loop_monitor_ctx(1, on_blocking_call=quiet, engine="exact"):
            for number in range(300):
                space: dict[str, Any] = {}
                exec(f"def f():\n    g = globals(); g.clear(); return {number}\ndef h(c): return c()", space)
                function = space.pop("f")
                function()
                del function, space
                await asyncio.sleep(0)

    asyncio.run(main())


def test_begun_in_the_middle_of_a_stack() -> None:
    """Nothing that began before is told, however long it still runs."""
    found: list[BlockingCallInfo] = []
    monitor = EventLoopMonitor(50, on_blocking_call=found.append, engine="exact")

    def outer() -> None:
        time.sleep(0.06)
        inner()
        time.sleep(0.06)

    def inner() -> None:
        monitor.activate()

    async def main() -> None:
        outer()
        await asyncio.sleep(0)
        monitor.deactivate()

    asyncio.run(main())
    assert [info.method_name for info in found if not info.own_code] == ["time.sleep"]


def test_threads_that_end_and_loops_that_begin_meanwhile(engine: Any) -> None:
    async def program() -> None:
        for _ in range(20):
            deep(10)
            await asyncio.sleep(0)

    monitor = EventLoopMonitor(on_blocking_call=quiet, engine=engine)
    stop = threading.Event()

    def toggle() -> None:
        while not stop.is_set():
            monitor.activate()
            time.sleep(0.001)
            monitor.deactivate()

    toggler = threading.Thread(target=toggle)
    toggler.start()
    try:
        for _ in range(10):
            threads = [threading.Thread(target=lambda: asyncio.run(program())) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        stop.set()
        toggler.join()
        monitor.deactivate()
    assert not monitor.is_active


def test_a_fork(engine: Any) -> None:
    with event_loop_monitor_ctx(on_blocking_call=quiet, engine=engine):

        async def main() -> int:
            child = os.fork()
            if child == 0:
                deep(50)
                os._exit(7)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        assert asyncio.run(main()) == 7


@pytest.mark.skipif(MONITORING is not None, reason="one profile function a thread: 3.11 only")
def test_another_profiler_is_refused() -> None:
    def profiler(*args: object) -> None:
        pass

    async def main() -> None:
        before = state()
        monitor = EventLoopMonitor(engine="exact")
        with pytest.raises(RuntimeError, match=r"another profiler has it.*sys\.setprofile"):
            monitor.activate()
        assert not monitor.is_active
        assert state() == before

    sys.setprofile(profiler)
    try:
        asyncio.run(main())
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)


@pytest.mark.skipif(MONITORING is None, reason="sys.monitoring came with 3.12")
def test_no_place_left_is_refused() -> None:
    taken = [number for number in range(6) if MONITORING.get_tool(number) is None]  # type: ignore[attr-defined]
    for number in taken:
        MONITORING.use_tool_id(number, f"other {number}")  # type: ignore[attr-defined]
    try:
        before = state()
        with pytest.raises(RuntimeError, match=r"six places of sys\.monitoring.*other"):
            EventLoopMonitor(engine="exact").activate()
        assert state() == before
    finally:
        for number in taken:
            MONITORING.free_tool_id(number)  # type: ignore[attr-defined]
