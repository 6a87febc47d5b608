"""no_leaks with its real kinds: what it finds, what it leaves out, how it is configured, what it must not mask."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import logging
import pickle
import re
import socket
import threading
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import loopwatch
from loopwatch import Baseline, BaselineError, Ignore, LeakErrorGroup, ScopeLeakError, ignore_current, no_leaks
from loopwatch.leaks import config
from loopwatch.leaks.everything import find_kind, guard_from_settings
from loopwatch.settings import KINDS

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
QUIET: dict[str, Any] = {"blocking": False}  # a loaded machine blocks loops


class Litter:
    """Makes leaks, and cleans them up."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.kept: list[Any] = []

    def thread(self, name: str = "forgotten") -> None:
        thread = threading.Thread(target=self.end.wait, name=name)
        thread.start()
        self.kept.append(thread)

    def socket(self) -> None:
        self.kept.append(socket.socket())

    def loop(self) -> None:
        self.kept.append(asyncio.new_event_loop())

    def timer(self) -> None:
        self.kept.append(asyncio.get_running_loop().call_later(1000, print))

    async def generator(self) -> None:
        async def numbers() -> AsyncIterator[int]:
            yield 1
            yield 2

        generator = numbers()
        await anext(generator)
        self.kept.append(generator)

    def clean(self) -> None:
        self.end.set()
        for thing in self.kept:
            if isinstance(thing, threading.Thread):
                thread = thing
                thread.join()
            elif hasattr(thing, "close"):
                thing.close()
            elif hasattr(thing, "cancel"):
                thing.cancel()


@pytest.fixture
def litter() -> Iterator[Litter]:
    litter = Litter()
    yield litter
    litter.clean()


@pytest.fixture(autouse=True)
def _no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    config._configured.cache_clear()
    yield
    config._configured.cache_clear()


def kinds(error: LeakErrorGroup) -> dict[str, list[str]]:
    return {type(one).__name__: [leak.name for leak in one.leaks] for one in error.exceptions}  # type: ignore[attr-defined]


def test_every_kind_can_be_found() -> None:
    for kind in KINDS:
        found = find_kind(kind)
        assert found is not None, kind
        assert found.name == kind
        assert issubclass(found.error, loopwatch.LeakError)


# --- one report ------------------------------------------------------------------------------------------------------


def test_all_of_it_comes_in_one_group(litter: Litter) -> None:
    async def main() -> None:
        async with no_leaks("raise", **QUIET):
            litter.thread()
            litter.socket()
            litter.timer()
            litter.loop()
            await litter.generator()
            task = asyncio.create_task(asyncio.sleep(1000), name="napping")
            litter.kept.append(task)

    with pytest.raises(LeakErrorGroup) as caught:
        asyncio.run(main())
    found = kinds(caught.value)
    assert found["TaskLeakError"] == ["napping"]
    assert found["ThreadLeakError"] == ["forgotten"]
    assert found["TimerLeakError"] == ["print"]
    assert found.keys() == {
        "TaskLeakError",
        "ThreadLeakError",
        "AsyncGeneratorLeakError",
        "TimerLeakError",
        "DescriptorLeakError",
        "LoopLeakError",
    }
    assert caught.value.message.startswith("Detected 1 leaked asyncio tasks, 1 leaked threads, ")
    assert isinstance(caught.value, loopwatch.LeakError)
    assert isinstance(caught.value, ExceptionGroup)
    again = pickle.loads(pickle.dumps(caught.value))
    assert kinds(again) == found
    assert "forgotten" in "".join(traceback.format_exception(caught.value))
    lines, start = inspect.getsourcelines(Litter.thread)
    for one in caught.value.exceptions:
        if isinstance(one, loopwatch.ThreadLeakError):
            place = one.leaked_threads[0].place()
            assert place is not None
            assert (place[0], place[2]) == (__file__, "Litter.thread")
            assert start <= place[1] < start + len(lines)


def test_except_star_takes_the_group_apart(litter: Litter) -> None:
    seen = []
    try:
        with no_leaks("raise"):
            litter.thread()
            litter.socket()
    except* loopwatch.ThreadLeakError as threads:
        seen.append(type(threads))
    except* loopwatch.DescriptorLeakError as descriptors:
        seen.append(type(descriptors))
    assert seen == [LeakErrorGroup, LeakErrorGroup]


def test_one_warning_tells_all(litter: Litter) -> None:
    @no_leaks()
    def main() -> None:
        litter.thread()
        litter.socket()

    with pytest.warns(ResourceWarning, match="Detected") as caught:
        main()
    warned = [warning for warning in caught if "Detected" in str(warning.message)]
    assert len(warned) == 1
    assert warned[0].filename == __file__
    text = str(warned[0].message)
    assert text.startswith("Detected 1 leaked threads, 1 file descriptors left open\n\nDetected 1 leaked threads")
    assert "Leaked Thread: forgotten" in text


