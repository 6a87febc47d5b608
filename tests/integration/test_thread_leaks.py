"""Thread leaks told from truth: which threads, started at which line; and what is no leak."""

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures
import contextlib
import logging
import os
import pickle
import queue
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from loopwatch import _core
from loopwatch.errors import ThreadLeakError
from loopwatch.leaks.thread_findings import LeakedThread, LeakedThreadPool
from loopwatch.leaks.threads import DEFAULT_THREAD_NAME_FILTER, no_thread_leaks

HERE = __file__


class Stage:
    """Threads that wait until the test is over, and are joined then."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.begun = threading.Event()
        self.threads: list[threading.Thread] = []

    def wait(self) -> None:
        self.begun.set()
        self.over.wait()

    def start(self, target: Callable[[], object] | None = None, **options: Any) -> threading.Thread:
        thread = threading.Thread(target=target or self.wait, **options)
        self.threads.append(thread)
        thread.start()
        return thread


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.over.set()
    for thread in stage.threads:
        thread.join()


def leaks_of(body: Callable[[], object], **options: Any) -> list[Any]:
    """What a guard finds that a body leaves behind."""
    options = {"grace_period": 0.05} | options
    try:
        with no_thread_leaks("raise", **options):
            body()
    except ThreadLeakError as error:
        found = error
    else:
        return []
    assert found.thread_count == len(found.leaked_threads) > 0
    return found.leaked_threads


def rest(native_id: int) -> None:
    """Return when a thread waits for a lock, and not for the GIL only, which is free meanwhile."""
    deadline = time.monotonic() + 20
    while (
        _core.threads_doing([(0, native_id)])[0][0] != "lock"
    ):  # 0: asked without its thread state, any futex is a lock
        assert time.monotonic() < deadline
        time.sleep(0.001)


def line_of(text: str) -> int:
    with open(HERE, encoding="utf-8") as file:
        return next(number for number, line in enumerate(file, 1) if text in line and "line_of" not in line)


def test_name_place_stacks_and_reference(stage: Stage) -> None:
    made: list[threading.Thread] = []

    def body() -> None:
        made.append(stage.start(name="the-worker"))  # mark: started here
        rest(made[0].native_id or 0)

    (leak,) = leaks_of(body)
    assert isinstance(leak, LeakedThread)
    assert (leak.name, leak.thread_ref, leak.daemon) == ("the-worker", made[0], False)
    assert (leak.ident, leak.native_id) == (made[0].ident, made[0].native_id)
    assert leak.target == "Stage.wait"
    assert [frame.name for frame in leak.current_stack or ()] == ["wait"] * 3  # Stage's, Event's, Condition's
    assert leak.current_stack is not None and leak.current_stack[0].lineno == line_of("self.over.wait()")
    assert leak.creation_stack is not None
    places = [(frame.filename, frame.lineno) for frame in leak.creation_stack]
    assert (HERE, line_of("# mark: started here")) in places
    assert places[-1] == (HERE, line_of("thread.start()"))
    assert leak.place() == (HERE, line_of("thread.start()"), "Stage.start")
    assert leak.state == "lock"
    assert leak.doing == f"waits for an Event to be set, {HERE}:{line_of('self.over.wait()')} in Stage.wait"
    assert "self.over.wait()" in leak.format_current_stack()
    assert "thread.start()" in leak.format_creation_stack()
    assert "thread 'the-worker' created at" in leak.headline()


def test_text_of_error_and_pickle(stage: Stage) -> None:
    with pytest.raises(ThreadLeakError) as caught, no_thread_leaks("raise", grace_period=0):
        stage.start(name="one")
    text = str(caught.value)
    assert text.startswith("Detected 1 leaked threads\n\nLeaked Thread: one\n")
    for part in (
        "  Ident: ",
        "  Daemon: False",
        "  Doing: ",
        "  Current Stack:",
        "  Creation Stack:",
    ):
        assert part in text
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == text
    assert copy.leaked_threads == caught.value.leaked_threads
    assert copy.leaked_threads[0].thread_ref is None
    assert caught.value.leaked_threads[0].thread_ref is stage.threads[0]


def test_joined_and_old_threads_are_none(stage: Stage) -> None:
    stage.start(name="before")

    def body() -> None:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

    for _ in range(50):
        assert leaks_of(body, grace_period=0) == []


def test_it_waits_for_ending_threads_and_no_longer() -> None:
    release = threading.Event()

    def body() -> None:
        threading.Thread(target=release.wait).start()
        threading.Timer(0.05, release.set).start()

    began = time.monotonic()
    assert leaks_of(body, grace_period=30) == []
    assert time.monotonic() - began < 15


def test_a_target_that_returned_is_waited_for() -> None:
    for _ in range(50):
        assert leaks_of(lambda: threading.Thread(target=int).start(), grace_period=10) == []
        assert leaks_of(lambda: _thread.start_new_thread(int, ()), grace_period=10) == []


def test_daemons_and_names(stage: Stage) -> None:
    def body() -> None:
        stage.start(name="quiet", daemon=True)
        stage.start(name="asyncio_7")
        stage.start(name="asyncio_seven")

    def names(**options: Any) -> list[str]:
        return sorted(leak.name for leak in leaks_of(body, **options))

    assert names() == ["asyncio_seven"]
    assert names(exclude_daemon=False) == ["asyncio_seven", "quiet"]
    assert names(name_filter=None) == ["asyncio_7", "asyncio_seven"]
    assert names(name_filter="asyncio_7") == ["asyncio_7"]
    assert names(name_filter=re.compile("seven$")) == ["asyncio_seven"]
    assert names(ignore=["asyncio_seven"]) == []
    assert DEFAULT_THREAD_NAME_FILTER.search("asyncio_0") is None


def test_below_threading(stage: Stage) -> None:
    def raw_worker() -> None:
        stage.wait()

    def body() -> None:
        _thread.start_new_thread(raw_worker, ())  # mark: raw
        assert stage.begun.wait(10)

    (leak,) = leaks_of(body)
    assert leak.name.endswith("raw_worker") and leak.target == leak.name
    assert leak.thread_ref is None
    assert leak.place() == (HERE, line_of("# mark: raw"), leak.place()[2])
    assert leak.current_stack[0].name == "raw_worker"
    assert "_thread module" in leak.role


def test_a_raw_thread_that_called_current_thread(stage: Stage) -> None:
    def known_as_dummy() -> None:
        threading.current_thread()
        stage.wait()

    def body() -> None:
        _thread.start_new_thread(known_as_dummy, ())
        assert stage.begun.wait(10)

    (leak,) = leaks_of(body)
    assert leak.name.endswith("known_as_dummy")


def test_a_thread_started_past_the_hooks_is_found(stage: Stage) -> None:
    class Late(threading.Thread):
        def start(self) -> None:  # as a subclass or a patch may
            for name in ("_start_joinable_thread", "_start_new_thread"):
                hook = getattr(threading, name, None)
                if hook is not None:
                    with pytest.MonkeyPatch.context() as patch:
                        patch.setattr(threading, name, hook.__self__)
                        super().start()

        def run(self) -> None:
            stage.wait()

    late = Late(name="late")
    stage.threads.append(late)
    (leak,) = leaks_of(late.start)
    assert (leak.name, leak.creation_stack, leak.target.endswith("Late.run")) == ("late", None, True)
    assert "past the functions" in leak.format_creation_stack()
    assert leak.place()[2] == "Stage.wait"  # its current line instead


class TestExecutors:
    def test_one_finding_a_pool(self, stage: Stage) -> None:
        pools: list[concurrent.futures.ThreadPoolExecutor] = []
        both = threading.Barrier(3)

        def job() -> None:
            both.wait()
            stage.over.wait()

        def body() -> None:
            pool = concurrent.futures.ThreadPoolExecutor(3, thread_name_prefix="pool")
            pools.append(pool)
            first = pool.submit(job)  # mark: first submit
            pool.submit(job)
            both.wait(10)
            assert not first.done()

        (leak,) = leaks_of(body)
        assert isinstance(leak, LeakedThreadPool)
        assert (leak.name, [worker.name for worker in leak.workers]) == ("pool_0", ["pool_0", "pool_1"])
        assert (leak.busy, leak.state) == (2, "busy")
        assert leak.doing.startswith("2 workers, 2 busy: waits for an Event to be set, ")
        assert leak.place() == (HERE, line_of("# mark: first submit"), leak.place()[2])
        assert leak.creation_stack[-1].lineno == line_of("# mark: first submit")
        assert str(leak).startswith("Leaked Thread Pool: pool\n  Workers: pool_0, pool_1\n")
        assert leak.current_stack[-3].name == "job"
        stage.over.set()
        pools[0].shutdown()

    def test_idle_pool(self) -> None:
        pools = []

        def body() -> None:
            pools.append(concurrent.futures.ThreadPoolExecutor(2))
            pools[0].submit(int).result()

        (leak,) = leaks_of(body)
        assert (leak.busy, leak.state, leak.doing) == (0, "idle", "1 worker, idle")
        pools[0].shutdown()

    def test_shut_down_and_collected_pools_are_none(self) -> None:
        def body() -> None:
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                pool.submit(int).result()
            concurrent.futures.ThreadPoolExecutor(2).submit(int).result()
            other = concurrent.futures.ThreadPoolExecutor(2)
            other.submit(int).result()
            other.shutdown(wait=False)

        assert leaks_of(body, grace_period=10) == []

    def test_a_pool_from_before_that_grows_is_told_apart(self, stage: Stage) -> None:
        pool = concurrent.futures.ThreadPoolExecutor(2)
        first = pool.submit(stage.wait)
        assert stage.begun.wait(10)
        guard = no_thread_leaks("raise", grace_period=0)
        with guard:
            second = pool.submit(stage.over.wait)
        assert [type(leak) for leak in guard.apart] == [LeakedThreadPool]
        stage.over.set()
        assert first.result(10) is None and second.result(10)
        pool.shutdown()

    def test_default_executor(self, stage: Stage) -> None:
        async def main() -> list[list[Any]]:
            found = []
            for name_filter in (DEFAULT_THREAD_NAME_FILTER, None):
                for job in (int, stage.wait):
                    guard = no_thread_leaks(lambda leaks: None, name_filter, grace_period=0.02)
                    async with guard:
                        future = asyncio.get_running_loop().run_in_executor(None, job)
                        if job is int:
                            await future
                        else:
                            assert stage.begun.wait(10)
                    found.append(guard.leaks)
                    stage.over.set()
                    await future
                    await asyncio.get_running_loop().shutdown_default_executor()
                    asyncio.get_running_loop()._executor_shutdown_called = False  # type: ignore[attr-defined]
                    asyncio.get_running_loop()._default_executor = None  # type: ignore[attr-defined]
                    stage.over.clear()
                    stage.begun.clear()
            stage.over.set()
            return found

        found = asyncio.run(main())
        assert [len(leaks) for leaks in found] == [0, 0, 0, 1]
        assert found[3][0].doing.startswith("1 worker, 1 busy: waits for an Event")

    def test_to_thread_that_outlives_its_caller(self, stage: Stage) -> None:
        async def main() -> list[Any]:
            guard = no_thread_leaks(lambda leaks: None, None, grace_period=0.02)
            async with guard:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.to_thread(stage.wait), 0.01)
            stage.over.set()
            return guard.leaks

        (leak,) = asyncio.run(main())
        assert leak.busy == 1

    def test_uvloops_default_executor(self) -> None:
        uvloop = pytest.importorskip("uvloop")

        async def main() -> None:
            async with no_thread_leaks("raise", None, grace_period=0.02):
                await asyncio.to_thread(int)

        loop = uvloop.new_event_loop()
        loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    def test_anyio(self, stage: Stage) -> None:
        anyio = pytest.importorskip("anyio")

        async def main() -> list[Any]:
            async with no_thread_leaks("raise", None, grace_period=0.02):
                await anyio.to_thread.run_sync(int)
            guard = no_thread_leaks(lambda leaks: None, None, grace_period=0.02)
            async with guard:
                async with asyncio.TaskGroup() as group:
                    one = group.create_task(anyio.to_thread.run_sync(int))
                    two = group.create_task(
                        anyio.to_thread.run_sync(stage.wait, abandon_on_cancel=True)  # mark: anyio
                    )
                    await one
                    while not stage.begun.is_set():
                        await asyncio.sleep(0.001)
                    two.cancel()
            stage.over.set()
            return guard.leaks

        leaks = asyncio.run(main())
        assert [(leak.name, "anyio.to_thread" in leak.role) for leak in leaks] == [("AnyIO worker thread", True)]

    @pytest.mark.parametrize("after_loop", [False, True])
    @pytest.mark.parametrize("where", ["a C function", "a queue of the program's"])
    def test_worker_of_anyio_that_waits_where_no_frame_tells_it_from_an_idle_one(
        self, where: str, after_loop: bool
    ) -> None:
        anyio = pytest.importorskip("anyio")
        lock, items = threading.Lock(), queue.Queue[int]()
        lock.acquire()
        wait, release = (lock.acquire, lock.release) if where == "a C function" else (items.get, lambda: items.put(1))

        async def main() -> None:
            with anyio.move_on_after(0.01):
                await anyio.to_thread.run_sync(wait, abandon_on_cancel=True)

        async def guarded() -> None:
            async with guard:
                await main()

        guard = no_thread_leaks(lambda leaks: None, grace_period=0.02)
        try:
            if after_loop:
                with guard:
                    asyncio.run(main())
            else:
                asyncio.run(guarded())
        finally:
            release()
        assert [leak.name for leak in guard.leaks] == ["AnyIO worker thread"]


class TestActions:
    def test_warning_points_to_the_guard(self, stage: Stage) -> None:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            with no_thread_leaks(grace_period=0):
                stage.start(name="w")
        assert [(item.category, item.filename) for item in seen] == [(ResourceWarning, HERE)]
        assert "Leaked Thread: w" in str(seen[0].message)

    def test_log_and_callable(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        got: list[Any] = []
        with caplog.at_level(logging.WARNING), no_thread_leaks(["log", got.extend], grace_period=0):
            stage.start(name="w")
        assert [leak.name for leak in got] == ["w"]
        assert "Detected 1 leaked threads" in caplog.text

    def test_cancel_ends_timers(self) -> None:
        called = threading.Event()
        timer = threading.Timer(60, called.set)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with no_thread_leaks("cancel", grace_period=0):
                timer.start()
        timer.join(10)
        assert not timer.is_alive() and not called.is_set()

    def test_cancel_warns_of_others(self, stage: Stage) -> None:
        with pytest.warns(ResourceWarning, match="cannot be stopped from outside"), no_thread_leaks("cancel"):
            stage.start(name="w")
        assert stage.threads[0].is_alive()

    def test_body_is_never_masked(self, stage: Stage) -> None:
        with pytest.raises(KeyError) as caught, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with no_thread_leaks("raise", grace_period=0):
                stage.start(name="w")
                raise KeyError("mine")
        assert "Leaked Thread: w" in "".join(caught.value.__notes__)

    @pytest.mark.parametrize(
        "options",
        [
            {"exclude_daemon": 1},
            {"native": "yes"},
            {"name_filter": 3},
            {"grace_period": "long"},
            {"action": 3},
        ],
    )
    def test_bad_types(self, options: dict[str, Any]) -> None:
        with pytest.raises(TypeError):
            no_thread_leaks(**options)

    def test_bad_values(self) -> None:
        with pytest.raises(ValueError, match="did you mean 'warn'"):
            no_thread_leaks("wran")
        with pytest.raises(ValueError, match="0 or more"):
            no_thread_leaks(grace_period=-1)


class TestDecorators:
    def test_sync_with_and_without_parentheses(self, stage: Stage) -> None:
        @no_thread_leaks
        def plain(name: str) -> str:
            stage.start(name=name)
            return name

        @no_thread_leaks(action="raise", grace_period=0)
        def raising() -> None:
            stage.start(name="r")

        with pytest.warns(ResourceWarning, match="Leaked Thread: p"):
            assert plain("p") == "p"
        with pytest.raises(ThreadLeakError):
            raising()
        assert plain.__name__ == "plain"

    def test_a_handler_is_no_decorated_function(self, stage: Stage) -> None:
        got: list[Any] = []

        def handler(leaks: list[Any]) -> None:
            got.extend(leaks)

        with no_thread_leaks(handler, grace_period=0), no_thread_leaks(lambda leaks: got.extend(leaks), grace_period=0):
            stage.start(name="w")
        assert [leak.name for leak in got] == ["w", "w"]

    def test_async_with_and_without_parentheses(self, stage: Stage) -> None:
        @no_thread_leaks
        async def plain() -> int:
            stage.start(name="p")
            return 1

        @no_thread_leaks("raise", grace_period=0)
        async def raising() -> None:
            await asyncio.sleep(0)
            stage.start(name="r")

        with pytest.warns(ResourceWarning, match="Leaked Thread: p"):
            assert asyncio.run(plain()) == 1
        with pytest.raises(ThreadLeakError):
            asyncio.run(raising())


class TestManyGuards:
    def test_nested(self, stage: Stage) -> None:
        with pytest.raises(ThreadLeakError) as outer, no_thread_leaks("raise", grace_period=0):
            with pytest.raises(ThreadLeakError) as inner, no_thread_leaks("raise", grace_period=0):
                stage.start(name="inside")
            stage.start(name="between")
        assert [leak.name for leak in inner.value.leaked_threads] == ["inside"]
        assert sorted(leak.name for leak in outer.value.leaked_threads) == ["between", "inside"]

    def test_a_concurrent_guards_thread_is_not_ours(self, stage: Stage) -> None:
        async def guarded(name: str, turn: asyncio.Event, other: asyncio.Event) -> list[str]:
            got: list[Any] = []
            async with no_thread_leaks(got.extend, grace_period=0):
                stage.start(name=name)
                turn.set()
                await other.wait()
            return [leak.name for leak in got]

        async def main() -> list[list[str]]:
            a, b = asyncio.Event(), asyncio.Event()
            return await asyncio.gather(guarded("a", a, b), guarded("b", b, a))

        assert asyncio.run(main()) == [["a"], ["b"]]

    def test_in_many_threads_at_once(self, stage: Stage) -> None:
        count, found, entered = 8, {}, threading.Barrier(8)

        def one(number: int) -> None:
            got: list[Any] = []
            entered.wait(10)
            with no_thread_leaks(got.extend, grace_period=0):
                entered.wait(10)

                def child() -> None:  # its own child inherits the scope
                    stage.start(name=f"grandchild-{number}")

                starter = threading.Thread(target=child)
                starter.start()
                starter.join()
                stage.start(name=f"child-{number}")
                entered.wait(10)
            found[number] = sorted(leak.name for leak in got)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {number: [f"child-{number}", f"grandchild-{number}"] for number in range(count)}

    def test_one_object_entered_again_and_again(self, stage: Stage) -> None:
        guard = no_thread_leaks("raise", grace_period=0)
        with pytest.raises(ThreadLeakError), guard:
            with guard:
                pass
            stage.start(name="w")
        with guard:
            pass


def test_async_guard_does_not_block_the_loop(stage: Stage) -> None:
    from loopwatch import no_event_loop_blocking

    async def main() -> tuple[int, list[Any], Any]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticker = asyncio.create_task(tick())
        got: list[Any] = []
        blocking = no_event_loop_blocking(lambda blocks: None, threshold=0.3)
        with blocking:
            async with no_thread_leaks(got.extend, grace_period=0.3):
                for number in range(2):
                    stage.start(name=f"w{number}")
                before = ticks
        ticker.cancel()
        return ticks - before, got, blocking.blocks

    ticks, got, blocks = asyncio.run(main())
    assert (len(got), blocks) == (2, [])
    assert ticks >= 3  # 300 where nothing else runs; none where the guard sleeps


def test_fork_child_has_no_leaks_of_its_parent(stage: Stage) -> None:
    with pytest.raises(ThreadLeakError), no_thread_leaks("raise", grace_period=0):
        stage.start(name="parents")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            code = 1
            try:
                before = no_thread_leaks("raise", grace_period=0, native=True)
                with before:
                    pass
                got: list[Any] = []
                over = threading.Event()
                with no_thread_leaks(got.extend, grace_period=0):
                    threading.Thread(target=over.wait, name="childs").start()
                over.set()
                code = 0 if [leak.name for leak in got] == ["childs"] else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_leaving_a_guard_in_the_child_of_a_fork(stage: Stage) -> None:
    guard = no_thread_leaks("raise", grace_period=0, native=True)
    guard.__enter__()
    stage.start(name="parents")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        code = 1
        try:
            guard.__exit__(None, None, None)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(ThreadLeakError):
        guard.__exit__(None, None, None)


def test_a_child_forked_inside_a_guard_of_a_coroutine_leaves_it_in_peace() -> None:
    async def main() -> int:
        with no_thread_leaks("raise"):
            pid = os.fork()
        if pid == 0:
            os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later: a fork beside other threads
        assert asyncio.run(main()) == 7
