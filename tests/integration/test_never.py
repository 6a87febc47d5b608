"""What must never happen: a crash, a deadlock, a changed result, a lost signal, anything left behind."""

import asyncio
import gc
import os
import selectors
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from loopwatch import _core, no_event_loop_blocking

TARGETS = Path(__file__).parent.parent / "targets"
SAMPLES = int(os.environ.get("LOOPWATCH_CHURN_SAMPLES", "200000"))


def run_python(source: str, *args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(source), *args],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_layout_is_exact() -> None:
    assert _core.LAYOUT == "exact"


@pytest.mark.slow
def test_churn_of_code_frames_and_threads_does_not_crash() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(TARGETS / "churn.py"), str(SAMPLES)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert int(words[1]) >= SAMPLES


PROGRAM_WITH_A_BLOCK = """
import asyncio, os, subprocess, sys, time
from loopwatch import no_event_loop_blocking

async def blocked():
    async with no_event_loop_blocking(action=lambda found: None, threshold=0.05) as guard:
        await asyncio.sleep(0)
        time.sleep(0.1)
        await asyncio.sleep(0)
    (block,) = guard.blocks
    assert block.cause == "syscall", block.cause
"""


def test_fork_without_exec_child_watches_anew() -> None:
    done = run_python(
        PROGRAM_WITH_A_BLOCK
        + """
asyncio.run(blocked())
pid = os.fork()
if pid == 0:
    asyncio.run(blocked())
    os._exit(7)
asyncio.run(blocked())
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
"""
    )
    assert done.returncode == 0, done.stderr


def test_fork_inside_a_guard_and_exec() -> None:
    done = run_python(
        PROGRAM_WITH_A_BLOCK
        + """
async def forks():
    async with no_event_loop_blocking(action=lambda found: None, threshold=0.05):
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                os._exit(3)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        proc = await asyncio.create_subprocess_exec(sys.executable, "-c", "print('out')", stdout=subprocess.PIPE)
        assert (await proc.communicate())[0] == b"out\\n"
asyncio.run(forks())
asyncio.run(blocked())
"""
    )
    assert done.returncode == 0, done.stderr


def test_exit_during_a_block_in_another_thread() -> None:
    done = run_python(
        """
        import asyncio, threading, time
        from loopwatch import no_event_loop_blocking
        blocked = threading.Event()
        async def hang():
            async with no_event_loop_blocking(action="log", threshold=0.01):
                blocked.set()
                time.sleep(60)
        threading.Thread(target=lambda: asyncio.run(hang()), daemon=True).start()
        blocked.wait()
        """
    )
    assert done.returncode == 0, done.stderr
    assert "Fatal" not in done.stderr


def test_a_thousand_loops_leave_nothing() -> None:
    async def guarded() -> int:
        async with no_event_loop_blocking(action="raise"):
            await asyncio.sleep(0)
        return 1

    asyncio.run(guarded())
    before = len(os.listdir("/proc/self/fd"))
    assert sum(asyncio.run(guarded()) for _ in range(1000)) == 1000
    assert _core.watchdog_info()["watches"] == 0
    assert len(os.listdir("/proc/self/fd")) <= before


def test_guards_in_ten_threads_find_their_own_block() -> None:
    found: dict[int, list[Any]] = {}

    async def work(number: int) -> None:
        async with no_event_loop_blocking(action=lambda blocks: None, threshold=0.05) as guard:
            await asyncio.sleep(0)
            time.sleep(0.1 + number * 0.01)
            await asyncio.sleep(0)
        found[number] = list(guard.blocks)

    threads = [threading.Thread(target=lambda n=n: asyncio.run(work(n))) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(10))
    for number, blocks in found.items():
        assert len(blocks) == 1, (number, blocks)
        assert blocks[0].duration >= 0.1 + number * 0.01
        assert blocks[0].culprit[2].endswith("work")