def test_a_handler_gets_all_findings(litter: Litter) -> None:
    got: list[Any] = []
    with no_leaks(got.extend):
        litter.thread()
        litter.socket()
    assert [leak.kind for leak in got] == ["thread", "descriptor"]


def test_blocks_are_among_it() -> None:
    async def main() -> None:
        async with no_leaks("raise"):
            time.sleep(0.3)

    with pytest.raises(LeakErrorGroup) as caught:
        asyncio.run(main())
    (error,) = caught.value.exceptions
    assert isinstance(error, loopwatch.EventLoopBlockError)
    assert error.block_count == 1
    assert "time.sleep(0.3)" in str(error)


def test_a_clean_scope_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    async def main() -> None:
        async with no_leaks("raise", **QUIET) as guard:
            await asyncio.gather(*(asyncio.to_thread(int) for _ in range(3)))
            async with asyncio.timeout(10), asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                pool.submit(int)
            with socket.socket():
                pass
        assert guard.leaks == []

    asyncio.run(main())
    assert [str(warning.message) for warning in recwarn if "loopwatch" in str(warning.filename)] == []


# --- switches --------------------------------------------------------------------------------------------------------


def test_each_kind_can_be_off_and_have_its_own_action(litter: Litter) -> None:
    got: list[Any] = []
    with no_leaks("raise", threads=False, descriptors=got.extend):
        litter.thread()
        litter.socket()
    assert [leak.kind for leak in got] == ["descriptor"]


def test_warnings_of_some_kinds_and_errors_of_others(litter: Litter) -> None:
    def main() -> None:
        with no_leaks(descriptors="raise"):
            litter.thread()
            litter.socket()

    with pytest.warns(ResourceWarning, match="1 leaked threads"), pytest.raises(LeakErrorGroup) as caught:
        main()
    assert [*kinds(caught.value)] == ["DescriptorLeakError"]


def test_options_of_a_kind(litter: Litter) -> None:
    options = {"action": "raise", "name_filter": re.compile("^b"), "grace_period": 0, "ignore": ["brown"]}
    with pytest.raises(LeakErrorGroup) as caught, no_leaks(threads=options):
        for name in ("ant", "bee", "brown"):
            litter.thread(name)
    assert kinds(caught.value) == {"ThreadLeakError": ["bee"]}


def test_without_a_loop_kinds_that_need_one_are_left_out_unless_asked_for() -> None:
    with no_leaks("raise"):
        pass
    for kind in ("tasks", "timers", "blocking"):
        with pytest.raises(RuntimeError, match=rf"no_leaks\({kind}=...\) was asked for"), no_leaks(**{kind: True}):
            pass


