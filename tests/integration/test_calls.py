"""Blocking calls, told by name and duration: programs whose calls are known."""

import asyncio
import contextlib
import functools
import hashlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from loopwatch import BlockingCallInfo, EventLoopMonitor, event_loop_monitor_ctx
from loopwatch.calls import exact
from loopwatch.findings import Cause

pytestmark = pytest.mark.flaky(reruns=2)  # others may have the CPU just then, see test_truth.py
ENGINES = ["sample", "exact"]
MS = 1e-3


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Any:
    return request.param


def watch(
    program: Callable[[], Any], engine: Any, threshold_ms: float = 50.0, **settings: Any
) -> list[BlockingCallInfo]:
    """What is told while PROGRAM, a function or a coroutine function, runs on a loop."""
    found: list[BlockingCallInfo] = []

    async def main() -> None:
        await asyncio.sleep(0)
        with event_loop_monitor_ctx(threshold_ms, on_blocking_call=found.append, engine=engine, **settings):
            result = program()
            if asyncio.iscoroutine(result):
                await result
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(main())
    return found


def named(found: list[BlockingCallInfo], end: str) -> list[BlockingCallInfo]:
    return [info for info in found if info.method_name.endswith(end)]


def one(found: list[BlockingCallInfo], end: str) -> BlockingCallInfo:
    matching = named(found, end)
    assert len(matching) == 1, [str(info) for info in found]
    return matching[0]


