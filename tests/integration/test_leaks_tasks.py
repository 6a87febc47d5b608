"""``no_task_leaks`` against programs whose leaks are known: names and lines exactly, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from targets import leaks_tasks
from targets.leaks_tasks import SHAPES, kept, line_of

from loopwatch import _core
from loopwatch.errors import TaskLeakError
from loopwatch.leaks.tasks import no_task_leaks

FILE = leaks_tasks.__file__


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


def loop_with_factory() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()

    def factory(loop: Any, coro: Any, **keywords: Any) -> Any:
        return asyncio.Task(coro, loop=loop, **keywords)

    loop.set_task_factory(factory)
    return loop


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "factory": loop_with_factory,
}
if sys.version_info >= (3, 12):
    LOOPS["eager"] = eager_loop
try:
    import uvloop
except ImportError:
    pass
else:
    LOOPS["uvloop"] = uvloop.new_event_loop


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    kept.clear()
    yield
    kept.clear()


def run(main: Callable[[], Awaitable[Any]], loop: str = "asyncio") -> Any:
    """Run it on a loop that is closed without waiting for tasks that would not die."""
    made = LOOPS[loop]()
    try:
        return made.run_until_complete(main())
    finally:
        for task in asyncio.all_tasks(made):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            task.cancel()
        made.run_until_complete(asyncio.sleep(0.005))
        made.run_until_complete(made.shutdown_asyncgens())
        made.run_until_complete(made.shutdown_default_executor())
        made.close()


def line(frames: Any) -> int:
    """The innermost line of the program, 0 for none."""
    return next((frame.lineno or 0 for frame in reversed(frames or ()) if frame.filename == FILE), 0)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shape(shape: str, loop: str) -> None:
    function, left = SHAPES[shape]

    async def main() -> list[Any]:
        before = asyncio.get_running_loop().get_task_factory()
        found: list[Any] = []
        guard = no_task_leaks(action=found.extend)
        async with guard:
            await function()
        assert asyncio.get_running_loop().get_task_factory() is before
        assert guard.apart == []
        return found

    found = run(main, loop)
    told = sorted((leak.name, line(leak.creation_stack), line(leak.current_stack)) for leak in found)
    assert told == sorted((name, line_of(created), line_of(waits)) for name, created, waits in left)
    for leak in found:
        if loop == "uvloop" and not line(leak.creation_stack):
            continue  # nothing on the stack shows where uvloop's own code began
        assert leak.place()[:2] == (FILE, line(leak.creation_stack) or line(leak.current_stack))


def test_a_task_from_a_thread_is_told_apart() -> None:
    """Its context is the thread's own, so nothing says under which scope it was created."""

    async def main(scope: Any) -> tuple[list[str], list[str]]:
        found: list[Any] = []
        guard = no_task_leaks(action=found.extend, scope=scope)
        async with guard:
            await leaks_tasks.from_a_thread()
        return [leak.name for leak in found], [leak.name for leak in guard.apart]

    assert run(lambda: main("descendants")) == ([], ["from-thread"])
    kept.clear()
    assert run(lambda: main("loop")) == (["from-thread"], [])
    kept.clear()
    assert run(lambda: main("process")) == (["from-thread"], [])


async def waits_long() -> None:
    await asyncio.sleep(3600)


def test_nested_guards_each_find_their_own() -> None:
    async def main() -> tuple[list[str], list[str]]:
        outer: list[Any] = []
        inner: list[Any] = []
        async with no_task_leaks(action=outer.extend, grace_period=0):
            kept.append(asyncio.create_task(waits_long(), name="outer"))
            async with no_task_leaks(action=inner.extend, grace_period=0):
                kept.append(asyncio.create_task(waits_long(), name="inner"))
        return [leak.name for leak in outer], [leak.name for leak in inner]

    assert run(main) == (["outer", "inner"], ["inner"])


def test_guards_under_gather_do_not_see_each_others_tasks() -> None:
    async def one(number: int) -> list[str]:
        found: list[Any] = []
        async with no_task_leaks(action=found.extend, grace_period=0.02):
            kept.append(asyncio.create_task(waits_long(), name=f"of-{number}"))
            await asyncio.sleep(0.001)
        return [leak.name for leak in found]

    async def main() -> list[list[str]]:
        return await asyncio.gather(*(one(number) for number in range(8)))

    assert run(main) == [[f"of-{number}"] for number in range(8)]


