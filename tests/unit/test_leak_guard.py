"""LeakGuard with a toy kind: entering and leaving, waiting, filters, actions, and all the ways to misuse it."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import inspect
import logging
import os
import pickle
import re
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from loopwatch.errors import LeakError, ScopeLeakError
from loopwatch.leaks.guard import LeakGuard
from loopwatch.leaks.kinds import Kind, Leak, Session
from loopwatch.leaks.suppress import Ignore


class ToyError(ScopeLeakError):
    what = "toys left on the floor"


@dataclasses.dataclass(frozen=True)
class Toy(Leak):
    kind = "thread"
    live = ("ref",)
    name: str
    creation_stack: list[Any] | None = None
    ref: object = dataclasses.field(default=None, compare=False)

    def headline(self) -> str:
        return f"toy {self.name}"

    def __str__(self) -> str:
        return f"Leaked Toy: {self.name}"


class Floor:
    """Where toys lie.  ``looks`` counts looks, ``open`` the sessions not ended; the rest scripts what happens."""

    def __init__(self) -> None:
        self.toys: list[str] = []
        self.others: list[str] = []
        self.looks = 0
        self.open = 0
        self.settled: str | None = None
        self.immortal: set[str] = set()
        self.uncancellable: set[str] = set()
        self.on_look: Callable[[int], None] = lambda count: None


class ToySession(Session):
    def __init__(self, floor: Floor) -> None:
        self.floor, self.before, self.ended = floor, set(floor.toys), False
        floor.open += 1

    def look(self) -> list[Leak]:
        self.floor.looks += 1
        self.floor.on_look(self.floor.looks)
        return [Toy(name, ref=object()) for name in self.floor.toys if name not in self.before]

    def settled(self) -> str | None:
        return self.floor.settled

    def cancel(self, leaks: Any) -> list[Leak]:
        refused = [leak for leak in leaks if leak.name in self.floor.uncancellable]
        keep = self.floor.immortal | {leak.name for leak in refused}
        self.floor.toys = [name for name in self.floor.toys if name in self.before or name in keep]
        return refused

    def apart(self) -> list[Leak]:
        return [Toy(name) for name in self.floor.others]

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self.floor.open -= 1


class ToyKind(Kind):
    name = "toys"
    error = ToyError
    refusal = "Toys cannot be told to tidy themselves."

    def __init__(self, floor: Floor) -> None:
        self.floor = floor

    def begin(self) -> ToySession:
        return ToySession(self.floor)


class LoopToyKind(ToyKind):
    needs_loop = True


@pytest.fixture
def floor() -> Floor:
    return Floor()


def guard(floor: Floor, action: Any = "raise", *, loop: bool = False, grace: float = 0.0, **more: Any) -> LeakGuard:
    kind = LoopToyKind if loop else ToyKind
    return LeakGuard("no_toys", [kind(floor)], action, grace_period=grace, **more)


# --- finding ---------------------------------------------------------------------------------------------------------


def test_a_clean_scope_says_nothing_and_looks_once(floor: Floor) -> None:
    floor.toys = ["old"]
    with guard(floor, grace=60) as entered:
        pass
    assert (floor.looks, floor.open, entered.leaks) == (1, 0, [])


def test_what_is_left_is_raised_with_everything(floor: Floor) -> None:
    with pytest.raises(ToyError) as caught, guard(floor) as entered:
        floor.toys = ["ball", "car"]
    assert [leak.name for leak in caught.value.leaks] == ["ball", "car"]
    assert str(caught.value) == "Detected 2 toys left on the floor\n\nLeaked Toy: ball\nLeaked Toy: car"
    assert entered.leaks == caught.value.leaks
    assert floor.open == 0


def test_async_with_finds_the_same(floor: Floor) -> None:
    async def main() -> None:
        async with guard(floor, loop=True):
            floor.toys.append("ball")

    with pytest.raises(ToyError, match="Detected 1 toys"):
        asyncio.run(main())
    assert floor.open == 0


def test_the_error_survives_pickling_without_live_objects(floor: Floor) -> None:
    with pytest.raises(ToyError) as caught, guard(floor):
        floor.toys.append("ball")
    caught.value.add_note("a note")
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.__notes__ == ["a note"]
    assert caught.value.leaks[0].ref is not None  # type: ignore[attr-defined]
    assert again.leaks[0].ref is None
    assert again.leaks == caught.value.leaks


def test_what_is_not_this_scope_s_fault_fails_nothing_and_is_told_apart(
    floor: Floor, caplog: pytest.LogCaptureFixture
) -> None:
    floor.others = ["guest"]
    with caplog.at_level(logging.INFO, "loopwatch"), guard(floor) as entered:
        pass
    assert [leak.name for leak in entered.apart] == ["guest"]
    assert "toy guest" in caplog.text
    with pytest.raises(ToyError) as caught, guard(floor):
        floor.toys.append("ball")
    assert str(caught.value).endswith("Seen meanwhile, not of this scope: 1 toys left on the floor\n  toy guest")
    assert [leak.name for leak in caught.value.leaks] == ["ball"]


# --- waiting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [True, False])
def test_it_looks_again_and_goes_on_the_moment_all_is_clean(floor: Floor, sync: bool) -> None:
    def tidy(count: int) -> None:
        if count == 4:
            floor.toys.clear()

    floor.on_look = tidy
    began = time.monotonic()
    if sync:
        with guard(floor, grace=60):
            floor.toys.append("ball")
    else:

        async def main() -> None:
            async with guard(floor, grace=60):
                floor.toys.append("ball")

        asyncio.run(main())
    assert 4 <= floor.looks <= 5
    assert time.monotonic() - began < 30


def test_pauses_grow_and_end_with_the_grace_period(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = [0.0], []

    def sleep(pause: float) -> None:
        pauses.append(round(pause, 6))
        now[0] += pause

    monkeypatch.setattr("loopwatch.leaks.waiting.time.monotonic", lambda: now[0])
    monkeypatch.setattr("loopwatch.leaks.guard.time.sleep", sleep)
    with pytest.raises(ToyError), guard(floor, grace=0.02):
        floor.toys.append("ball")
    assert pauses == [0.0, 0.001, 0.002, 0.004, 0.008, 0.005, 0.0]  # the last one after what was found is explained


def test_async_waiting_lets_the_loop_run(floor: Floor) -> None:
    async def main() -> None:
        async with guard(floor, grace=60):
            floor.toys.append("ball")
            asyncio.get_running_loop().call_later(0.01, floor.toys.clear)

    asyncio.run(main())
    assert floor.looks >= 3


def test_where_waiting_cannot_help_it_says_so_at_once(floor: Floor) -> None:
    floor.settled = "nothing on the loop can make progress any more"
    with pytest.raises(ToyError) as caught, guard(floor, grace=60):
        floor.toys.append("ball")
    assert floor.looks == 1
    assert caught.value.reason == floor.settled
    assert str(caught.value).endswith("Waiting longer could not help: nothing on the loop can make progress any more")


def test_kinds_wait_each_as_long_as_it_says(floor: Floor) -> None:
    class Patient(ToyKind):
        grace_period = 0.03

    two = Floor()
    with pytest.raises(ToyError), LeakGuard("no_toys", [ToyKind(two), Patient(floor)], "raise"):
        floor.toys.append("ball")
    assert floor.looks >= 4
    assert two.looks == 2  # at once, and once more at the end


# --- filters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name_filter", "found"),
    [("ball", ["ball"]), (re.compile(r"b"), ["ball", "cab"]), (re.compile(r"^b"), ["ball"]), (None, None)],
)
def test_a_name_filter_selects(floor: Floor, name_filter: Any, found: list[str] | None) -> None:
    with pytest.raises(ToyError) as caught, guard(floor, name_filter=name_filter):
        floor.toys = ["ball", "cab", "car"]
    assert [leak.name for leak in caught.value.leaks] == (found or ["ball", "cab", "car"])


def test_what_is_ignored_is_neither_reported_nor_waited_for(floor: Floor) -> None:
    with guard(floor, grace=60, ignore=["ball", re.compile("^c")]):
        floor.toys = ["ball", "cab", "car"]
    assert floor.looks == 1
    with pytest.raises(ToyError) as caught, guard(floor, ignore=Ignore(name="ball", reason="a ball rolls away")):
        floor.toys = ["ball", "cab", "train"]
    assert [leak.name for leak in caught.value.leaks] == ["train"]


# --- actions ---------------------------------------------------------------------------------------------------------


def test_warnings_point_at_the_user_s_line(floor: Floor) -> None:
    with pytest.warns(ResourceWarning, match="Leaked Toy: ball") as caught, guard(floor, "warn"):
        floor.toys.append("ball")
    assert caught[0].filename == __file__

    async def main() -> None:
        async with guard(floor, "warn", grace=0.001):
            floor.toys.append("car")

    with pytest.warns(ResourceWarning) as caught:
        asyncio.run(main())
    assert (caught[0].filename, caught[0].lineno) == (__file__, inspect.getsourcelines(main)[1] + 1)


def test_actions_combine(floor: Floor, caplog: pytest.LogCaptureFixture) -> None:
    got: list[Any] = []
    with pytest.raises(ToyError), guard(floor, ["log", got.extend, "raise"]):
        floor.toys.append("ball")
    assert [leak.name for leak in got] == ["ball"]
    assert "Leaked Toy: ball" in caplog.text


def test_cancel_ends_what_can_be_and_says_so(floor: Floor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "loopwatch"), guard(floor, "cancel"):
        floor.toys.append("ball")
    assert floor.toys == []
    assert caplog.messages == ["Cancelled: Detected 1 toys left on the floor\n\nLeaked Toy: ball"]


def test_cancel_waits_at_least_a_second_for_what_was_asked(floor: Floor) -> None:
    floor.immortal = {"cat"}

    async def main() -> None:
        async with guard(floor, "cancel", grace=0):
            floor.toys += ["ball", "cat"]
            asyncio.get_running_loop().call_later(0.05, lambda: floor.toys.clear())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
    assert floor.looks > 3


def test_cancel_reports_what_would_not_end(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopwatch.leaks.waiting._CANCEL_GRACE", 0.02)
    floor.immortal = {"cat"}
    with pytest.warns(ResourceWarning) as caught, guard(floor, "cancel"):
        floor.toys += ["ball", "cat"]
    text = str(caught[0].message)
    assert text.startswith("Cancelled, but 1 of 2 did not end: toy cat.\nDetected 2 toys")
    assert floor.open == 0


def test_cancel_says_why_where_nothing_can_be_asked(floor: Floor) -> None:
    floor.uncancellable = {"rock"}
    with pytest.warns(ResourceWarning, match="Toys cannot be told to tidy themselves"), guard(floor, "cancel"):
        floor.toys.append("rock")


def test_log_and_cancel_and_raise_tell_all_that_was_found(floor: Floor, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ToyError, match="Leaked Toy: ball"), guard(floor, ["log", "cancel", "raise"]):
        floor.toys.append("ball")
    assert "Leaked Toy: ball" in caplog.text
    assert floor.toys == []


# --- never masking ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), asyncio.CancelledError(), SystemExit(3)])
def test_the_body_s_exception_goes_on_with_a_note(floor: Floor, error: BaseException) -> None:
    def body() -> None:
        with guard(floor):
            floor.toys.append("ball")
            raise error

    with pytest.warns(ResourceWarning), pytest.raises(type(error)) as caught:
        body()
    assert caught.value is error
    assert "Leaked Toy: ball" in error.__notes__[0]
    assert floor.open == 0


def test_a_cancelled_body_stays_cancelled(floor: Floor) -> None:
    async def body(entered: asyncio.Event) -> None:
        async with guard(floor, grace=0.02):
            floor.toys.append("ball")
            entered.set()
            await asyncio.Event().wait()

    async def main() -> asyncio.Task[None]:
        entered = asyncio.Event()
        task = asyncio.create_task(body(entered))
        await entered.wait()
        task.cancel("stop")
        await asyncio.wait([task])
        return task

    with pytest.warns(ResourceWarning):
        task = asyncio.run(main())
    assert task.cancelled()
    assert floor.open == 0


@pytest.mark.parametrize("error", [None, ValueError("mine")])
def test_a_cancellation_while_it_waits_ends_the_waiting_and_is_not_lost(floor: Floor, error: Exception | None) -> None:
    after: list[str] = []
    waiting = asyncio.Event()
    floor.on_look = lambda count: waiting.set()

    async def body() -> None:
        try:
            async with guard(floor, grace=60):
                floor.toys.append("ball")
                if error:
                    raise error
        except ValueError as caught:
            after.append("the body's exception came out")
            after.extend(caught.__notes__)
            await asyncio.sleep(0)
            after.append("not reached")

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(body())
        await waiting.wait()
        await asyncio.sleep(0.01)
        task.cancel("stop")
        await asyncio.wait([task], timeout=30)
        return task

    with pytest.warns(ResourceWarning):
        task = asyncio.run(main())
    assert task.cancelled()
    assert after[:1] == (["the body's exception came out"] if error else [])
    assert all("Leaked Toy: ball" in note for note in after[1:])
    assert floor.open == 0


def test_it_keeps_to_asyncio_timeout(floor: Floor) -> None:
    async def main() -> None:
        async with asyncio.timeout(0.05), guard(floor, grace=60):
            floor.toys.append("ball")

    with pytest.warns(ResourceWarning), pytest.raises(TimeoutError):
        asyncio.run(main())
    assert floor.open == 0


def test_a_coroutine_closed_while_it_waits_ends_quietly(floor: Floor) -> None:
    async def body() -> None:
        async with guard(floor, grace=60):
            floor.toys.append("ball")

    async def main() -> None:
        coroutine = body()
        coroutine.send(None)
        coroutine.close()

    with pytest.warns(ResourceWarning):
        asyncio.run(main())
    assert floor.open == 0


def test_a_guard_that_fails_itself_does_not_hide_the_body(floor: Floor) -> None:
    def fail(count: int) -> None:
        raise OSError("no more")

    floor.on_look = fail
    with pytest.raises(OSError, match="no more"), guard(floor):
        pass
    with pytest.raises(ValueError, match="mine") as caught, guard(floor):
        raise ValueError("mine")
    assert "could not look for leaks: OSError('no more')" in caught.value.__notes__[0]
    assert floor.open == 0


def test_a_kind_that_cannot_begin_leaves_no_other_open(floor: Floor) -> None:
    class Broken(ToyKind):
        def begin(self) -> ToySession:
            raise OSError("no")

    with pytest.raises(OSError, match="no"), LeakGuard("no_toys", [ToyKind(floor), Broken(floor)]):
        pass
    assert floor.open == 0


# --- decorating ------------------------------------------------------------------------------------------------------


def test_decorated_functions_keep_their_results_and_names(floor: Floor) -> None:
    @guard(floor)
    def plain(x: int) -> int:
        """Doc."""
        return x + 1

    @guard(floor)
    async def coroutine(x: int) -> int:
        return x + 1

    assert (plain(1), asyncio.run(coroutine(1))) == (2, 2)
    assert (plain.__name__, plain.__doc__) == ("plain", "Doc.")
    assert inspect.iscoroutinefunction(coroutine)
    assert not inspect.iscoroutinefunction(plain)


def test_a_decorated_function_s_leaks_are_found_in_each_call(floor: Floor) -> None:
    @guard(floor)
    def leaks(name: str) -> None:
        floor.toys.append(name)

    for name in ("a", "b"):
        with pytest.raises(ToyError, match=f"Leaked Toy: {name}"):
            leaks(name)

    @guard(floor, "warn")
    async def leaks_async() -> None:
        floor.toys.append("c")

    with pytest.warns(ResourceWarning) as caught:
        asyncio.run(leaks_async())
    assert caught[0].lineno == inspect.getsourcelines(leaks_async)[1]


def test_what_cannot_be_decorated_is_refused_with_advice(floor: Floor) -> None:
    def generator() -> Any:
        yield

    async def async_generator() -> Any:
        yield

    decorate: Any = guard(floor)
    for wrong, advice in [
        (generator, "around the loop that uses it"),
        (async_generator, "around the loop that uses it"),
        (int, "is a class"),
        (staticmethod(len), "@staticmethod above"),
        (3, "write @no_toys"),
    ]:
        with pytest.raises(ValueError, match=advice):
            decorate(wrong)
    with pytest.raises(ValueError, match="async functions only"):
        LeakGuard("no_toys", [ToyKind(floor)], asynchronous=True)(len)


# --- re-entrance -----------------------------------------------------------------------------------------------------


def test_one_guard_nested_and_under_gather(floor: Floor) -> None:
    entered = guard(floor)
    with entered, entered:
        assert floor.open == 2

    async def visit(ready: asyncio.Event) -> None:
        async with entered:
            await ready.wait()

    async def main() -> None:
        ready = asyncio.Event()
        visits = [asyncio.create_task(visit(ready)) for _ in range(20)]
        await asyncio.sleep(0)
        assert floor.open == 20
        ready.set()
        await asyncio.gather(*visits)

    asyncio.run(main())
    assert floor.open == 0


def test_one_guard_in_many_threads_at_once(floor: Floor) -> None:
    entered = guard(floor)
    ready = threading.Barrier(8)
    wrong: list[BaseException] = []

    def visit() -> None:
        try:
            with entered:
                ready.wait(10)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=visit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (wrong, floor.open) == ([], 0)


# --- misuse ----------------------------------------------------------------------------------------------------------


def test_a_sync_with_says_what_to_write(floor: Floor) -> None:
    with (
        pytest.raises(RuntimeError, match=r"write `async with no_toys\(\):`"),
        LeakGuard("no_toys", [ToyKind(floor)], asynchronous=True),
    ):
        pass
    assert floor.open == 0


def test_without_a_loop_it_says_what_to_do(floor: Floor) -> None:
    with (
        pytest.raises(RuntimeError, match=r"no_toys\(\) was entered where no event loop runs"),
        guard(floor, loop=True),
    ):
        pass


def test_left_without_having_been_entered(floor: Floor) -> None:
    with pytest.raises(RuntimeError, match=r"no_toys\(\) guard was left without having been entered"):
        guard(floor).__exit__(None, None, None)


def test_left_in_another_task_that_still_runs(floor: Floor) -> None:
    entered = guard(floor)

    async def main() -> None:
        async def leave() -> None:
            await entered.__aexit__(None, None, None)

        await entered.__aenter__()
        task = asyncio.create_task(leave(), name="thief")
        with pytest.raises(
            RuntimeError, match=r"entered by task 'Task-\d+', which still runs, and left by task 'thief'"
        ):
            await task
        assert floor.open == 0
        with pytest.raises(RuntimeError, match="was left already, by another task"):
            await entered.__aexit__(None, None, None)
        async with entered:
            pass

    asyncio.run(main())
    assert (floor.open, entered._open) == (0, [])


def test_left_in_another_task_because_the_first_has_ended(floor: Floor) -> None:
    entered = guard(floor)

    async def main() -> None:
        await asyncio.create_task(entered.__aenter__())
        floor.toys.append("ball")
        await asyncio.create_task(entered.__aexit__(None, None, None))

    with pytest.raises(ToyError):
        asyncio.run(main())
    assert floor.open == 0


def test_left_in_another_thread(floor: Floor) -> None:
    entered = guard(floor)
    caught: list[BaseException] = []
    body = ValueError("mine")

    def leave() -> None:
        try:
            entered.__exit__(None, None, None)
        except RuntimeError as error:
            caught.append(error)
        entered.__exit__(ValueError, body, None)

    entered.__enter__()
    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert "was entered in another thread" in str(caught[0])
    assert body.__notes__
    assert floor.open == 0


@pytest.mark.parametrize("close", [True, False])
def test_left_on_another_loop(floor: Floor, close: bool) -> None:
    entered = guard(floor, loop=True)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        first.run_until_complete(entered.__aenter__())
        if close:
            first.close()
        expected = "entered on an event loop that is closed" if close else "and left on"
        with pytest.raises(RuntimeError, match=expected):
            second.run_until_complete(entered.__aexit__(None, None, None))
        assert floor.open == 0
    finally:
        first.close()
        second.close()


def test_an_open_guard_keeps_no_task_alive(floor: Floor) -> None:
    entered = guard(floor)

    async def main() -> weakref.ref[Any]:
        task = asyncio.create_task(entered.__aenter__())
        await task
        return weakref.ref(task)

    reference = asyncio.run(main())
    gc.collect()
    assert reference() is None
    assert floor.open == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_in_a_forked_child_the_parent_s_findings_are_not_told(floor: Floor) -> None:
    entered = guard(floor)
    entered.__enter__()
    floor.toys.append("ball")
    child = os.fork()
    if child == 0:
        try:
            entered.__exit__(None, None, None)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(LeakError):
        entered.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"action": "rise"}, ValueError, "did you mean 'raise'"),
        ({"grace_period": -1}, ValueError, "grace_period must be a number of seconds, 0 or more"),
        ({"grace_period": "1"}, TypeError, "grace_period must be a number of seconds"),
        ({"grace_period": float("inf")}, ValueError, "grace_period"),
        ({"logger": "log"}, TypeError, "logger must be"),
        ({"name_filter": 3}, TypeError, "name_filter must be a string"),
        ({"name_filter": ""}, ValueError, "name_filter is an empty string"),
        ({"name_filter": re.compile(b"x")}, TypeError, "one of bytes"),
        ({"ignore": 3}, TypeError, "ignore must be a sequence"),
        ({"ignore": [3]}, TypeError, "ignore must be a string"),
    ],
)
def test_options_are_checked_at_once(floor: Floor, options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        LeakGuard("no_toys", [ToyKind(floor)], **options)


def test_a_thousand_visits_leave_nothing(floor: Floor) -> None:
    entered = guard(floor)

    async def main() -> None:
        for _ in range(1000):
            async with entered:
                pass

    asyncio.run(main())
    assert (floor.open, entered._open) == (0, [])


def test_the_loop_runs_between_explaining_and_telling(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both take time; a loop that stands still for both at once would be told as blocked."""
    explained: list[int] = []
    told: list[int] = []
    iterations = 0

    def complete(self: ToySession, leaks: Any, search: Any) -> Any:
        explained.append(iterations)
        return leaks

    async def main() -> None:
        nonlocal iterations

        async def counts() -> None:
            nonlocal iterations
            while True:
                iterations += 1
                await asyncio.sleep(0)

        counter = asyncio.create_task(counts())
        async with guard(floor, lambda leaks: told.append(iterations)):
            floor.toys.append("ball")
        counter.cancel()

    monkeypatch.setattr(ToySession, "complete", complete)
    asyncio.run(main())
    assert len(explained) == len(told) == 1 and explained < told


def test_a_coroutine_that_is_closed_does_not_wait(floor: Floor) -> None:
    async def left() -> None:
        async with guard(floor, "warn", grace=60):
            floor.toys.append("ball")
            await asyncio.sleep(60)

    async def main() -> None:
        coroutine = left()
        coroutine.send(None)
        with pytest.warns(ResourceWarning, match="ball"):
            coroutine.close()

    asyncio.run(main())
    assert floor.open == 0