class Truth:
    """How long each function really took, in milliseconds, by its name."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = {}
        self.telling = 0.0  # how long the engine "exact" took to tell: in the truth, but no part of a call

    def __call__(self, name: str, function: Callable[[], object]) -> None:
        began = time.perf_counter()
        function()
        self.taken.setdefault(name, []).append((time.perf_counter() - began) * 1000)


truth = Truth()


@pytest.fixture(autouse=True)
def _fresh_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    told = exact.engine._tell

    def ended(*args: Any) -> bool:
        began = time.perf_counter()
        try:
            return told(*args)
        finally:
            truth.telling += (time.perf_counter() - began) * 1000

    monkeypatch.setattr(exact.engine, "_tell", ended)
    truth.taken.clear()
    truth.telling = 0.0


def close_to(info: BlockingCallInfo, name: str) -> bool:
    """Within a sampling period of the truth, and what the clock readings around it take."""
    (taken,) = truth.taken[name]
    return taken - truth.telling - info.precision_ms - 3 <= info.duration_ms <= taken + info.precision_ms + 3


def sleep_100() -> None:
    began = time.perf_counter()
    time.sleep(100 * MS)
    truth.taken["sleep"] = [(time.perf_counter() - began) * 1000]


def spin(milliseconds: float) -> None:
    """On the CPU for so long, however busy the machine is."""
    until = time.thread_time() + milliseconds * MS
    while time.thread_time() < until:
        for _ in range(3000):
            pass


def test_a_c_call_that_releases_the_gil(engine: Any) -> None:
    found = watch(sleep_100, engine)
    call = one(found, "time.sleep")
    assert call.is_c_call
    assert close_to(call, "sleep"), (call, truth.taken)
    assert call.file == __file__
    assert call.line == sleep_100.__code__.co_firstlineno + 2
    assert call.calls == "one"
    function = one(found, ".sleep_100")
    assert not function.is_c_call
    assert close_to(function, "sleep"), function
    assert function.method_name.endswith("test_calls.sleep_100")
    assert call.thread == "MainThread"


def test_a_c_call_that_keeps_the_gil(engine: Any) -> None:
    data = b"x" * 1000
    rounds = 50_000
    while True:
        began = time.thread_time()
        hashlib.pbkdf2_hmac("sha1", data, b"salt", rounds)
        if time.thread_time() - began > 100 * MS:
            break
        rounds *= 2

    def derive() -> None:
        hashlib.pbkdf2_hmac("sha1", data, b"salt", rounds)

    call = one(watch(derive, engine), "pbkdf2_hmac")
    assert call.is_c_call
    assert call.calls == "one"
    assert call.duration_ms > 50


def test_python_code(engine: Any) -> None:
    call = one(watch(lambda: truth("spin", lambda: spin(120)), engine), ".spin")
    assert not call.is_c_call
    assert close_to(call, "spin"), (call, truth.taken)


def inner() -> None:
    spin(70)


def nested() -> None:
    truth("inner", inner)
    time.sleep(80 * MS)


def outer() -> None:
    truth("outer", nested)


def test_nested_calls(engine: Any) -> None:
    found = watch(outer, engine)
    assert close_to(one(found, ".inner"), "inner"), truth.taken
    assert close_to(one(found, ".outer"), "outer"), truth.taken
    assert one(found, "time.sleep").duration_ms > 70
    order = [info.method_name.rpartition(".")[2] for info in found]
    assert order.index("inner") < order.index("outer")


async def body_loop() -> None:
    began, until = time.perf_counter(), time.thread_time() + 0.12
    while time.thread_time() < until:
        for _ in range(3000):
            pass
    truth.taken["body"] = [(time.perf_counter() - began) * 1000]


def test_a_loop_in_a_coroutines_own_body(engine: Any) -> None:
    found = watch(body_loop, engine)
    own = one(found, ".body_loop")
    assert own.own_code
    assert not own.is_c_call
    assert close_to(own, "body"), (own, truth.taken)
    assert len(found) == 1


async def waits() -> None:
    await asyncio.sleep(0.15)


def test_waiting_is_never_told(engine: Any) -> None:
    assert watch(waits, engine) == []


def short_call() -> None:
    time.sleep(2 * MS)


async def many_short_calls() -> None:
    for _ in range(60):
        short_call()


def test_many_short_calls_are_not_claimed_to_be_one(engine: Any) -> None:
    found = watch(many_short_calls, engine)
    for info in found:
        assert info.own_code or info.calls == "one or several from the same line", info
    assert found, "the coroutine itself took long"


def test_short_calls_are_not_told(engine: Any) -> None:
    async def program() -> None:
        for _ in range(10):
            time.sleep(10 * MS)
            await asyncio.sleep(0.001)

    assert watch(program, engine) == []


def yields_slowly() -> Iterator[int]:
    for number in range(2):
        truth(f"resumption {number}", lambda: time.sleep(80 * MS))
        yield number


def test_generators(engine: Any) -> None:
    found = named(watch(lambda: list(yields_slowly()), engine), ".yields_slowly")
    assert found
    if engine == "exact":  # each resumption
        assert [close_to(info, f"resumption {number}") for number, info in enumerate(found)] == [True, True]


def test_excluded_and_included_paths(engine: Any) -> None:
    found = watch(outer, engine, exclude_paths=["test_calls"])
    assert found == []
    found = watch(outer, engine, include_paths=["test_calls"])
    assert named(found, ".outer")
    assert watch(outer, engine, include_paths=["nowhere"]) == []


def test_a_library_call_is_told_at_the_line_that_made_it(engine: Any) -> None:
    async def program() -> None:
        threading.Event().wait(0.1)

    found = watch(program, engine)
    lock = one(found, "acquire")
    assert lock.is_c_call
    assert lock.file == __file__
    assert lock.line == program.__code__.co_firstlineno + 1
    if engine == "sample":
        assert lock.cause is Cause.LOCK


def test_callbacks_of_the_loop(engine: Any) -> None:
    async def program() -> None:
        asyncio.get_running_loop().call_soon(sleep_100)
        await asyncio.sleep(0.01)

    assert close_to(one(watch(program, engine), ".sleep_100"), "sleep")


def test_a_loop_in_another_thread_that_starts_later(engine: Any) -> None:
    found: list[BlockingCallInfo] = []
    threads = []

    def told(info: BlockingCallInfo) -> None:
        found.append(info)
        threads.append(threading.current_thread().name)

    async def program() -> None:
        sleep_100()
        await asyncio.sleep(0)

    monitor = EventLoopMonitor(on_blocking_call=told, engine=engine)
    monitor.activate()
    try:
        thread = threading.Thread(target=lambda: asyncio.run(program()), name="other")
        thread.start()
        thread.join()
    finally:
        monitor.deactivate()
    assert one(found, "time.sleep").thread == "other"
    assert set(threads) == {"other"}


def test_uvloop(engine: Any) -> None:
    uvloop = pytest.importorskip("uvloop")
    found: list[BlockingCallInfo] = []

    async def program() -> None:
        await asyncio.sleep(0.01)
        sleep_100()
        await asyncio.sleep(0.01)

    loop = uvloop.new_event_loop()
    with event_loop_monitor_ctx(on_blocking_call=found.append, engine=engine):
        loop.run_until_complete(program())
    loop.close()
    assert {info.method_name.rpartition(".")[2] for info in found} >= {"sleep", "sleep_100"}


def test_nested_scopes_tell_once(engine: Any) -> None:
    found: list[BlockingCallInfo] = []

    async def main() -> None:
        with event_loop_monitor_ctx(on_blocking_call=found.append, engine=engine) as first:
            with event_loop_monitor_ctx(on_blocking_call=found.append, engine=engine) as second:
                assert first is second
                sleep_100()
                await asyncio.sleep(0)
            assert first is not None
            assert first.is_active
        assert not first.is_active

    asyncio.run(main())
    assert len(named(found, "time.sleep")) == 1


def test_disabled_does_nothing() -> None:
    with event_loop_monitor_ctx(enabled=False) as monitor:
        assert monitor is None


def test_a_failing_callback_never_reaches_the_program(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("sys.unraisablehook", lambda hook: seen.append(hook.exc_type))

    def fails(info: BlockingCallInfo) -> None:
        raise KeyError(info)

    async def main() -> None:
        with event_loop_monitor_ctx(on_blocking_call=fails, engine=engine):
            sleep_100()
            await asyncio.sleep(0)

    asyncio.run(main())
    assert seen == [KeyError, KeyError]


def test_the_default_is_a_warning(engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        monitor = EventLoopMonitor(engine=engine)
        monitor.activate()
        monitor.activate()
        assert monitor.is_active
        sleep_100()
        await asyncio.sleep(0)
        monitor.deactivate()
        monitor.deactivate()
        assert not monitor.is_active

    asyncio.run(main())
    lines = [record.getMessage() for record in caplog.records if record.name == "loopwatch"]
    assert any("time.sleep took " in line and "test_calls.py" in line for line in lines), lines


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"threshold_ms": 0}, ValueError, "above 0"),
        ({"threshold_ms": "fast"}, TypeError, "number of milliseconds"),
        ({"include_paths": "src"}, TypeError, "list of substrings"),
        ({"exclude_paths": [3]}, TypeError, "substrings of paths"),
        ({"on_blocking_call": 3}, TypeError, "callable"),
        ({"engine": "magic"}, ValueError, '"sample" or "exact"'),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        EventLoopMonitor(**settings)


@pytest.mark.parametrize("wrap", [lambda function: function, functools.partial])
def test_a_c_function_that_the_loop_calls_by_itself(engine: Any, wrap: Callable[[Any], Any]) -> None:
    async def program() -> None:
        asyncio.get_running_loop().call_soon(wrap(time.sleep), 0.15)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    info = one(watch(program, engine), "time.sleep")
    assert info.is_c_call and info.file is None and info.line is None and not info.own_code
    assert 148 <= info.duration_ms <= 150 + info.precision_ms + 20
    assert watch(program, engine, include_paths=["orders"]) == []


def test_a_long_method_of_an_object_that_the_loop_calls_by_itself(engine: Any) -> None:
    numbers = list(range(400_000)) * 8

    async def program() -> None:
        asyncio.get_running_loop().call_soon(numbers.index, -1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def quiet() -> None:
        with contextlib.suppress(ValueError):
            numbers.index(-1)

    info = one(watch(program, engine, threshold_ms=10), "list.index")
    assert info.is_c_call and info.file is None
    assert one(watch(quiet, engine, threshold_ms=10), "index").file == __file__


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="one profile function a thread: 3.11 only")
def test_what_a_tool_saved_and_puts_back_takes_its_place_again() -> None:
    async def program() -> None:
        saved = sys.getprofile()
        sys.setprofile(lambda *event: None)
        sys.setprofile(saved)
        await asyncio.sleep(0)
        time.sleep(0.08)

    assert one(watch(program, "exact"), "time.sleep").is_c_call
    assert sys.getprofile() is None


def test_calls_are_told_beside_a_monitor(engine: Any) -> None:
    """A Monitor has callbacks run by a function of its own."""
    from loopwatch.monitor import Monitor

    async def program() -> None:
        time.sleep(0.08)
        asyncio.get_running_loop().call_soon(time.sleep, 0.12)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with Monitor(interval=60):
        found = watch(program, engine)
    assert [info.file for info in named(found, "time.sleep")] == [__file__, None]


def test_a_callback_of_asyncio_that_waits_is_no_c_function() -> None:
    """``Python`` code that the loop runs on its own behalf, and callbacks that are over, are not blamed for the GIL."""
    over = threading.Event()

    def hog() -> None:
        while not over.is_set():
            sum(range(2_000_000))

    async def program() -> None:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        thread = threading.Thread(target=hog, name="hog")
        thread.start()
        for _ in range(20):
            loop.call_soon_threadsafe(woken.set)
            await woken.wait()
            woken.clear()
        over.set()
        thread.join()

    assert [str(info) for info in watch(program, "sample", threshold_ms=10) if info.file is None] == []


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as in a program begun at a terminal: a shell's background job is born ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_telling_is_the_programs(engine: Any) -> None:
    def tells(info: BlockingCallInfo) -> None:
        signal.raise_signal(signal.SIGINT)
        for _ in range(1000):  # until the signal's handler has its turn
            pass

    async def main() -> None:
        with event_loop_monitor_ctx(50, on_blocking_call=tells, engine=engine):
            await asyncio.sleep(0)
            time.sleep(0.08)
            await asyncio.sleep(0)
            await asyncio.sleep(0.5)

    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())
    loop.close()


def test_nothing_is_told_as_a_c_function_that_is_none() -> None:
    async def program() -> None:
        big = [str(number) for number in range(3_000_000)]
        await asyncio.sleep(0)
        del big
        await asyncio.sleep(0)

    assert not named(watch(program, "sample", threshold_ms=10), "big")
