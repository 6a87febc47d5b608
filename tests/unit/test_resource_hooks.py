"""The guards of resources leave nothing behind: what they stand before is the same afterwards."""

from __future__ import annotations

import asyncio
import builtins
import gc
import io
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from loopwatch import _core
from loopwatch.leaks import resources

GUARDS = [getattr(resources, name) for name in resources.__all__ if name.startswith("no_")]


def seen() -> tuple[Any, ...]:
    return (
        builtins.open,
        io.open,
        os.open,
        os.pipe,
        socket.socket.__init__,
        ThreadPoolExecutor.__init__,
        vars(os).get("fork"),
        sys.get_asyncgen_hooks(),
    )


def test_nothing_is_changed_while_open_or_after() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        before, attributes = seen(), dict(vars(loop))
        for make in GUARDS:
            async with make("raise"):
                assert seen()[:-1] == before[:-1]
                assert open.__name__ == "open" and open.__doc__ == io.open.__doc__
            assert seen() == before and set(vars(loop)) == set(attributes)

    asyncio.run(main())
    assert sys.get_asyncgen_hooks() == (None, None)


def test_seen_functions_behave_the_same(tmp_path: Any) -> None:
    with resources.no_descriptor_leaks("raise"), resources.no_process_leaks("raise"):
        path = tmp_path / "file"
        with open(path, mode="w", encoding="utf-8") as file:
            assert file.write("text") == 4
        number = os.open(path, os.O_RDONLY)
        assert os.read(number, 9) == b"text"
        os.close(number)
        with pytest.raises(FileNotFoundError):
            open(tmp_path / "missing")
        with pytest.raises(TypeError):
            open()  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            os.pipe(1)  # type: ignore[call-arg]
        with pytest.raises(OSError):
            socket.socket(family=12345)
        with pytest.raises(FileNotFoundError):
            subprocess.Popen([str(tmp_path / "missing")])
        child = os.fork()
        if child == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        for pair in (os.pipe(), os.openpty()):
            for end in pair:
                os.close(end)


def test_hot_calls_are_seen() -> None:
    """A call site that the interpreter has specialised goes past nothing."""

    def opened() -> int:
        return os.open("/dev/null", os.O_RDONLY)

    for _ in range(200):
        os.close(opened())
    with resources.no_descriptor_leaks(lambda found: leaks.extend(found)):
        leaks: list[Any] = []
        number = opened()
    os.close(number)
    assert [leak.place()[2] for leak in leaks] == ["test_hot_calls_are_seen.<locals>.opened"]


def test_open_guard_left_in_another_thread() -> None:
    """Hooks of a thread stay there as a pass-through, and go when they are called next."""
    states: list[Any] = []

    async def generator() -> Any:
        yield 1

    def drive() -> None:
        async def once() -> None:
            async for _ in generator():
                pass

        with pytest.raises(StopIteration):
            once().send(None)

    hook: list[Any] = []
    ready, end = threading.Event(), threading.Event()

    def other() -> None:
        hook.append(_core.asyncgens_begin())
        ready.set()
        end.wait()
        states.append(sys.get_asyncgen_hooks().firstiter)
        drive()
        states.append(sys.get_asyncgen_hooks().firstiter)

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait()
    _core.asyncgens_end(hook[0])
    end.set()
    thread.join()
    assert states == [hook[0], None]


def test_wrapped_hooks_are_left_alone() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        async with resources.no_timer_leaks("raise"):
            first = loop.call_at
            loop.call_at = wrapper = lambda *args, **named: first(*args, **named)
        assert loop.call_at is wrapper
        await asyncio.sleep(0.001)
        async with resources.no_timer_leaks("raise"):
            loop.call_later(0.001, int)
        assert loop.call_at is wrapper
        del loop.call_at
        called = []
        hooks = sys.get_asyncgen_hooks()
        async with resources.no_async_generator_leaks("raise"):
            sys.set_asyncgen_hooks(firstiter=called.append)
        assert sys.get_asyncgen_hooks().firstiter == called.append
        sys.set_asyncgen_hooks(*hooks)

    asyncio.run(main())


def test_finalizer_outlives_its_guard() -> None:
    """A generator keeps the finalizer it began with: dropped later, it is closed by the loop as ever."""
    closed = []

    async def generator() -> Any:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.append(1)

    async def main() -> None:
        async with resources.no_async_generator_leaks(lambda leaks: None, grace_period=0):
            kept = generator()
            await anext(kept)
        del kept
        gc.collect()
        for _ in range(3):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert closed == [1]


def test_nested_guards_each_see_their_own() -> None:
    async def main() -> None:
        found: dict[str, list[str]] = {"outer": [], "inner": []}

        def note(where: str) -> Any:
            return lambda leaks: found[where].extend(leak.name.rpartition(".")[2] for leak in leaks)

        def first() -> None: ...
        def second() -> None: ...

        loop = asyncio.get_running_loop()
        async with resources.no_timer_leaks(note("outer")):
            handles = [loop.call_later(100, first)]
            async with resources.no_timer_leaks(note("inner")):
                handles.append(loop.call_later(100, second))
        for handle in handles:
            handle.cancel()
        assert found["inner"] == ["second"] and sorted(found["outer"]) == ["first", "second"]

    asyncio.run(main())


def test_bad_arguments_to_the_core() -> None:
    for call in (
        lambda: _core.descriptors_since(b"x"),
        lambda: _core.children_since((1, 2)),  # type: ignore[arg-type]
        lambda: _core.asyncgens_end(None),  # type: ignore[arg-type]
        lambda: _core.timers_begin(object(), (), ()),
        lambda: _core.asyncgens_since("x"),  # type: ignore[arg-type]
    ):
        with pytest.raises((TypeError, ValueError)):
            call()
    with pytest.raises(AttributeError):
        _core.timers_begin(object(), ("call_at",), ())


def test_no_loop_no_timers() -> None:
    with pytest.raises(RuntimeError, match="no event loop runs"):
        resources.no_timer_leaks().__enter__()


def test_name_filter_and_ignore() -> None:
    kept = []
    with resources.no_descriptor_leaks("raise", ignore=["/etc/passwd"]):
        kept.append(os.open("/etc/passwd", os.O_RDONLY))
    with resources.no_descriptor_leaks("raise", name_filter="/etc/group"):
        kept.append(os.open("/etc/passwd", os.O_RDONLY))
    for number in kept:
        os.close(number)
