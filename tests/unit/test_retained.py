"""What would be freed, against programs that own a known amount, and against a slow count of references."""

import asyncio
import gc
import random
import sys
import weakref
from typing import Any

import pytest

from loopwatch import _core
from loopwatch.memory import growth, held_by, retained, retained_tasks, show_growth

KB = 1024


class Node:
    pass


async def holds(*values: object) -> None:
    kept = values
    await asyncio.Event().wait()
    assert kept


async def outer(size: int) -> None:
    own = bytearray(size)
    await holds(bytes(size))
    assert own


def test_a_pending_task_retains_what_its_coroutines_hold() -> None:
    async def main() -> None:
        task = asyncio.create_task(outer(1_000_000))
        await asyncio.sleep(0)
        found = retained(task)
        assert 2_000_000 < found.bytes < 2_005_000
        assert found.by_type["bytes"][0] == 1 and found.by_type["bytearray"][0] == 1
        assert not found.cut and not found.running
        assert list(found.by_type)[:2] in (["bytearray", "bytes"], ["bytes", "bytearray"])
        assert str(found).startswith(f"{found.count} objects, 1,95")
        task.cancel()

    asyncio.run(main())


def test_what_something_else_holds_too_is_not_counted() -> None:
    async def main() -> None:
        shared = bytes(1_000_000)
        task = asyncio.create_task(holds(shared, [bytes(10_000)]))
        await asyncio.sleep(0)
        assert 10_000 < retained(task).bytes < 13_000
        del shared
        assert retained(task).bytes > 1_010_000
        task.cancel()

    asyncio.run(main())


def test_a_done_task_retains_its_result_and_a_failed_one_its_frames() -> None:
    async def result() -> bytes:
        return bytes(100_000)

    async def fails() -> None:
        own = bytearray(100_000)
        raise ValueError(len(own))

    async def main() -> None:
        done, failed = asyncio.create_task(result()), asyncio.create_task(fails())
        await asyncio.wait([done, failed])
        await asyncio.sleep(0)
        assert 100_000 < retained(done).bytes < 101_500
        assert 100_000 < retained(failed).bytes < 105_000
        assert failed.exception() is not None

    asyncio.run(main())


def test_the_strings_and_keys_of_a_dict_count() -> None:
    cache = {f"key {number}, made here": "value " * 100 + str(number) for number in range(1000)}
    expected = sys.getsizeof(cache) + sum(sys.getsizeof(key) + sys.getsizeof(value) for key, value in cache.items())
    found = retained(cache)
    assert abs(found.bytes - expected) < 200
    keys = list(cache)
    found = retained(cache)
    assert abs(found.bytes - (expected - sum(sys.getsizeof(key) for key in keys))) < 200


def test_types_modules_and_loops_stay() -> None:
    async def main() -> None:
        assert retained([asyncio, Node, asyncio.get_running_loop(), main]).count == 1

    asyncio.run(main())


def test_it_is_cut_at_the_limit_and_says_so() -> None:
    many = [[number] for number in range(5000)]
    found = retained(many, limit=100)
    assert found.cut and found.count <= 100
    assert str(found).startswith("at least 100 objects")
    assert retained(many).count > 8_900  # but for the small ints, which the interpreter keeps
    with pytest.raises(ValueError, match="limit must be"):
        retained(many, limit=0)
    with pytest.raises(TypeError, match="whole number"):
        retained(many, limit=1.5)  # type: ignore[arg-type]


def test_a_running_task_says_that_it_runs() -> None:
    async def main() -> None:
        own = bytearray(1_000_000)
        found = retained(asyncio.current_task())
        assert found.running and found.bytes < 10_000
        assert own

    asyncio.run(main())


def test_sizes_written_in_python_are_not_called() -> None:
    class Loud:
        def __sizeof__(self) -> int:
            raise AssertionError("called")

    assert retained(Loud()).count >= 1


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_go_as_they_are_said_to(seed: int) -> None:
    """Drop one node and see by weak references which others went: neither more nor fewer than was said."""
    dice = random.Random(seed)
    made = [Node() for _ in range(60)]
    for _ in range(75):
        one, other = dice.sample(made, 2)
        way = dice.randrange(4)
        if way == 0:
            setattr(one, f"a{len(vars(one))}", other)
        elif way == 1:
            setattr(one, f"l{len(vars(one))}", [[other]])
        elif way == 2:
            setattr(one, f"d{len(vars(one))}", {len(vars(one)): (other,)})
        else:
            setattr(one, f"f{len(vars(one))}", lambda held=other: held)
    held: dict[int, Any] = {number: made[number] for number in dice.sample(range(60), 6)}
    places = [weakref.ref(node) for node in made]
    made.clear()
    del one, other
    gc.collect()
    for number in list(held):
        before = sum(place() is not None for place in places)
        box = [held.pop(number)]  # only we hold it, now
        starts = box
        types, cut, running = _core.retained(starts, 10**6)
        expected = types.get(Node, (0, 0))[0]
        assert not cut and not running
        if is_held_elsewhere(box, held):
            box.clear()
            continue  # it goes by definition in the answer, but stays in truth
        box.clear()
        gc.collect()
        assert before - sum(place() is not None for place in places) == expected


def is_held_elsewhere(box: list[Any], held: dict[int, Any]) -> bool:
    seen: set[int] = set()
    level: list[Any] = list(held.values())
    while level:
        each = level.pop()
        if each is box[0]:
            return True
        if id(each) not in seen and not isinstance(each, type) and each is not globals():
            seen.add(id(each))
            level.extend(gc.get_referents(each))
    return False


def test_asking_leaves_nothing_behind() -> None:
    tree = [[number, {"k": str(number)}] for number in range(100)]
    drifts = []
    for _ in range(12):  # free lists and caches fill during the first ones
        gc.collect()
        blocks = sys.getallocatedblocks()
        for _ in range(30):
            retained(tree)
        gc.collect()
        drifts.append(sys.getallocatedblocks() - blocks)
    assert min(drifts) < 10, drifts


def test_growth_is_printed_as_objgraph_does(capsys: pytest.CaptureFixture[str]) -> None:
    growth()
    kept = [Node() for _ in range(321)]
    show_growth(limit=50)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [f"{__name__}.Node", "321", "+321"] in lines or any(
        line[0] == f"{__name__}.Node" and line[2] == "+321" for line in lines
    )
    assert kept


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in 3.12")
def test_an_eager_task_that_gave_up_its_coroutine() -> None:
    class Subclass(asyncio.Task[None]):
        pass

    async def at_once() -> None:
        pass

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for make in (asyncio.Task, Subclass):
            held = [make(at_once(), loop=loop, name="early", eager_start=True)]
            (found,) = (task for task in retained_tasks() if task.name == "early")
            assert found.coroutine == "its coroutine is gone" and found.state == "done"
            assert str(held_by(held[0])).count("its coroutine is gone") == (make is asyncio.Task)

    asyncio.run(main())
