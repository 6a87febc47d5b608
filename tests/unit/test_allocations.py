"""Sampled allocations against programs that keep a known amount, allocated at known lines, by known tasks."""

import asyncio
import gc
import inspect
import sys
import threading
import tracemalloc

import pytest

from loopwatch import _core
from loopwatch.memory import AllocationTrace, MemoryLeakDetector

MB = 1024 * 1024
kept: list[object] = []


async def keeps() -> None:
    for _ in range(1000):
        kept.append(bytearray(20_000))  # line: keeps
        await asyncio.sleep(0)


async def drops() -> None:
    for _ in range(1000):
        bytearray(20_000)
        await asyncio.sleep(0)


def line_of(function: object, mark: str) -> int:
    lines, first = inspect.getsourcelines(function)  # type: ignore[arg-type]
    return first + next(number for number, line in enumerate(lines) if mark in line)


@pytest.fixture(autouse=True)
def _forget():  # type: ignore[no-untyped-def]
    yield
    kept.clear()


def test_what_survives_is_charged_to_its_line_and_its_tasks_coroutine() -> None:
    async def main() -> None:
        await asyncio.gather(keeps(), drops())

    with AllocationTrace(sample_bytes=50_000) as trace:
        asyncio.run(main())
        found = trace.read()
    top = found.sites[0]
    assert top.place == (__file__, line_of(keeps, "line: keeps"), "keeps")
    assert top.coroutine == "keeps"
    assert 0.7 * 20e6 < top.size < 1.3 * 20e6
    assert found.by_coroutine()["keeps"] > 0.9 * found.total
    assert sum(site.size for site in found.sites if site.coroutine == "drops") < 1e6
    assert "in a task of keeps" in str(found)


def test_small_objects_are_charged_by_their_bytes_too() -> None:
    class Node:
        __slots__ = ("next", "value")

    with AllocationTrace(sample_bytes=10_000) as trace:
        kept.extend(Node() for _ in range(100_000))
        found = trace.read()
    size = sum(site.size for site in found.sites if "genexpr" in site.stack[-1].name)
    expected = 100_000 * (sys.getsizeof(kept[0]))
    assert 0.8 * expected < size < 1.2 * expected


def test_what_is_freed_is_struck_out() -> None:
    with AllocationTrace(sample_bytes=2_000) as trace:
        kept.extend(bytearray(3_000) for _ in range(2_000))
        before = trace.read().total
        kept.clear()
        gc.collect()
        after = trace.read().total
    assert before > 4.5 * MB
    assert after < 0.1 * before


def test_the_allocators_come_back_and_nothing_is_left() -> None:
    blocks = [sys.getallocatedblocks()]
    for _ in range(40):  # bounded caches of lines and names fill while new positions happen to be sampled
        for _ in range(60):
            with AllocationTrace(sample_bytes=500) as trace:
                exec(compile("def f():\n  return [[n] for n in range(500)]\nf()", "<made>", "exec"), {})
                trace.read()
        gc.collect()
        blocks.append(sys.getallocatedblocks())
        if blocks[-1] - blocks[-2] < 30:  # one a trace would be 60, in every round
            break
    else:
        pytest.fail(f"blocks after each round: {blocks}")
    assert _core.alloc_info()["live"] == 0
    assert _core.creation_info()["stacks"] == 0


def test_every_allocation_sampled_while_code_and_objects_come_and_go() -> None:
    with AllocationTrace(sample_bytes=1) as trace:
        for number in range(300):
            names: dict[str, object] = {}
            exec(compile(f"def f(x):\n  return f(x-1) + [x] if x else [{number}]", f"<f{number}>", "exec"), names)
            names["f"](50)  # type: ignore[operator]
        gc.collect()
        found = trace.read()
    assert found.total > 0
    assert _core.alloc_info()["taken"] > 10_000


def test_the_detector_names_the_lines_that_grew() -> None:
    detector = MemoryLeakDetector(trace="sampled", sample_bytes=20_000)
    try:
        detector.take_snapshot("start")
        asyncio.run(keeps())
        detector.take_snapshot("later")
        found = detector.compare_snapshots("start", "later")
    finally:
        detector.close()
    assert detector.take_snapshot("closed").allocations is None
    assert detector.compare_snapshots("start", "closed").tasks == () and detector.snapshots["later"].allocations
    assert found.allocations is not None
    assert found.allocations.sites[0].place == (__file__, line_of(keeps, "line: keeps"), "keeps")
    assert 14e6 < found.allocations.sites[0].size < 26e6
    assert f"{__file__}:{line_of(keeps, 'line: keeps')} in keeps, in a task of keeps" in str(found)


def test_only_one_trace_at_a_time_and_only_sizes_that_mean_something() -> None:
    with AllocationTrace():
        with pytest.raises(RuntimeError, match="being sampled already"):
            AllocationTrace().start()
    with pytest.raises(RuntimeError, match="start\\(\\) it first"):
        AllocationTrace().read()
    with pytest.raises(ValueError, match="at least 1"):
        AllocationTrace(0)
    with pytest.raises(TypeError, match="whole number of bytes"):
        AllocationTrace(1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="None or 'sampled'"):
        MemoryLeakDetector(trace="full")


def test_a_tracemalloc_that_was_on_before_and_ends_first_is_told() -> None:
    tracemalloc.start()
    trace = AllocationTrace(sample_bytes=1000).start()
    try:
        kept.append(bytearray(100_000))
        assert trace.read().total > 0
        tracemalloc.stop()
        with pytest.raises(RuntimeError, match="was cut off"):
            trace.read()
    finally:
        trace.stop()
        tracemalloc.stop()
    with AllocationTrace(sample_bytes=1000) as again:  # and not dead for good
        kept.append(bytearray(200_000))
        assert again.read().total > 150_000


def test_a_tracemalloc_that_comes_later_may_end_earlier_or_later() -> None:
    for ours_first in (True, False):
        trace = AllocationTrace(sample_bytes=1000).start()
        tracemalloc.start()
        kept.append(bytearray(200_000))
        assert trace.read().total > 150_000
        if ours_first:
            trace.stop()
            tracemalloc.stop()
        else:
            tracemalloc.stop()
            assert trace.read().total > 150_000
            trace.stop()
        with AllocationTrace(sample_bytes=1000) as again:
            kept.append(bytearray(200_000))
            assert again.read().total > 150_000


def test_eight_threads_at_once() -> None:
    def works(number: int) -> None:
        for turn in range(150):
            names: dict[str, object] = {}
            exec(compile(f"def f{number}_{turn}(x):\n  return [bytes(x), {{}}]", "<made>", "exec"), names)
            keep = [names[f"f{number}_{turn}"](size) for size in range(0, 2000, 100)]  # type: ignore[operator]
            del keep

    with AllocationTrace(sample_bytes=200) as trace:
        threads = [threading.Thread(target=works, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            trace.read()
        for thread in threads:
            thread.join()
