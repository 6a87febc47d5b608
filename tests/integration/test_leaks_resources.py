"""The guards of resources against programs whose leaks are known, and against programs that leak nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from targets import leaks_resources as targets
from targets.leaks_resources import CLEAN, LEAKS, Truth
from targets.registry import marked_lines

from loopwatch.errors import ScopeLeakError
from loopwatch.leaks import resources

GUARDS = (
    "no_async_generator_leaks",
    "no_timer_leaks",
    "no_descriptor_leaks",
    "no_process_leaks",
    "no_loop_leaks",
    "no_executor_leaks",
)
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "asyncio":
        return asyncio.run
    uvloop = pytest.importorskip("uvloop")
    return lambda main: uvloop.run(main)


@pytest.fixture(autouse=True)
def no_old_garbage() -> None:
    gc.collect()


def caught(run: Run, truth: Truth, guard: str) -> ScopeLeakError | None:
    """The error of a guard around a leaking program, which is tidied up afterwards."""

    async def main() -> ScopeLeakError | None:
        keep: targets.Keep = []
        if truth.program.__name__ == "number_reused":
            targets.NUMBER_REUSED[:] = [targets.os.open("/dev/null", targets.os.O_RDONLY)]
        if truth.program.__name__ == "connection_left":
            targets.LISTENER[:] = [targets.socket.create_server(("127.0.0.1", 0))]
        try:
            async with getattr(resources, guard)("raise"):
                await truth.program(keep)
        except ScopeLeakError as error:
            return error
        finally:
            targets.close_all([*targets.LISTENER, *keep])
            targets.LISTENER.clear()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return None

    result: ScopeLeakError | None = run(main())
    return result


@pytest.mark.parametrize("name", LEAKS)
def test_leak_is_named(run: Run, name: str, request: pytest.FixtureRequest) -> None:
    truth = LEAKS[name]
    loop = request.node.callspec.params["run"]
    if truth.only and truth.only != loop:
        pytest.skip(f"leaks on {truth.only} only")
    error = caught(run, truth, truth.guard)
    assert error is not None, f"{truth.guard} found nothing"
    assert [leak.name for leak in error.leaks if not targets.matches(truth, leak.name)] == []
    assert len(error.leaks) == truth.count, str(error)
    for part in truth.says:
        assert part in str(error), f"{part!r} is not in:\n{error}"
    lines = marked_lines(targets.__file__, name)
    for leak in error.leaks:
        place = leak.place()
        if place is None:
            assert (loop == "uvloop" or truth.by_c) and not truth.has_place
            assert "No creation stack available" in str(leak)
        else:
            assert place[0] == targets.__file__ and place[1] in lines, str(leak)
            assert f":{place[1]} in " in leak.headline()
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and copy.leaks == error.leaks


@pytest.mark.parametrize("name", [name for name in LEAKS if name != "processes_left"])  # it leaks all of these
def test_other_guards_let_it_pass(name: str) -> None:
    """One fault is one finding: a kind does not report what is another's."""
    also = {
        "connection_left": {"no_descriptor_leaks"},
        "worker_left": {"no_descriptor_leaks"},  # its sentinel is a pipe
        "uvloop_left": {"no_descriptor_leaks", "no_loop_leaks"},
    }
    truth = LEAKS[name]
    if name == "uvloop_left":
        pytest.importorskip("uvloop")
    for guard in GUARDS:
        if guard != truth.guard and guard not in also.get(name, set()):
            error = caught(asyncio.run, truth, guard)
            assert error is None, f"{guard}: {error}"


@pytest.mark.parametrize("name", CLEAN)
def test_clean_program_passes(run: Run, name: str) -> None:
    async def main() -> None:
        keep: targets.Keep = []
        async with contextlib.AsyncExitStack() as guards:
            for guard in GUARDS:
                await guards.enter_async_context(getattr(resources, guard)("raise"))
            await CLEAN[name](keep)
        targets.close_all([one for one in keep if hasattr(one, "shutdown")])

    run(main())


def test_child_of_asyncio_is_one_finding() -> None:
    """The descriptor by which asyncio waits for it (from Python 3.12 on) is no other."""

    async def main() -> list[Any]:
        with resources.no_descriptor_leaks("raise"), resources.no_process_leaks(lambda leaks: None) as processes:
            child = await asyncio.create_subprocess_exec("sleep", "60")
        child.kill()
        await child.wait()
        return processes.leaks

    assert [leak.name for leak in asyncio.run(main())] == ["sleep"]


def test_a_pidfd_of_the_programs_own_is_told() -> None:
    child = subprocess.Popen(["sleep", "60"])
    with resources.no_descriptor_leaks(lambda leaks: None) as guard:
        number = targets.os.pidfd_open(child.pid)
    targets.os.close(number)
    targets.close_all([child])
    assert [(leak.what, leak.fd) for leak in guard.leaks] == [("pidfd", number)]


def test_suspended_line() -> None:
    error = caught(asyncio.run, LEAKS["generator_kept"], "no_async_generator_leaks")
    assert error is not None
    (leak,) = error.leaks
    (frame,) = leak.current_stack
    assert frame.lineno in marked_lines(targets.__file__, "suspended") and not leak.finalised
    assert leak.labels()["qualname"] == ["numbers"]


