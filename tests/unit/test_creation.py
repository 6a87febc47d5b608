"""Creation stacks: what the core remembers of the caller's own frames is what Python says itself."""

import gc
import threading
import traceback

import pytest

from loopwatch import _core
from loopwatch.stacks import frames_from_raw

Lines = list[tuple[str, int | None, str]]


def both(depth: int) -> tuple[Lines, Lines]:
    if depth:
        return both(depth - 1)
    ours, theirs = frames_from_raw(_core.creation_here(0)), traceback.extract_stack()
    return [(f.filename, f.lineno, f.name) for f in ours], [(f.filename, f.lineno, f.name) for f in theirs]


@pytest.mark.parametrize("depth", [0, 1, 40, 400])
def test_the_stack_is_the_interpreters_own(depth: int) -> None:
    ours, theirs = both(depth)
    if len(theirs) > 128:
        theirs = theirs[:28] + theirs[-100:]
    assert ours == theirs


def test_skip_leaves_out_the_innermost() -> None:
    def inner() -> list[str]:
        return [raw[1] for raw in _core.creation_here(1)]

    assert inner()[-1] == "test_skip_leaves_out_the_innermost"
    assert _core.creation_here(10_000) == []


def test_in_a_generator_and_in_a_thread() -> None:
    def generator():
        yield [raw[1].rpartition(".")[2] for raw in _core.creation_here(0)]

    assert next(generator())[-2:] == ["test_in_a_generator_and_in_a_thread", "generator"]
    seen: list[list[str]] = []
    thread = threading.Thread(target=lambda: seen.append([raw[1] for raw in _core.creation_here(0)]))
    thread.start()
    thread.join()
    assert seen[0][0] == "Thread._bootstrap" and seen[0][-1].endswith("<lambda>")


def test_nothing_stays() -> None:
    gc.collect()
    before = _core.creation_info()["stacks"]
    for number in range(500):  # each from a code object of its own, that dies at once
        names: dict[str, object] = {"here": _core.creation_here}
        exec(compile("\n" * number + "found = here(0)", f"<made {number}>", "exec"), names)
        assert names["found"][-1][:3] == (f"<made {number}>", "<module>", number + 1)  # type: ignore[index]
    assert _core.creation_info()["stacks"] == before