def test_what_was_there_before_is_no_leak_in_any_scope() -> None:
    async def main() -> list[Any]:
        kept.extend(asyncio.create_task(waits_long()) for _ in range(300))
        await asyncio.sleep(0)
        found: list[Any] = []
        for scope in ("descendants", "loop", "process"):
            async with no_task_leaks(action=found.extend, scope=scope, grace_period=0):  # type: ignore[arg-type]
                pass
        return found

    assert run(main) == []


def test_old_tasks_that_end_hide_no_new_one() -> None:
    """The last tasks from before end during the scope, while direct ones come: only these are found."""

    async def main() -> list[str]:
        old = [asyncio.create_task(waits_long()) for _ in range(200)]
        kept.extend(old)
        await asyncio.sleep(0)
        found: list[Any] = []
        async with no_task_leaks(action=found.extend, grace_period=0.02):
            for task in old[150:]:
                task.cancel()
            del task
            await asyncio.sleep(0)
            kept[150:] = []
            old[150:] = []
            gc.collect()
            kept.append(asyncio.Task(waits_long(), name="direct"))
        return [leak.name for leak in found]

    assert run(main) == ["direct"]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_task_past_the_factory_is_found(loop: str) -> None:
    async def main() -> Any:
        found: list[Any] = []
        async with no_task_leaks(action=found.extend, enable_creation_tracking=True):
            kept.append(asyncio.Task(waits_long(), name="direct"))
        return found

    (leak,) = run(main, loop)
    assert leak.name == "direct"
    if leak.creation_stack is None:
        assert "asyncio.Task()" in leak.missing_reason and leak.missing_reason in str(leak)
    else:
        assert leak.creation_stack[-1].name == "main"
    assert sys.version_info >= (3, 14) or leak.creation_stack is not None


def test_a_factory_set_afterwards_stays_and_hides_nothing() -> None:
    def factory(loop: Any, coro: Any, **keywords: Any) -> Any:
        return asyncio.Task(coro, loop=loop, **keywords)

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        found: list[Any] = []
        async with no_task_leaks(action=found.extend):
            loop.set_task_factory(factory)
            kept.append(asyncio.create_task(waits_long(), name="late"))
        assert loop.get_task_factory() is factory
        return [leak.name for leak in found]

    assert run(main) == ["late"]


def test_a_factory_put_on_top_keeps_working_when_the_guard_has_gone() -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        calls: list[Any] = []
        found: list[Any] = []
        async with no_task_leaks(action=found.extend):
            below = loop.get_task_factory()

            def factory(loop: Any, coro: Any, **keywords: Any) -> Any:
                calls.append(keywords)
                return below(loop, coro, **keywords) if below else asyncio.Task(coro, loop=loop, **keywords)

            loop.set_task_factory(factory)
            kept.append(asyncio.create_task(waits_long(), name="on-top"))
        assert loop.get_task_factory() is factory
        await asyncio.create_task(asyncio.sleep(0), name="after")
        async with no_task_leaks(action=found.extend):
            kept.append(asyncio.create_task(waits_long(), name="again"))
        assert loop.get_task_factory() is factory
        assert len(calls) == 3
        return [leak.name for leak in found]

    assert run(main) == ["on-top", "again"]


def test_names_contexts_and_keywords_reach_the_factory_below() -> None:
    import contextvars

    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen: list[dict[str, Any]] = []

    class Special(asyncio.Task):  # type: ignore[type-arg]
        pass

    def factory(loop: Any, coro: Any, **keywords: Any) -> Any:
        seen.append(keywords)
        return Special(coro, loop=loop, **keywords)

    async def reads() -> str:
        return variable.get()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        context = contextvars.copy_context()
        context.run(variable.set, "given")
        async with no_task_leaks(action="raise"):
            task = loop.create_task(reads(), name="named", context=context)
            assert type(task) is Special and task.get_name() == "named"
            assert await task == "given"
            assert seen[-1]["context"] is context
            with pytest.raises(TypeError):
                loop.create_task(reads(), nonsense=1)  # type: ignore[call-arg]
        assert loop.get_task_factory() is factory

    with contextlib.suppress(RuntimeWarning):
        run(main)


def test_an_explicit_context_tells_the_scope() -> None:
    import contextvars

    async def main() -> tuple[list[str], list[str]]:
        before = contextvars.copy_context()
        found: list[Any] = []
        guard = no_task_leaks(action=found.extend, grace_period=0)
        async with guard:
            kept.append(asyncio.create_task(waits_long(), name="theirs", context=before))
            kept.append(asyncio.create_task(waits_long(), name="mine", context=contextvars.copy_context()))
        return [leak.name for leak in found], [leak.name for leak in guard.apart]

    assert run(main) == (["mine"], ["theirs"])


