"""Who holds what: found by bounded passes, once, and only for what is reported."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import loopwatch
from loopwatch import _core, no_leaks
from loopwatch.leaks import owners, resources
from loopwatch.leaks.waiting import Search

LONG = 10**12


class Thing:
    def __init__(self, part: object) -> None:
        self.part = part


def test_referrers_are_found_by_index_and_only_so_many() -> None:
    one, two = ["one"], ["two"]
    holder, crowd = {"held": one}, [[two] for _ in range(500)]
    found, complete = _core.referrers((one, two), LONG)
    assert complete
    assert [index for index, each in found if each is holder] == [0]
    assert 90 <= sum(index == 1 for index, _ in found) <= 100 and len(crowd) == 500


def test_a_pass_ends_when_its_time_is_over() -> None:
    keep = [[number] for number in range(5000)]
    for found, complete in (_core.referrers((keep,), 0), _core.objects_of((Thing,), 0)):
        assert not complete and found == []


def test_objects_are_those_of_exactly_the_types() -> None:
    class Other(Thing):
        pass

    keep = [Thing([]), Other([])]
    found, complete = _core.objects_of((str, Thing), LONG)
    assert complete and [each for index, each in found if index == 1] == keep[:1]
    assert keep[1] in owners.instances_of(Thing)


@pytest.mark.parametrize("arguments", [([], 1), ((), "1"), ((1,),), ()])
def test_wrong_arguments_are_refused(arguments: tuple[Any, ...]) -> None:
    for function in (_core.referrers, _core.objects_of):
        with pytest.raises(TypeError):
            function(*arguments)
    assert _core.referrers((), LONG) == ([], True)


def test_holders_have_names() -> None:
    target = ["target"]
    thing = Thing(target)
    search = Search(60.0)
    search.look([target])
    assert search.holder_of(target) == "attribute 'part' of Thing" and search.cut is None
    assert thing.part is target


def test_a_search_that_was_cut_says_so() -> None:
    with socket.socket() as kept:
        session = resources.DescriptorKind().begin()
        with socket.socket():
            (leak,) = session.look()
            (cut,) = session.complete([leak], Search(0.0))
            assert "its owner is not known: there is so much in memory" in cut.headline()
            (full,) = session.complete([leak], Search(60.0))
            assert full.owner == "socket.socket object" and full.unsearched is None and leak.owner is None
        session.end()
    assert kept.fileno() == -1


def test_nothing_is_searched_for_what_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a search for a finding that is overlooked")

    monkeypatch.setattr(Search, "look", never)
    monkeypatch.setattr(Search, "owned_by", never)
    with resources.no_descriptor_leaks("raise", ignore=["/dev/null"]), open("/dev/null") as file:
        pass
    with open("/dev/null") as file:
        with resources.no_descriptor_leaks("raise", ignore=["/dev/null"]):
            another = open("/dev/null")
        another.close()
    assert file.closed


def test_an_executor_is_told_once() -> None:
    def kinds(**options: Any) -> list[str]:
        guard = no_leaks(lambda found: None, blocking=False, grace_period=0, **options)
        with guard:
            pool = ThreadPoolExecutor(2)
            pool.submit(int).result()
        pool.shutdown()
        return [leak.kind for leak in guard.leaks]

    assert kinds() == ["executor"]
    assert kinds(executors=False) == ["thread"]
    assert kinds(executors={"ignore": ["ThreadPoolExecutor"]}) == ["thread"]


@pytest.mark.parametrize("name", [name for name in resources.__all__ if name.startswith("no_")])
def test_decorators_without_parentheses(name: str) -> None:
    guard = getattr(loopwatch, name)

    @guard
    async def ask() -> str:
        """Answer."""
        return "answer"

    assert asyncio.run(ask()) == "answer" and ask.__doc__ == "Answer." and ask.__name__ == "ask"
    if name != "no_timer_leaks":

        @guard
        def plain(number: int) -> int:
            return number + 1

        assert plain(1) == 2


PROGRAM = """
import asyncio, loopwatch

async def orphan():
    await asyncio.get_running_loop().create_future()

async def main():
    queue = asyncio.Queue()
    found = []
    keep = []
    async with loopwatch.no_task_leaks(found.extend, grace_period=0):
        for coroutine in (orphan(), asyncio.Queue().get(), queue.get(), asyncio.sleep(60)):
            keep.append(asyncio.create_task(coroutine))
        await asyncio.sleep(0)
    for leak in found:
        print(leak.proof, "Proof: nothing alive" in str(leak))
    for task in keep:
        task.cancel()

asyncio.run(main())
"""


def test_what_only_cancel_can_end_is_proved() -> None:
    """In a program of its own: among the objects of a large test run there is no time for a proof."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    proved = "nothing alive holds the future it waits for: only cancel() can end this True"
    assert ran.stdout.splitlines() == [proved, proved, "None False", "None False"], ran.stderr


def test_a_number_that_is_another_files_by_now_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the listing of descriptors and the look at one, another thread may close it, and open its own."""
    with open("/dev/null") as file:
        session = resources.DescriptorKind().begin()
        with open("/dev/zero") as other:
            (mine,) = session.look()
            assert mine.name == "/dev/zero"
            status = os.fstat(file.fileno())
            stale = [(other.fileno(), status.st_mode, status.st_dev, status.st_ino)]
            monkeypatch.setattr(_core, "descriptors_since", lambda before: stale)
            assert session.look() == []
        session.end()


def test_what_the_watchdog_reads_of_proc_is_no_leak() -> None:
    session = resources.DescriptorKind().begin()
    libc = ctypes.CDLL(None)  # not through Python's open(), as the watchdog does it
    number = libc.open(b"/proc/self/stat", os.O_RDONLY)
    with open("/proc/self/stat") as left:
        (leak,) = session.look()
        assert leak.fd == left.fileno()
    session.end()
    os.close(number)
