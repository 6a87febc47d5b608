"""The guard as an object: options, decorating, entering and leaving.  What it finds is tested with the core."""

from __future__ import annotations

import asyncio
import inspect
import logging
import selectors
import threading
from typing import Any

import pytest

from loopwatch import CallerContext, loops, no_event_loop_blocking
from loopwatch.loops import loop_kind, watch_for_running_loop


@pytest.mark.parametrize("name", ["threshold", "check_interval"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *((value, ValueError) for value in (0, -1, float("nan"), float("inf"), 10**400)),
        *((value, TypeError) for value in (True, "0.1", None)),
    ],
)
def test_durations_are_checked_at_once(name: str, value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"{name} must be a number of seconds"):
        no_event_loop_blocking(**{name: value})


def test_other_options_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match="did you mean 'warn'"):
        no_event_loop_blocking("warm")
    with pytest.raises(TypeError, match="logger"):
        no_event_loop_blocking("log", "loopwatch")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="caller_context"):
        no_event_loop_blocking(caller_context="here")  # type: ignore[arg-type]
    no_event_loop_blocking("log", logging.getLogger("x"), caller_context=CallerContext("a", "b"))


def test_only_async_functions_can_be_decorated() -> None:
    async def generator() -> Any:
        yield 1

    async def fine() -> int:
        return 1

    decorate: Any = no_event_loop_blocking()
    for wrong, advice in [(len, "async def"), (generator, "around the loop"), (int, "its async methods")]:
        with pytest.raises(ValueError, match=advice):
            decorate(wrong)
    with pytest.raises(ValueError, match="@staticmethod above"):
        decorate(staticmethod(fine))
    decorated = decorate(fine)
    assert inspect.iscoroutinefunction(decorated)
    assert decorated.__name__ == "fine"
    assert asyncio.run(decorated()) == 1


def test_without_a_loop_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"asyncio\.run"), no_event_loop_blocking():
        pass


def test_guards_on_one_loop_share_one_watch_and_leave_nothing() -> None:
    before = len(loops._watched)

    async def main() -> None:
        others = watch_for_running_loop().scopes  # of a `loopwatch run` that runs these tests
        with no_event_loop_blocking() as outer:
            watch = watch_for_running_loop()
            async with outer, no_event_loop_blocking():
                assert watch_for_running_loop() is watch
                assert watch.scopes == others + 3
            assert watch.scopes == others + 1
        assert watch.scopes == others

    asyncio.run(main())
    assert len(loops._watched) == before


def test_one_guard_in_many_tasks_at_once() -> None:
    before = len(loops._watched)
    guard = no_event_loop_blocking("raise")

    async def visit(ready: asyncio.Event) -> None:
        async with guard:
            await ready.wait()

    async def main() -> None:
        others = watch_for_running_loop().scopes
        ready = asyncio.Event()
        tasks = [asyncio.create_task(visit(ready)) for _ in range(20)]
        await asyncio.sleep(0)
        assert watch_for_running_loop().scopes == others + 20
        ready.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert len(loops._watched) == before


def test_entered_in_one_task_and_left_in_another() -> None:
    before = len(loops._watched)
    guard = no_event_loop_blocking("raise")

    async def main() -> None:
        await asyncio.create_task(guard.__aenter__())
        await asyncio.create_task(guard.__aexit__(None, None, None))

    asyncio.run(main())
    assert len(loops._watched) == before


def test_leaving_without_entering_or_in_another_thread_is_an_error() -> None:
    guard = no_event_loop_blocking()
    with pytest.raises(RuntimeError, match="without having been entered"):
        guard.__exit__(None, None, None)
    caught: list[RuntimeError] = []
    body = ValueError("mine")

    def leave() -> None:
        guard.__exit__(ValueError, body, None)
        try:
            guard.__exit__(None, None, None)
        except RuntimeError as error:
            caught.append(error)

    async def main() -> None:
        with guard:
            thread = threading.Thread(target=leave)
            thread.start()
            thread.join()

    asyncio.run(main())
    assert "another thread" in str(caught[0])
    assert "another thread" in body.__notes__[0]


def test_the_body_s_exception_and_result_pass() -> None:
    @no_event_loop_blocking("raise")
    async def fails() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(fails())


def test_kinds_of_loops() -> None:
    loop = asyncio.SelectorEventLoop()
    try:
        assert loop_kind(loop) == "selector-epoll"
        selector: Any = loop._selector  # type: ignore[attr-defined]
        selector.select = selector.select
        assert loop_kind(loop) == "selector"
    finally:
        loop.close()
    assert loop_kind(object()) == "generic"


def test_a_loop_is_watched_where_selectors_has_no_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.new_event_loop()
    monkeypatch.delattr(selectors, "EpollSelector", raising=False)
    try:
        assert loop_kind(loop) == "selector"
    finally:
        loop.close()