def test_a_factory_that_two_loops_share_is_tracked_on_both() -> None:
    """A program may set what get_task_factory() gives, which is ours then, on another loop."""

    async def work(name: str, guard: Any) -> None:
        async with guard:
            kept.append(asyncio.create_task(asyncio.sleep(60), name=name))

    first, second = loop_with_factory(), asyncio.new_event_loop()
    guards = [no_task_leaks(lambda found: None, grace_period=0) for _ in range(2)]

    async def both() -> None:
        async with guards[0]:
            kept.append(asyncio.create_task(asyncio.sleep(60), name="one"))
            second.set_task_factory(asyncio.get_running_loop().get_task_factory())
            await asyncio.to_thread(second.run_until_complete, work("two", guards[1]))
            kept.append(asyncio.create_task(asyncio.sleep(60), name="three"))

    try:
        first.run_until_complete(both())
        assert [leak.name for leak in guards[1].leaks] == ["two"]
        assert [leak.name for leak in guards[0].leaks] == ["one", "three"]
    finally:
        for task in kept:
            task.cancel()
        for loop in (first, second):
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
        kept.clear()


def test_a_raising_factory_raises_and_nothing_is_recorded() -> None:
    def factory(loop: Any, coro: Any, **keywords: Any) -> Any:
        coro.close()
        raise LookupError("no tasks today")

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        async with no_task_leaks(action="raise"):
            with pytest.raises(LookupError, match="no tasks today"):
                asyncio.create_task(waits_long())
        asyncio.get_running_loop().set_task_factory(None)

    run(main)


def test_names_are_what_they_would_be_without_a_guard() -> None:
    async def names() -> list[str]:
        first = asyncio.create_task(asyncio.sleep(0))
        second = asyncio.create_task(asyncio.sleep(0), name="given")
        third = asyncio.create_task(asyncio.sleep(0))
        await asyncio.gather(first, second, third)
        return [first.get_name(), second.get_name(), third.get_name()]

    async def main() -> tuple[list[str], list[str]]:
        bare = await names()
        async with no_task_leaks(action="raise"):
            guarded = await names()
        return bare, guarded

    bare, guarded = run(main)
    assert bare[1] == guarded[1] == "given"
    first, third = (int(bare[number].removeprefix("Task-")) for number in (0, 2))
    step = third - first  # 3.11 counts named tasks as well
    assert [int(guarded[number].removeprefix("Task-")) for number in (0, 2)] == [third + 1, third + 1 + step]


def test_two_loops_in_two_threads() -> None:
    import threading

    results: dict[str, list[str]] = {}
    barrier = threading.Barrier(2, timeout=20)

    def thread(name: str) -> None:
        async def main() -> list[str]:
            found: list[Any] = []
            async with no_task_leaks(action=found.extend, scope="loop", grace_period=0.02):
                barrier.wait()
                held = [asyncio.create_task(waits_long(), name=f"{name}-{number}") for number in range(3)]
                held.append(asyncio.Task(waits_long(), name=f"{name}-direct"))
                barrier.wait()
            for task in held:
                task.cancel()
            await asyncio.gather(*held, return_exceptions=True)
            return sorted(leak.name for leak in found)

        results[name] = asyncio.run(main())

    threads = [threading.Thread(target=thread, args=(name,)) for name in ("a", "b")]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert results == {name: [f"{name}-0", f"{name}-1", f"{name}-2", f"{name}-direct"] for name in ("a", "b")}


def test_scope_process_sees_other_loops() -> None:
    import threading

    ready, go_on = threading.Event(), threading.Event()

    def thread() -> None:
        async def main() -> None:
            kept.append(asyncio.create_task(waits_long(), name="elsewhere"))
            ready.set()
            await asyncio.get_running_loop().run_in_executor(None, go_on.wait)

        asyncio.run(main())

    async def main() -> list[str]:
        found: list[Any] = []
        other = threading.Thread(target=thread)
        async with no_task_leaks(action=found.extend, scope="process", grace_period=0):
            other.start()
            await asyncio.get_running_loop().run_in_executor(None, ready.wait)
        go_on.set()
        other.join()
        return [leak.name for leak in found]

    assert "elsewhere" in run(main)