def test_signals_are_handled_as_before() -> None:
    done = run_python(
        """
        import asyncio, os, signal, threading
        from loopwatch import no_event_loop_blocking
        seen = []
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born ignoring it
        async def main():
            loop = asyncio.get_running_loop()
            both = asyncio.Event()
            signal.signal(signal.SIGUSR1, lambda *a: seen.append("plain"))
            loop.add_signal_handler(signal.SIGUSR2, both.set)
            with no_event_loop_blocking(action="raise"):
                threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR2)).start()
                await asyncio.wait_for(both.wait(), 10)
                assert seen == ["plain"], seen
                threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
                await asyncio.sleep(30)
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "interrupted\n"


def test_a_signal_handler_that_raises_comes_out_of_select() -> None:
    class Alarm(BaseException):
        pass

    def on_alarm(*unused: object) -> None:
        raise Alarm

    async def main() -> None:
        with no_event_loop_blocking(action="log"):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            await asyncio.sleep(30)

    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        with pytest.raises(Alarm):
            asyncio.run(main())
    finally:
        signal.signal(signal.SIGALRM, before)
    gc.collect()


@pytest.mark.parametrize("kind", [selectors.SelectSelector, selectors.PollSelector, selectors.EpollSelector])
def test_every_selector_keeps_its_behaviour_and_is_restored(kind: Callable[[], selectors.BaseSelector]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        left.setblocking(False)
        right.setblocking(False)
        async with no_event_loop_blocking(action=lambda found: None, threshold=0.05) as guard:
            receive = asyncio.ensure_future(loop.sock_recv(left, 10))
            await asyncio.sleep(0)
            await loop.sock_sendall(right, b"hello")
            assert await receive == b"hello"
            time.sleep(0.08)
            await asyncio.sleep(0.01)
        assert len(guard.blocks) == 1
        assert "select" not in vars(loop._selector)  # type: ignore[attr-defined]
        left.close()
        right.close()

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(kind())) as runner:
        runner.run(main())


def test_select_returns_what_the_class_returns() -> None:
    """The probe's own epoll against EpollSelector.select, over readable, writable, both, hung up and none."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        selector = loop._selector  # type: ignore[attr-defined]
        pairs = [socket.socketpair() for _ in range(200)]
        for number, (left, right) in enumerate(pairs):
            selector.register(left, (1, 2, 3)[number % 3], number)
            if number % 4 == 0:
                right.send(b"x")
            if number % 7 == 0:
                right.close()
        with no_event_loop_blocking(action="log"):
            for timeout in (0, -1, 0.0, 0.001):
                ours = selector.select(timeout)
                theirs = type(selector).select(selector, timeout)
                assert sorted(ours, key=lambda pair: pair[0].fd) == sorted(theirs, key=lambda pair: pair[0].fd)
            with pytest.raises(TypeError) as ours_error:
                selector.select("soon")
            with pytest.raises(TypeError) as theirs_error:
                type(selector).select(selector, "soon")
            assert str(ours_error.value) == str(theirs_error.value)
        for left, right in pairs:
            selector.unregister(left)
            left.close()
            right.close()

    asyncio.run(main())


def test_tools_that_wrap_the_selector_before_and_after() -> None:
    calls = {"before": 0, "after": 0}

    async def main() -> None:
        loop = asyncio.get_running_loop()
        selector = loop._selector  # type: ignore[attr-defined]
        plain = selector.select

        def before(timeout: float | None = None) -> Any:
            calls["before"] += 1
            return plain(timeout)

        selector.select = before
        guard = no_event_loop_blocking(action=lambda found: None, threshold=0.05)
        async with guard:
            ours = selector.select

            def after(timeout: float | None = None) -> Any:
                calls["after"] += 1
                return ours(timeout)

            selector.select = after
            await asyncio.sleep(0)
            time.sleep(0.07)
            await asyncio.sleep(0)
        assert len(guard.blocks) == 1
        assert selector.select is after
        await asyncio.sleep(0.01)
        selector.select = before

    asyncio.run(main())
    assert calls["before"] >= 3 and calls["after"] >= 3


def test_a_guard_left_open_and_its_loop_closed() -> None:
    guards = [no_event_loop_blocking(action="log")]

    async def leaves_it_open() -> None:
        guards[0].__enter__()

    asyncio.run(leaves_it_open())
    guards.clear()
    gc.collect()


def test_uvloop_closed_while_watched() -> None:
    uvloop = pytest.importorskip("uvloop")
    held = []

    async def leaves_it_open() -> None:
        loop = asyncio.get_running_loop()
        watch = _core.Watch(loop, "uv")
        held.append(watch.open_scope(50_000_000, 5_000_000))
        await asyncio.sleep(0)
        time.sleep(0.1)
        await asyncio.sleep(0)

    loop = uvloop.new_event_loop()
    loop.run_until_complete(leaves_it_open())
    loop.close()
    assert loop.is_closed()
    (block,) = held.pop().close()
    assert 0.1 <= block["duration_ns"] / 1e9 < 0.2


def test_uvloop_has_an_attribute_only_while_it_may_be_closed() -> None:
    """One in the instance's dict would make each look-up on the loop slower."""
    uvloop = pytest.importorskip("uvloop")
    loop = uvloop.new_event_loop()
    seen: list[bool] = []

    def look() -> None:
        seen.append("close" in vars(loop))

    async def runs(times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(0)
            look()
            await asyncio.sleep(0.001)
            look()

    async def begins() -> tuple[Any, Any]:
        watch = _core.Watch(loop, "uv")
        scope = watch.open_scope(50_000_000, 5_000_000)
        await runs(3)
        return watch, scope

    watch, scope = loop.run_until_complete(begins())
    assert seen == [False] * 6
    for _ in range(3):
        look()
        loop.run_until_complete(asyncio.sleep(0))
        loop.call_soon(loop.stop)
        loop.run_forever()
        look()
        seen.clear()
        loop.run_until_complete(runs(2))
        assert seen[1:] == [False] * 3
        look()
        assert seen[-1]
    scope.close()
    del watch, scope
    assert "close" not in vars(loop)
    loop.close()
    assert loop.is_closed()


def test_uvloop_stopped_by_an_error_of_a_callback_can_be_closed() -> None:
    uvloop = pytest.importorskip("uvloop")
    loop = uvloop.new_event_loop()
    errors: list[object] = []
    loop.set_exception_handler(lambda loop, context: errors.append(context["message"]))

    def fails() -> None:
        raise SystemExit(3)

    async def begins() -> Any:
        scope = _core.Watch(loop, "uv").open_scope(50_000_000, 5_000_000)
        await asyncio.sleep(0)
        return scope

    scope = loop.run_until_complete(begins())
    loop.call_soon(fails)
    with pytest.raises(SystemExit):
        loop.run_forever()
    loop.close()
    assert loop.is_closed() and errors == []
    scope.close()


def test_time_between_two_runs_of_a_loop_is_not_a_block() -> None:
    """Samples tell it, so one is waited for: where a starved watchdog took none, the probe alone is believed."""
    threshold_ns, once = 50_000_000, 60_000_000_000  # sampled after a quarter of the threshold, and no more

    def trial() -> list[Any] | None:
        """The blocks; None if the loop did not stop in time, so that it may have been sampled while it ran."""
        found: list[Any] = []

        async def opens() -> tuple[_core.Watch, _core.Scope]:
            watch = _core.Watch(asyncio.get_running_loop(), "selector-epoll")
            return watch, watch.open_scope(threshold_ns, once, found.append)

        async def blocks() -> list[Any]:  # the span has ended in the poll before
            return list(found)

        loop = asyncio.new_event_loop()
        watch, scope = loop.run_until_complete(opens())
        found.clear()
        samples = _core.watchdog_info()["samples"]
        in_time = time.monotonic_ns() - watch.busy_since < threshold_ns // 4
        deadline = time.monotonic() + 30
        while in_time and _core.watchdog_info()["samples"] == samples:
            assert time.monotonic() < deadline, "the watchdog took no sample"
            time.sleep(2 * threshold_ns / 1e9)
        between = loop.run_until_complete(blocks())
        scope.close()
        loop.close()
        return between if in_time else None

    trials = (trial() for _ in range(20))
    assert next((found for found in trials if found is not None), "the loop never stopped in time") == []


def test_a_script_from_stdin_runs_as_python_runs_it() -> None:
    source = "import sys\nprint(sys.argv, repr(sys.path[0]), sorted((k, str(v)) for k, v in globals().items()))"
    for command in ([], ["-m", "loopwatch", "run", "--quiet"]):
        done = subprocess.run(
            [sys.executable, *command, "-", "a"], input=source, capture_output=True, text=True, timeout=60, check=True
        )
        if not command:
            plain = done.stdout
    assert done.stdout == plain


def test_loops_do_not_wait_for_the_report_of_another() -> None:
    done = run_python(
        """
        import asyncio, threading, time
        from loopwatch.loops import open_scope

        reporting, closed = threading.Event(), threading.Event()

        async def slow_report():
            def report(raw):
                reporting.set()
                assert closed.wait(10), "the other loop was held up"
            scope = open_scope(10_000_000, 1_000_000, report)
            time.sleep(0.05)
            scope.close()

        async def other():
            open_scope(10_000_000_000, 1_000_000).close()

        def second():
            reporting.wait()
            asyncio.run(other())
            closed.set()

        thread = threading.Thread(target=second)
        thread.start()
        asyncio.run(slow_report())
        thread.join()
        """
    )
    assert done.returncode == 0, done.stderr
    assert "held up" not in done.stderr


@pytest.mark.parametrize(("code", "expected"), [("None", 86), ("0", 86), ("False", 86), ("0.0", 1), ("7", 7)])
def test_fail_on_block_changes_only_an_exit_code_of_zero(code: str, expected: int, tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(
        f"import asyncio, sys, time\nasync def main():\n    time.sleep(0.1)\nasyncio.run(main())\nsys.exit({code})\n"
    )
    options = ["--quiet", "--fail-on-block", "--threshold", "0.05"]
    done = subprocess.run([sys.executable, "-m", "loopwatch", "run", *options, str(script)], timeout=60, check=False)
    assert done.returncode == expected


def test_what_the_program_put_on_a_uvloop_is_called_and_comes_back(tmp_path: Path) -> None:
    program = tmp_path / "wraps.py"
    program.write_text(
        "import asyncio, uvloop\n"
        "from unittest import mock\n"
        "loop = uvloop.new_event_loop()\n"
        "with mock.patch.object(loop, 'close') as closed:\n"
        "    loop.run_until_complete(asyncio.sleep(0))\n"
        "    loop.close()\n"
        "    print(closed.call_count, loop.is_closed())\n"
        "loop.close()\n"
        "loop = uvloop.new_event_loop()\n"
        "close, run = loop.close, loop.run_forever\n"
        "loop.close = lambda: (print('mine'), close())\n"
        "loop.run_forever = lambda: (print('runs'), run())\n"
        "for _ in range(2):\n"
        "    loop.run_until_complete(asyncio.sleep(0))\n"
        "    print(sorted(vars(loop)))\n"
        "loop.close()\n"
        "print(loop.is_closed(), sorted(vars(loop)))\n"
    )
    bare, watched = (
        subprocess.run([sys.executable, *how, str(program)], capture_output=True, text=True, timeout=60, check=True)
        for how in ((), ("-m", "loopwatch", "run"))
    )
    assert watched.stdout == bare.stdout


@pytest.mark.parametrize("name", ["close", "run_forever"])
def test_a_wrapper_around_what_stands_on_a_uvloop_ends(name: str) -> None:
    """The program takes hold of our attribute while it stands, and calls it from its own."""
    uvloop = pytest.importorskip("uvloop")
    loop = uvloop.new_event_loop()
    called: list[str] = []

    async def begins() -> tuple[Any, Any]:
        watch = _core.Watch(loop, "uv")
        return watch, watch.open_scope(50_000_000, 5_000_000)

    held = list(loop.run_until_complete(begins()))
    inner = getattr(loop, name)
    setattr(loop, name, lambda: (called.append(name), inner()))
    for _ in range(3):
        loop.run_until_complete(asyncio.sleep(0))
    held.pop().close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert loop.is_closed()
    assert called == [name] * (4 if name == "run_forever" else 1)


def test_a_mock_of_a_uvloop_that_outlives_the_watch() -> None:
    uvloop = pytest.importorskip("uvloop")
    loop = uvloop.new_event_loop()

    async def begins() -> tuple[Any, Any]:
        watch = _core.Watch(loop, "uv")
        return watch, watch.open_scope(50_000_000, 5_000_000)

    held = list(loop.run_until_complete(begins()))
    with mock.patch.object(loop, "close") as closed:
        held.pop().close()
        loop.close()
        assert closed.called and not loop.is_closed()
    loop.close()
    assert loop.is_closed()


def test_uvloop_starts_a_process_out_of_a_watched_program(tmp_path: Path) -> None:
    """In the child uvloop runs Python's hooks before our own handler of the fork made our locks anew."""
    program = tmp_path / "starts.py"
    program.write_text(
        "import asyncio, uvloop\n"
        "async def main():\n"
        "    for _ in range(5):\n"
        "        process = await asyncio.create_subprocess_exec('true')\n"
        "        print(await process.wait())\n"
        "uvloop.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "loopwatch", "run", str(program)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "0\n" * 5), done.stderr


def test_a_scope_that_is_closed_by_whoever_is_told_of_its_block() -> None:
    told: list[Any] = []

    async def main(end: str) -> None:
        watch = _core.Watch(asyncio.get_running_loop(), "selector-epoll")

        def on_block(block: Any) -> None:
            told.append(block)
            scope.close()

        scope = watch.open_scope(20_000_000, 2_000_000, on_block)
        await asyncio.sleep(0)
        time.sleep(0.05)
        getattr(scope, end)()
        assert scope.closed

    for end in ("close", "cut"):
        asyncio.run(main(end))
    assert len(told) == 2


def test_a_span_that_is_cut_is_told_in_two_parts() -> None:
    told: list[float] = []

    async def main() -> None:
        watch = _core.Watch(asyncio.get_running_loop(), "selector-epoll")
        scope = watch.open_scope(20_000_000, 2_000_000, lambda block: told.append(block["duration_ns"] / 1e9))
        await asyncio.sleep(0)
        began = time.monotonic()
        time.sleep(0.05)
        scope.cut()
        time.sleep(0.08)
        took.append(time.monotonic() - began)
        await asyncio.sleep(0)
        scope.close()

    took: list[float] = []
    asyncio.run(main())
    assert len(told) == 2 and 0.05 <= told[0] < told[1]
    assert sum(told) == pytest.approx(took[0], abs=0.01)
