"""Snapshots, growth and the detector, against programs that keep a known number of known things."""

import asyncio
import gc
import sys
import tracemalloc
from typing import Any

import pytest

from loopwatch import _core
from loopwatch.memory import MemoryLeakDetector, growth, process_memory, take_snapshot


class Order:
    def __init__(self) -> None:
        self.lines = list(range(100))


class Basket(Order):
    __slots__ = ("owner",)


async def worker() -> None:
    await asyncio.Event().wait()


def test_objects_are_counted_by_type_and_so_are_their_bytes() -> None:
    gc.collect()
    before = _core.count_objects()
    keep = [Order() for _ in range(1000)]
    lists = [[None] * 1000 for _ in range(50)]
    after = _core.count_objects()
    assert after[Order][0] - before.get(Order, (0, 0))[0] == 1000
    grown = after[list][1] - before[list][1]
    expected = sum(sys.getsizeof(entry) for entry in [keep, lists, *lists, *(order.lines for order in keep)])
    assert expected <= grown <= expected * 1.01 + 10_000
    del keep, lists
    gc.collect()
    assert _core.count_objects().get(Order, (0, 0)) == before.get(Order, (0, 0))


@pytest.mark.parametrize("kind", [dict, set, frozenset, tuple])
def test_bytes_of_containers_are_those_that_python_says(kind: type) -> None:
    cells = [[number] for number in range(200)]  # something that a container of it must be tracked for
    before = _core.count_objects().get(kind, (0, 0))
    made = {
        dict: lambda: [dict.fromkeys(range(50), cells) for _ in range(200)],
        set: lambda: [{Order for _ in range(3)} | {object() for _ in range(40)} for _ in range(200)],
        frozenset: lambda: [frozenset({Order, *(object() for _ in range(40))}) for _ in range(200)],
        tuple: lambda: [tuple(cells) for _ in range(200)],
    }[kind]()
    after = _core.count_objects()[kind]
    assert abs(after[0] - before[0] - 200) <= 10
    expected = sum(sys.getsizeof(entry) for entry in made)
    assert expected * 0.98 <= after[1] - before[1] <= expected * 1.02 + 5_000


def test_counting_runs_nothing_of_the_programs() -> None:
    class Loud:
        def __sizeof__(self) -> int:
            raise AssertionError("called")

        @property
        def __class__(self):  # type: ignore[no-untyped-def]
            raise AssertionError("called")

    keep = Loud()
    assert _core.count_objects()[type(keep)][0] == 1


@pytest.mark.slow
def test_counting_leaves_nothing_behind() -> None:
    drifts = []
    references = sys.getrefcount(Order)
    for _ in range(6):
        gc.collect()  # which empties the free lists too
        blocks = sys.getallocatedblocks()
        for _ in range(100):
            _core.count_objects()
        gc.collect()
        drifts.append(sys.getallocatedblocks() - blocks)
    assert min(drifts) < 20, drifts
    assert sys.getrefcount(Order) == references


def test_growth_between_two_snapshots_names_what_grew_and_by_how_much() -> None:
    async def main() -> str:
        detector = MemoryLeakDetector()
        detector.take_snapshot("start")
        keep = [Basket() for _ in range(300)]
        tasks = [asyncio.create_task(worker()) for _ in range(7)]
        await asyncio.sleep(0)
        later = detector.take_snapshot("later")
        found = detector.compare_snapshots("start", "later")
        by_name = {entry.name: entry for entry in found.types}
        assert by_name[f"{__name__}.Basket"].grown == len(keep)
        assert by_name["list"].grown >= 300
        assert by_name["list"].grown_bytes is not None and by_name["list"].grown_bytes > 300 * 100 * 8
        assert [(entry.name, entry.count, entry.grown) for entry in found.tasks] == [("worker", 7, 7)]
        assert later["rss"] == later.rss > 1
        assert later.rss < later.vms
        for task in tasks:
            task.cancel()
        return str(found)

    text = asyncio.run(main())
    assert "From 'start' to 'later'" in text
    assert "  worker          7         +7" in text
    assert "Basket" in text


def test_the_detector_uses_tracemalloc_only_where_the_program_runs_it() -> None:
    detector = MemoryLeakDetector()
    assert detector.take_snapshot("without").traced is None
    assert not tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        detector.take_snapshot("a")
        keep = [bytearray(1000) for _ in range(1000)]
        detector.take_snapshot("b")
        found = detector.compare_snapshots("a", "b")
        top = found.traced(limit=3)
        assert any("test_memory.py" in str(statistic) for statistic in top)
        assert "tracemalloc:" in str(found)
        assert detector.compare_snapshots("without", "b").traced() == []
        del keep
    finally:
        tracemalloc.stop()