def test_cancel_ends_them_and_reports_who_would_not() -> None:
    async def main() -> tuple[Any, str]:
        with pytest.warns(ResourceWarning, match="did not end") as caught:
            async with no_task_leaks(action="cancel", grace_period=0.02):
                await leaks_tasks.plain()
                await leaks_tasks.will_not_die()
        return kept[0], str(caught[0].message)

    easy, text = run(main)
    assert easy.cancelled()
    assert "1 of 2" in text and "stubborn" in text


def test_it_returns_as_soon_as_all_is_clean() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with no_task_leaks(action="raise", grace_period=30):
            kept.append(asyncio.create_task(asyncio.sleep(0.01)))
        return loop.time() - began

    assert run(main) < 5


def test_the_error() -> None:
    import pickle

    async def main() -> TaskLeakError:
        with pytest.raises(TaskLeakError) as caught:
            async with no_task_leaks(action="raise", grace_period=0, enable_creation_tracking=True):
                await leaks_tasks.await_chain()
                await asyncio.sleep(0)
        return caught.value

    error = run(main)
    (leak,) = error.leaked_tasks
    assert error.task_count == 1
    assert [frame.name for frame in leak.current_stack][:4] == ["outer", "middle", "inner", "wait"]
    assert "in inner" in "".join(leak.current_stack.format())  # it is a traceback.StackSummary
    text = str(error)
    assert text.startswith("Detected 1 leaked asyncio tasks\n\nLeaked Task: chained\n  ID: ")
    assert "\n  State: TaskState.RUNNING\n" in text
    assert f'\n  Current Stack:\n    File "{FILE}", line ' in text
    assert "\n        await middle()\n" in text
    assert '\n  Creation Stack:\n    File "' in text
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == text and copy.leaked_tasks[0].task_ref is None


def test_the_creation_stack_is_known_but_not_shown_by_default() -> None:
    async def main() -> Any:
        found: list[Any] = []
        async with no_task_leaks(action=found.extend, grace_period=0):
            await leaks_tasks.plain()
        return found[0]

    leak = run(main)
    assert "Creation Stack" not in str(leak)
    file, number, name = leak.place()
    assert f"\n  Created At: {file}:{number} in {name}\n" in str(leak)
    assert "kept.append" in leak.format_creation_stack()


def test_the_text_says_who_created_a_task_of_which_no_line_is_the_programs() -> None:
    async def library() -> None:
        asyncio.create_task(asyncio.sleep(10))

    async def main() -> Any:
        async with no_task_leaks(action="cancel", grace_period=0) as guard:
            await library()
        return guard.leaks[0]

    code = library.__code__
    with warnings.catch_warnings(action="ignore"):
        leak = run(main)
    assert f"  Created At: {__file__}:{code.co_firstlineno + 1} in {code.co_qualname}\n" in str(leak)


def test_the_body_of_the_guard_may_fail() -> None:
    async def main() -> None:
        with pytest.raises(KeyError) as caught, pytest.warns(ResourceWarning):
            async with no_task_leaks(action="raise", grace_period=0):
                await leaks_tasks.plain()
                raise KeyError("mine")
        assert any("Leaked Task: plain" in note for note in caught.value.__notes__)

    run(main)


def test_nothing_stays_behind() -> None:
    async def main() -> None:
        async with no_task_leaks(action=lambda found: None, grace_period=0):
            await leaks_tasks.plain()

    run(main)
    kept.clear()
    gc.collect()
    registry = getattr(asyncio.tasks, "_scheduled_tasks", None) or getattr(asyncio.tasks, "_all_tasks", None)
    assert registry is None or "add" not in vars(registry)
    assert _core.creation_info()["stacks"] == 0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"scope": "all"}, ValueError, "descendants"),
        ({"scope": 3}, TypeError, "scope must be"),
        ({"enable_creation_tracking": 1}, TypeError, "True or False"),
        ({"action": "cancle"}, ValueError, "cancel"),
        ({"grace_period": -1}, ValueError, "grace_period"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        no_task_leaks(**options)


def test_a_sync_with_says_what_to_write() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="async with"), no_task_leaks():  # type: ignore[attr-defined]
            pass

    run(main)


def test_decorators() -> None:
    found: list[Any] = []

    @no_task_leaks(action=found.extend, grace_period=0)
    async def with_options() -> int:
        kept.append(asyncio.create_task(waits_long(), name="decorated"))
        return 7

    @no_task_leaks
    async def bare() -> int:
        return 8

    async def main() -> tuple[int, int]:
        return await with_options(), await bare()

    assert run(main) == (7, 8)
    assert [leak.name for leak in found] == ["decorated"]
    with pytest.raises(ValueError, match="async"):

        @no_task_leaks()
        def plain() -> None: ...
