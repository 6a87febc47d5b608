"""Tasks destroyed while pending, exceptions nobody retrieved, coroutines never awaited: found, and nothing changed."""

from __future__ import annotations

import asyncio
import gc
import pickle
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from loopwatch import no_leaks
from loopwatch.leaks.guard import LeakGuard
from loopwatch.leaks.tasks import CoroutineKind, DestroyedTaskKind, TaskExceptionKind

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop]
try:
    import uvloop
except ImportError:
    pass
else:
    LOOPS.append(uvloop.new_event_loop)
loops = pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__module__.partition(".")[0])


def guarded(kind: Any, body: Callable[[], Awaitable[None]], loop: Any) -> tuple[list[Any], list[str]]:
    """What a guard of that kind finds, and what the loop's own exception handler was told."""
    told: list[str] = []

    async def main() -> list[Any]:
        running = asyncio.get_running_loop()
        running.set_exception_handler(lambda _loop, context: told.append(context["message"]))
        before = dict(vars(running))
        guard = LeakGuard("guard", [kind], lambda found: None, grace_period=0)
        async with guard:
            await body()
        assert dict(vars(running)) == before
        return guard.leaks

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main()), told


async def fails() -> None:
    raise ValueError("on purpose")


@loops
def test_destroyed_while_pending(loop: Any) -> None:
    async def body() -> None:
        async def orphan() -> None:
            await asyncio.get_running_loop().create_future()

        async def fine() -> None:
            await asyncio.sleep(0)

        ended = asyncio.create_task(fine())
        task = asyncio.create_task(orphan(), name="orphan")
        await asyncio.sleep(0)
        await ended
        del task
        gc.collect()

    (leak,), told = guarded(DestroyedTaskKind(), body, loop)
    assert (leak.name, leak.qualname.rpartition(".")[2]) == ("orphan", "orphan")
    assert leak.creation_stack[-1].name == "body" and 'name="orphan"' in leak.creation_stack[-1].line
    assert leak.stack is None or leak.stack[-1].line == "await asyncio.get_running_loop().create_future()"
    assert told == ["Task was destroyed but it is pending!"]
    assert str(pickle.loads(pickle.dumps(leak))) == str(leak)


@loops
def test_exceptions_nobody_retrieved(loop: Any) -> None:
    kept: list[Any] = []

    async def body() -> None:
        gone = asyncio.create_task(fails(), name="gone")
        kept.append(asyncio.create_task(fails(), name="kept"))
        handled = asyncio.create_task(fails())
        cancelled = asyncio.create_task(asyncio.sleep(5))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(handled, cancelled, return_exceptions=True)
        del gone
        gc.collect()

    leaks, told = guarded(TaskExceptionKind(), body, loop)
    assert [leak.name for leak in leaks] == ["gone", "kept"]
    for leak in leaks:
        assert leak.exception == "ValueError: on purpose"
        assert leak.stack[-1].name == "fails"
        assert leak.creation_stack[-1].name == "body"
    assert told == ["Task exception was never retrieved"], "that of the kept one is asyncio's to report, later"
    assert kept[0]._log_traceback
    kept[0].exception()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in 3.12")
def test_an_eager_task_that_fails_in_its_first_step() -> None:
    def eager() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        return loop

    async def body() -> None:
        asyncio.create_task(fails(), name="at once")
        asyncio.create_task(fails(), name="retrieved").exception()
        gc.collect()

    (leak,), told = guarded(TaskExceptionKind(), body, eager)
    assert (leak.name, leak.qualname, leak.exception) == ("at once", "fails", "ValueError: on purpose")
    assert leak.stack[-1].name == "fails"
    assert leak.creation_stack[-1].line == 'asyncio.create_task(fails(), name="at once")'
    assert told == ["Task exception was never retrieved"]


@loops
def test_coroutines_never_awaited(loop: Any) -> None:
    original = warnings._warn_unawaited_coroutine  # type: ignore[attr-defined]

    async def body() -> None:
        fails()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (leak,), _told = guarded(CoroutineKind(), body, loop)
    assert leak.name == "fails"
    assert leak.place()[2].rpartition(".")[2] == "body"
    assert [str(warning.message) for warning in caught] == ["coroutine 'fails' was never awaited"]
    assert warnings._warn_unawaited_coroutine is original  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [DestroyedTaskKind, TaskExceptionKind, CoroutineKind])
def test_a_clean_scope(kind: Any) -> None:
    async def body() -> None:
        await asyncio.gather(*(asyncio.sleep(0) for _ in range(5)))
        with pytest.raises(ValueError):
            await asyncio.create_task(fails())

    assert guarded(kind(), body, asyncio.new_event_loop) == ([], [])


@pytest.mark.parametrize("kind", [TaskExceptionKind, CoroutineKind])
def test_what_others_do_is_told_apart(kind: Any) -> None:
    async def stranger(begun: asyncio.Event, held: list[Any]) -> None:
        await begun.wait()
        if kind is CoroutineKind:
            fails()
        else:
            held.append(asyncio.create_task(fails()))
            await asyncio.sleep(0.001)
            held.clear()

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        begun = asyncio.Event()
        task = asyncio.create_task(stranger(begun, []))
        guard = LeakGuard("guard", [kind()], "raise", grace_period=0)
        async with guard:
            begun.set()
            await task
            gc.collect()
        assert len(guard.apart) == 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(main())


def test_the_programs_own_warnings_are_of_its_own_lines() -> None:
    async def main() -> None:
        async with no_leaks(lambda found: None):
            asyncio.sleep(1)  # one
            asyncio.sleep(2)  # two

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
    own = [warning for warning in caught if "never awaited" in str(warning.message)]
    assert [warning.filename for warning in own] == [__file__, __file__]
    assert own[1].lineno == own[0].lineno + 1


def test_a_guard_of_a_script_warns_of_nothing_but_the_leak(tmp_path: Path) -> None:
    """Python 3.13 and later warn of module globals without a loader, which a script's __main__ has none of."""
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio\nfrom loopwatch import no_task_leaks\n"
        "async def main():\n    async with no_task_leaks():\n        asyncio.create_task(asyncio.sleep(30))\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=60)
    assert "ResourceWarning: Detected 1 leaked asyncio tasks" in done.stderr, done.stderr
    assert "DeprecationWarning" not in done.stderr