def test_a_guard_from_settings(litter: Litter) -> None:
    settings = {"threads": True, "thread_action": "raise", "thread_name_filter": "bee", "descriptors": False}
    with pytest.raises(LeakErrorGroup) as caught, guard_from_settings(settings):
        litter.thread("ant")
        litter.thread("bee")
        litter.socket()
    assert kinds(caught.value) == {"ThreadLeakError": ["bee"]}


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"action": "rise"}, ValueError, "did you mean 'raise'"),
        ({"threads": "rise"}, ValueError, "did you mean 'raise'"),
        ({"threads": {"exclude_deamon": True}}, TypeError, "did you mean 'exclude_daemon'"),
        ({"blocking": {"treshold": 1}}, TypeError, "no option 'treshold'; did you mean 'threshold'"),
        ({"blocking": {"threshold": 0}}, ValueError, "threshold must be a number of seconds above 0"),
        ({"blocking": {"name_filter": "x"}}, TypeError, "no option 'name_filter'"),
        ({"threads": 3}, TypeError, "action must be one of"),
        ({"grace_period": -1}, ValueError, "grace_period"),
        ({"logger": "x"}, TypeError, "logger must be"),
        ({"ignore": 3}, TypeError, "ignore must be"),
        ({"baseline": 3}, TypeError, "baseline must be"),
        ({"baseline": "none.json"}, BaselineError, "no baseline file"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        no_leaks(**options)


# --- decorating ------------------------------------------------------------------------------------------------------


def test_as_a_decorator_with_and_without_parentheses(litter: Litter) -> None:
    @no_leaks
    def plain() -> int:
        litter.thread()
        return 1

    @no_leaks
    async def coroutine() -> int:
        litter.thread()
        return 2

    @no_leaks("raise")
    async def strict() -> None:
        litter.thread()

    with pytest.warns(ResourceWarning, match="leaked threads") as caught:
        assert plain() == 1
    assert caught[0].lineno == inspect.getsourcelines(plain)[1]
    with pytest.warns(ResourceWarning, match="leaked threads"):
        assert asyncio.run(coroutine()) == 2
    with pytest.raises(LeakErrorGroup):
        asyncio.run(strict())


# --- never masking ---------------------------------------------------------------------------------------------------


def test_the_body_s_exception_goes_on_with_the_findings_as_notes(litter: Litter) -> None:
    def main() -> None:
        with no_leaks("raise"):
            litter.thread()
            raise KeyError("mine")

    with pytest.warns(ResourceWarning, match="leaked threads"), pytest.raises(KeyError) as caught:
        main()
    assert "Leaked Thread: forgotten" in caught.value.__notes__[0]


def test_what_a_handler_raises_goes_along(litter: Litter) -> None:
    def fail(findings: list[Any]) -> None:
        raise OSError("no space")

    with pytest.raises(LeakErrorGroup) as caught, no_leaks([fail, "raise"]):
        litter.thread()
    assert "no space" in caught.value.__notes__[0]
    with pytest.raises(OSError, match="no space"), no_leaks(fail):
        litter.thread()


def test_pytest_fail_and_exit_win(litter: Litter) -> None:
    with pytest.raises(pytest.fail.Exception), no_leaks([lambda found: pytest.fail("no"), "raise"]):  # type: ignore[list-item]
        litter.thread()


# --- overlooking -----------------------------------------------------------------------------------------------------


def test_ignoring_by_name_creator_and_module(litter: Litter) -> None:
    for ignore in ("forgotten", Ignore(creator="Litter.thread"), Ignore(qualname="Event.wait", kind="thread")):
        with no_leaks("raise", ignore=[ignore]):
            litter.thread()
    with no_leaks("raise", ignore=[Ignore(module=re.compile("test_no_leaks$"))]):
        litter.thread()
    with pytest.raises(LeakErrorGroup), no_leaks("raise", ignore=[Ignore(name="forgotten", kind="task")]):
        litter.thread()


def test_the_file_s_entries_and_defaults_hold(litter: Litter, tmp_path: Path) -> None:
    (tmp_path / "loopwatch.toml").write_text(
        "thread_action = 'raise'\ndescriptors = false\n[[ignore]]\nname = 're:^pool-'\nreason = 'global'\n"
    )
    with pytest.raises(LeakErrorGroup) as caught, no_leaks():
        litter.thread("pool-1")
        litter.thread("other")
        litter.socket()
    assert kinds(caught.value) == {"ThreadLeakError": ["other"]}
    with pytest.warns(ResourceWarning, match="leaked threads"), no_leaks("warn"):  # the call wins
        litter.thread("another")


def test_what_exists_now_is_overlooked_later(litter: Litter) -> None:
    async def main() -> None:
        async with no_leaks("raise", **QUIET) as guard:
            litter.thread("old")
            litter.socket()
            litter.timer()
            litter.loop()
            await litter.generator()
            later = no_leaks("raise", **QUIET, ignore=ignore_current())
            guard._rules = later._rules
            visit = guard._open[0]
            for watched, rule in zip(visit.watched, later._rules, strict=True):
                watched.rule = rule
            litter.thread("new")

    with pytest.raises(LeakErrorGroup) as caught:
        asyncio.run(main())
    assert kinds(caught.value) == {"ThreadLeakError": ["new"]}


def test_a_baseline_lets_pass_what_is_known(litter: Litter, tmp_path: Path) -> None:
    first = Baseline(tmp_path / "leaks.json")
    with pytest.warns(ResourceWarning, match="leaked threads"), no_leaks(baseline=first):
        litter.thread()
    first.save()

    def again(threads: int) -> None:
        with no_leaks("raise", baseline="leaks.json"):
            for _ in range(threads):
                litter.thread()

    again(1)
    with pytest.raises(LeakErrorGroup) as caught:
        again(2)
    assert kinds(caught.value) == {"ThreadLeakError": ["forgotten"]}


# --- pyleak's names --------------------------------------------------------------------------------------------------


def test_a_program_written_for_pyleak_runs(litter: Litter) -> None:
    import loopwatch as pyleak

    for name in pyleak.__all__:
        assert getattr(pyleak, name)
    for name in (
        "no_task_leaks",
        "TaskLeakError",
        "no_thread_leaks",
        "ThreadLeakError",
        "no_event_loop_blocking",
        "EventLoopBlockError",
        "PyleakExceptionGroup",
        "DEFAULT_THREAD_NAME_FILTER",
    ):
        assert name in pyleak.__all__
    group = pyleak.PyleakExceptionGroup("two", [pyleak.ThreadLeakError("one"), pyleak.TaskLeakError("two", [])])
    assert isinstance(group, pyleak.LeakError)
    assert len(group.exceptions) == 2
    assert group.split(pyleak.TaskLeakError)[0].exceptions[0].task_count == 0  # type: ignore[union-attr]

    @pyleak.no_thread_leaks(action="raise", name_filter=None, exclude_daemon=False, grace_period=0.05)
    def work() -> None:
        litter.thread()

    with pytest.raises(pyleak.ThreadLeakError, match="Detected 1 leaked threads"):
        work()

    @pyleak.no_task_leaks(action="raise", enable_creation_tracking=True)
    async def main() -> None:
        litter.kept.append(asyncio.create_task(asyncio.sleep(1000), name="napping"))
        await asyncio.sleep(0)

    with pytest.raises(pyleak.TaskLeakError) as caught:
        asyncio.run(main())
    assert caught.value.task_count == 1
    task_info: Any = caught.value.leaked_tasks[0]
    assert task_info.name == "napping"
    assert "sleep" in task_info.format_current_stack()
    assert "create_task" in task_info.format_creation_stack()
    task_info.task_ref.cancel()


# --- many times ------------------------------------------------------------------------------------------------------


def test_a_scope_in_a_scope_and_many_at_once(litter: Litter) -> None:
    guard = no_leaks("raise", **QUIET)

    async def visit(number: int) -> None:
        async with guard:
            await asyncio.sleep(0)
            async with guard:
                await asyncio.sleep(0.001 * number)

    async def main() -> None:
        async with guard:
            await asyncio.gather(*(visit(number) for number in range(10)))

    asyncio.run(main())
    assert guard._open == []


def test_errors_have_the_shape_of_all_scope_errors(litter: Litter) -> None:
    with pytest.raises(LeakErrorGroup) as caught, no_leaks("raise"):
        litter.thread()
        litter.socket()
    for error in caught.value.exceptions:
        assert isinstance(error, ScopeLeakError)
        assert error.get_stack_summary() in str(error)


# --- trio ------------------------------------------------------------------------------------------------------------


def test_under_trio_it_waits_without_blocking_and_leaves_out_what_is_asyncio_s(litter: Litter) -> None:
    trio = pytest.importorskip("trio")
    turns: list[int] = []

    async def count() -> None:
        while True:
            turns.append(1)
            await trio.sleep(0.001)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            before = len(turns)
            async with no_leaks("raise", threads={"grace_period": 30}, **QUIET):
                litter.thread()
                nursery.start_soon(end_soon)
            assert len(turns) > before + 1
            nursery.cancel_scope.cancel()

    async def end_soon() -> None:
        await trio.sleep(0.03)
        litter.end.set()

    trio.run(main)
    with pytest.raises(RuntimeError, match=r"no_leaks\(timers=...\) was asked for"):
        trio.run(enter, {"timers": True})


async def enter(options: dict[str, Any]) -> None:
    async with no_leaks(**options):
        pass


def test_a_trio_cancellation_while_it_waits_ends_the_waiting(litter: Litter) -> None:
    trio = pytest.importorskip("trio")

    async def main() -> None:
        with trio.move_on_after(0.05) as scope:
            async with no_leaks("raise", threads={"grace_period": 60}, **QUIET):
                litter.thread()
        assert scope.cancelled_caught

    with pytest.warns(ResourceWarning, match="leaked threads"):
        trio.run(main)


def test_an_anyio_cancellation_passes(litter: Litter) -> None:
    anyio = pytest.importorskip("anyio")

    async def main() -> None:
        with anyio.move_on_after(0.05) as scope:
            async with no_leaks("raise", threads={"grace_period": 60}, **QUIET):
                litter.thread()
        assert scope.cancelled_caught
        with anyio.CancelScope() as scope:
            async with no_leaks("raise", threads={"grace_period": 60}, **QUIET):
                litter.thread()
                scope.cancel()
                await anyio.sleep(10)
        assert scope.cancelled_caught

    with pytest.warns(ResourceWarning, match="leaked threads"):
        anyio.run(main)


def test_under_trio_a_kind_of_asyncio_s_says_so() -> None:
    trio = pytest.importorskip("trio")

    async def main() -> None:
        async with no_leaks(tasks="raise"):
            pass

    with pytest.raises(RuntimeError, match="on a loop that is not asyncio's: only asyncio has tasks to watch"):
        trio.run(main)


def test_what_was_seen_meanwhile_is_logged_without_a_count_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def other() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with no_leaks():
            task = asyncio.create_task(other(), name="apart", context=contextvars.Context())
        task.cancel()

    with caplog.at_level(logging.INFO, "loopwatch"):
        asyncio.run(main())
    (text,) = [record.getMessage() for record in caplog.records if "Seen meanwhile" in record.getMessage()]
    assert text.startswith("Seen meanwhile, not of this scope: 1 leaked asyncio tasks\n  task 'apart'"), text
    assert "Detected" not in text
