"""Which suspended tasks can nothing alive wake?  Shapes with the answer known, and random programs run to their end."""

import asyncio
import gc
from typing import Any

import pytest
import uvloop
from targets import verdict_random, verdict_shapes

from loopwatch import _core


def proved(loop_factory: Any, shape: verdict_shapes.Shape) -> tuple[set[str], set[str]]:
    """The names of all tasks, and of those proved stuck."""

    async def main() -> tuple[set[str], set[str]]:
        kept = await shape()
        if not verdict_shapes.KEEP or verdict_shapes.KEEP[-1] != "no turn":
            for _ in range(3):
                await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        found = {task.get_name() for task, _ in _core.stuck_tasks(loop)}
        names = {task.get_name() for task in asyncio.all_tasks()} - {asyncio.current_task().get_name()}
        del kept
        return names, found

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(main())
    finally:
        for thing in verdict_shapes.KEEP:
            for end in thing if isinstance(thing, tuple) else (thing,):
                if callable(end) and not isinstance(end, map) and not hasattr(end, "cache_info"):
                    end()
        verdict_shapes.KEEP.clear()
        gc.unfreeze()


def expected(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("stuck")}


@pytest.mark.parametrize("name", list(verdict_shapes.SHAPES))
def test_shape(name: str) -> None:
    names, found = proved(None, verdict_shapes.SHAPES[name])
    assert {name for name in names if name.startswith(("stuck", "live"))}  # 3.11's wait_for makes one of its own
    assert found == expected(names)


@pytest.mark.parametrize(
    "name", ["orphan_future", "queue_without_producers", "sleeping", "under_timeout", "executor_job"]
)
def test_shape_on_uvloop(name: str) -> None:
    """Soundness holds there, too; what uvloop's own C code holds counts as alive."""
    names, found = proved(uvloop.new_event_loop, verdict_shapes.SHAPES[name])
    assert found <= expected(names)


@pytest.mark.slow
def test_random_programs() -> None:
    total = 0
    for seed in range(24):
        count, false = verdict_random.run(seed)
        total += count
        assert not false
    assert total >= 5  # else it proves nothing