def test_times_are_counted(run: Run) -> None:
    error = caught(run, LEAKS["timer_again"], "no_timer_leaks")
    assert error is not None
    for leak in error.leaks:
        assert leak.reschedules_itself and 3 <= leak.times <= 60
    once = caught(run, LEAKS["timer_left"], "no_timer_leaks")
    assert once is not None and not once.leaks[0].reschedules_itself and once.leaks[0].times == 1


def test_cancel_ends_what_can_be_ended(run: Run) -> None:
    async def main(guard: str, program: targets.Program) -> None:
        keep: targets.Keep = []
        async with getattr(resources, guard)(["cancel"]):
            await program(keep)
        async with getattr(resources, guard)("raise"):
            pass
        if guard == "no_async_generator_leaks":
            assert keep[0].ag_frame is None
        elif guard == "no_timer_leaks":
            assert keep[0].cancelled()
        elif guard == "no_loop_leaks":
            assert keep[0].is_closed()
        else:
            assert keep[0]._shutdown

    for guard, program in (
        ("no_async_generator_leaks", targets.generator_kept),
        ("no_timer_leaks", targets.timer_left),
        ("no_loop_leaks", targets.loop_left),
        ("no_executor_leaks", targets.pool_left),
    ):
        run(main(guard, program))


def test_concurrent_scopes_do_not_blame_each_other() -> None:
    """What another task made meanwhile is told apart, by the context in which it was made."""

    async def main() -> None:
        leaving, left = asyncio.Event(), asyncio.Event()
        keep: targets.Keep = []

        async def innocent(guard: str) -> Any:
            async with getattr(resources, guard)("raise") as visit:
                leaving.set()
                await left.wait()
            return visit

        async def guilty(program: targets.Program) -> None:
            await leaving.wait()
            await program(keep)
            left.set()

        for guard, program in (
            ("no_async_generator_leaks", targets.generator_kept),
            ("no_timer_leaks", targets.timer_left),
            ("no_descriptor_leaks", targets.listener_left),
            ("no_process_leaks", targets.child_runs),
            ("no_loop_leaks", targets.loop_left),
            ("no_executor_leaks", targets.pool_left),
        ):
            leaving.clear()
            left.clear()
            visit, _ = await asyncio.gather(innocent(guard), guilty(program))
            assert visit.leaks == [] and len(visit.apart) == 1, f"{guard}: {visit.apart}"
            if guard == "no_async_generator_leaks":
                await keep.pop().aclose()
            targets.close_all(keep)

    asyncio.run(main())


def test_generator_in_use_by_a_pending_task_is_told_apart() -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def consume() -> None:
            async for _ in targets.numbers():
                begun.set()
                await asyncio.Event().wait()

        guard = resources.no_async_generator_leaks("raise")
        async with guard:
            task = asyncio.create_task(consume(), name="consumer")
            await begun.wait()
        (leak,) = guard.apart
        assert leak.user == "pending task 'consumer'"
        task.cancel()

    asyncio.run(main())


@pytest.mark.skipif(sys.version_info >= (3, 15), reason="not every library is there yet")
def test_libraries_that_close_are_clean(run: Run) -> None:
    web = pytest.importorskip("aiohttp.web")
    aiohttp, httpx = pytest.importorskip("aiohttp"), pytest.importorskip("httpx")

    async def hello(request: Any) -> Any:
        return web.Response(text="hello")

    async def serve_and_ask() -> None:
        app = web.Application()
        app.router.add_get("/", hello)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                async with session.get(url) as response:
                    assert await response.text() == "hello"
        async with httpx.AsyncClient() as client:
            assert (await client.get(url)).text == "hello"
            async with client.stream("GET", url) as streamed:
                assert [part async for part in streamed.aiter_bytes()]
        await runner.cleanup()

    async def main() -> None:
        async with contextlib.AsyncExitStack() as guards:
            for guard in GUARDS:
                await guards.enter_async_context(getattr(resources, guard)("raise"))
            await serve_and_ask()

    run(main())


def test_callbacks_that_answer_anything_change_nothing() -> None:
    """An object may raise for any attribute, and need not be hashable: a timer of it is told by its class."""

    class Proxy:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self) -> None:
            ran.append(True)

        def __getattr__(self, name: str) -> object:
            raise RuntimeError("asked outside of its context")

    async def main() -> None:
        async with resources.no_timer_leaks("raise", grace_period=5):
            asyncio.get_running_loop().call_later(0.001, Proxy())
        with pytest.raises(ScopeLeakError) as caught_here:
            async with resources.no_timer_leaks("raise", grace_period=0):
                handle = asyncio.get_running_loop().call_later(60, Proxy())
        handle.cancel()
        assert caught_here.value.leaks[0].name.endswith("Proxy.__call__")

    ran: list[bool] = []
    asyncio.run(main())
    assert ran == [True]


def test_what_multiprocessing_keeps_for_itself_is_nobodys_leak() -> None:
    """Its resource tracker is begun with the first lock, and lives as long as the process."""
    program = (
        "import multiprocessing\n"
        "from loopwatch import no_leaks\n"
        "with no_leaks(action='raise'):\n"
        "    multiprocessing.get_context('spawn').Lock()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