def test_a_label_that_no_snapshot_has_is_refused() -> None:
    detector = MemoryLeakDetector()
    detector.take_snapshot("start")
    with pytest.raises(KeyError, match=r"no snapshot is labelled 'strat'; there are: 'start'"):
        detector.compare_snapshots("strat", "start")


def test_tracked_tasks_are_active_until_done_and_not_kept_alive() -> None:
    async def main() -> None:
        detector = MemoryLeakDetector()
        done, pending = asyncio.create_task(asyncio.sleep(0)), asyncio.create_task(worker())
        detector.track_task(done)
        detector.track_task(pending)
        await done
        assert detector.get_active_tasks() == [pending]
        pending.cancel()
        await asyncio.wait([pending])
        assert detector.get_active_tasks() == []
        with pytest.raises(TypeError, match=r"needs an asyncio\.Task"):
            detector.track_task(worker)  # type: ignore[arg-type]

    asyncio.run(main())


def test_the_loop_warns_once_of_many_tasks_and_again_only_after_they_went() -> None:
    async def main() -> list[str]:
        warned: list[str] = []
        passed = asyncio.Event()
        detector = MemoryLeakDetector(
            max_tasks=2, memory_growth=1000, on_warning=lambda text: (warned.append(text), passed.set())
        )
        watching = asyncio.create_task(detector.monitor_loop(0.001))
        for _ in range(2):
            tasks = [asyncio.create_task(worker()) for _ in range(3)]
            for task in tasks:
                detector.track_task(task)
            await asyncio.wait_for(passed.wait(), 10)
            passed.clear()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            seen = len(warned)
            for _ in range(20):  # of them, one look at least sees that they are gone
                await asyncio.sleep(0.001)
            assert len(warned) == seen
        watching.cancel()
        return warned

    warned = asyncio.run(main())
    assert warned == ["3 of the tracked tasks are not done (bound: 2)"] * 2


def test_the_loop_warns_when_memory_is_above_its_baseline() -> None:
    async def main() -> list[str]:
        warned: list[str] = []
        passed = asyncio.Event()
        detector = MemoryLeakDetector(memory_growth=0.5, on_warning=lambda text: (warned.append(text), passed.set()))
        watching = asyncio.create_task(detector.monitor_loop(0.001))
        while detector.baseline_memory == 0:
            await asyncio.sleep(0.001)
        keep = bytearray(int(detector.baseline_memory * 1024 * 1024 * 0.8))
        await asyncio.wait_for(passed.wait(), 10)
        watching.cancel()
        assert len(keep) > 0
        return warned

    warned = asyncio.run(main())
    assert len(warned) == 1 and "above its baseline" in warned[0]


@pytest.mark.parametrize(
    "options", [{"max_tasks": -1}, {"max_tasks": "7"}, {"memory_growth": 0}, {"memory_growth": True}]
)
def test_bounds_that_mean_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        MemoryLeakDetector(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "error"), [("x", TypeError), (-1, ValueError), (0, ValueError)])
def test_a_sample_size_that_means_nothing_is_refused_where_it_is_not_used_too(
    size: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="sample_bytes must be"):
        MemoryLeakDetector(sample_bytes=size)


@pytest.mark.parametrize("take", [take_snapshot, MemoryLeakDetector().take_snapshot])
def test_a_label_is_text(take: Any) -> None:
    with pytest.raises(TypeError, match="label must be text, got 3 of type int"):
        take(3)


def test_growth_is_what_came_since_the_last_call() -> None:
    growth()
    keep = [Basket() for _ in range(123)]
    found = {name: (count, grown) for name, count, grown in growth(limit=50)}
    assert found[f"{__name__}.Basket"][1] == len(keep)
    assert f"{__name__}.Basket" not in {name for name, _, _ in growth()}


def test_process_memory_is_what_the_kernel_says() -> None:
    memory = process_memory()
    assert 1 << 20 < memory.rss <= memory.vms
    assert memory.peak >= memory.rss * 0.9
    assert memory.uss is None or 0 < memory.uss <= memory.rss * 1.1
    keep = bytearray(b"x" * (50 << 20))
    assert process_memory().rss - memory.rss > 40 << 20
    assert len(keep) == 50 << 20


def test_a_snapshot_tells_no_more_than_it_knows() -> None:
    snapshot = take_snapshot("now")
    assert snapshot["label"] == "now"
    with pytest.raises(KeyError):
        snapshot["nonsense"]
