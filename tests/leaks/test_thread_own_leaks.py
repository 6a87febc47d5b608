"""The thread guard leaks nothing itself: many visits, then no drift in blocks, descriptors, threads and references."""

from __future__ import annotations

import _thread
import concurrent.futures
import gc
import os
import sys
import threading
from array import array

import pytest

from loopwatch import _core
from loopwatch.leaks.threads import ThreadKind, no_thread_leaks

WHAT = ("blocks", "fds", "threads", "references", "creation stacks")
WARM_UPS, ROUNDS = 3, 5


def measure(into: array[int], at: int) -> None:
    """Into room that is there already: measuring must not add up."""
    gc.collect()
    into[at + 1] = len(os.listdir("/proc/self/fd"))
    into[at + 2] = len(os.listdir("/proc/self/task"))
    into[at + 3] = sys.gettotalrefcount() if hasattr(sys, "gettotalrefcount") else 0
    into[at + 4] = _core.creation_info()["stacks"]
    into[at] = sys.getallocatedblocks()


def clean() -> None:
    with no_thread_leaks("raise"):
        pass


def leaking() -> None:
    session = ThreadKind(native=True).begin()  # without the texts, whose formatting takes longest
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    _thread.start_new_thread(int, ())
    assert thread in [leak.thread_ref for leak in session.look()]
    over.set()
    thread.join()
    session.end()


def pool() -> None:
    session = ThreadKind().begin()
    executor = concurrent.futures.ThreadPoolExecutor(1)
    executor.submit(int).result()
    assert session.look()
    executor.shutdown()
    session.end()


def dropped() -> None:
    _core.ThreadScope()
    _core.ThreadScope().close()


def bad() -> None:
    for pairs in (3, [3], [(1,)], [("x", 1)]):
        with pytest.raises(TypeError):
            _core.threads_doing(pairs)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _core.ThreadScope(1)  # type: ignore[call-arg]
    _core.threads_doing([(1 << 40, 1), (0, 0), (0, -1)])


PROGRAMS = {
    "clean": (clean, 500),
    "leaking": (leaking, 100),
    "pool": (pool, 100),
    "dropped": (dropped, 1000),
    "bad": (bad, 200),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_drift(name: str) -> None:
    program, repeats = PROGRAMS[name]
    seen = array("q", [0] * (len(WHAT) * ROUNDS))
    for number in range(-WARM_UPS, ROUNDS):
        for _ in range(repeats):
            program()
        measure(seen, max(number, 0) * len(WHAT))
    for column, what in enumerate(WHAT):
        values = seen[column :: len(WHAT)]
        steps = [after - before for before, after in zip(values, values[1:], strict=False)]
        assert min(steps) < repeats / 2, f"{name}: {what} drifted by {steps} in rounds of {repeats}"
        if what in ("fds", "threads", "creation stacks"):
            assert min(steps) <= 0, f"{name}: {what} drifted by {steps} in rounds of {repeats}"


def test_records_are_bounded_and_end_with_the_last_scope() -> None:
    def stacks() -> int:
        return _core.creation_info()["stacks"]

    before = stacks()
    scope = _core.ThreadScope()
    source = "\n" * 400 + "def start(thread): thread.start()"
    most = 0
    for number in range(400):  # each from another line, so that each has a stack of its own
        names: dict[str, object] = {}
        exec(compile(source[number:], "many.py", "exec"), names)
        thread = threading.Thread(target=int)
        names["start"](thread)  # type: ignore[operator]
        thread.join()
        most = max(most, stacks() - before)
    assert 40 < most < 200
    scope.close()
    gc.collect()
    assert stacks() - before < 80  # those last met are kept for a while


def test_nothing_of_the_program_is_kept_alive() -> None:
    import weakref

    class Target:
        def __call__(self) -> None:
            pass

    target = Target()
    gone = weakref.ref(target)
    scope = _core.ThreadScope()
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    of_thread = weakref.ref(thread)
    del target, thread
    gc.collect()
    assert gone() is None and of_thread() is None
    scope.close()
