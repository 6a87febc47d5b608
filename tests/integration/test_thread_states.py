"""What a leaked thread does, told from truth: each thread is brought into a state that we know."""

from __future__ import annotations

import _thread
import concurrent.futures
import ctypes
import logging.handlers
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from loopwatch import _core
from loopwatch.leaks.threads import no_thread_leaks

HERE = __file__


class Blocked:
    """A thread that a test lets go at its end."""

    def __init__(self) -> None:
        self.endings: list[Callable[[], object]] = []
        self.threads: list[threading.Thread] = []

    def start(self, target: Callable[[], object], ending: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=target)
        self.endings.append(ending)
        self.threads.append(thread)
        thread.start()
        return thread


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    blocked = Blocked()
    yield blocked
    for ending in blocked.endings:
        ending()
    for thread in blocked.threads:
        thread.join(20)
        assert not thread.is_alive()


def line_of(mark: str) -> int:
    with open(HERE, encoding="utf-8") as file:
        return next(number for number, line in enumerate(file, 1) if line.rstrip().endswith(f"# {mark}"))


def seen_as(state: str, start: Callable[[], object], **options: Any) -> Any:
    """The finding of the thread that a body starts, looked at until it is in that state."""
    got: list[Any] = []
    scope = _core.ThreadScope()
    with no_thread_leaks(got.extend, grace_period=0, **options):
        start()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            rows = scope.threads()
            if rows and _core.threads_doing([(rows[0][0], rows[0][2])])[0][0] == state:
                break
            time.sleep(0.001)
    scope.close()
    (leak,) = got
    return leak


def check(leak: Any, state: str, what: str, mark: str) -> None:
    assert (leak.state, leak.doing) == (state, f"{what}, {HERE}:{line_of(mark)} in {leak.target}")


def test_lock(blocked: Blocked) -> None:
    lock = threading.Lock()
    lock.acquire()

    def target() -> None:
        lock.acquire()  # lock

    leak = seen_as("lock", lambda: blocked.start(target, lock.release))
    check(leak, "lock", "waits for a lock", "lock")
    assert [frame.lineno for frame in leak.current_stack] == [line_of("lock")]


def test_queue_and_future_and_join(blocked: Blocked) -> None:
    items: queue.Queue[int] = queue.Queue()
    future: concurrent.futures.Future[int] = concurrent.futures.Future()

    def get() -> None:
        items.get()  # queue

    def result() -> None:
        future.result()  # future

    leak = seen_as("lock", lambda: blocked.start(get, lambda: items.put(1)))
    check(leak, "lock", "waits for an item of a Queue", "queue")
    leak = seen_as("lock", lambda: blocked.start(result, lambda: future.set_result(1)))
    check(leak, "lock", "waits for a Future's result", "future")


def test_sleep(blocked: Blocked) -> None:
    def target() -> None:
        time.sleep(1)  # sleep

    leak = seen_as("call", lambda: blocked.start(target, int))
    check(leak, "call", "sleeps (clock_nanosleep)", "sleep")


def test_socket_and_pipe(blocked: Blocked) -> None:
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()

    def receive() -> None:
        theirs.recv(1)  # recv

    def read() -> None:
        os.read(reading, 1)  # read

    leak = seen_as("call", lambda: blocked.start(receive, lambda: ours.send(b"x")))
    number = theirs.fileno()
    check(leak, "call", f"in the system call recvfrom, on descriptor {number} (a socket)", "recv")
    leak = seen_as("call", lambda: blocked.start(read, lambda: os.write(writing, b"x")))
    check(leak, "call", f"in the system call read, on descriptor {reading} (a pipe)", "read")
    blocked.endings.pop()()
    blocked.endings.pop()()
    for thread in blocked.threads:
        thread.join()
    ours.close()
    theirs.close()
    os.close(reading)
    os.close(writing)


def test_python_code(blocked: Blocked) -> None:
    over: list[int] = []

    def target() -> None:
        count = 0
        while not over:
            count += 1

    leak = seen_as("python", lambda: blocked.start(target, lambda: over.append(1)))
    # At the very moment it may hold, want or have just got the GIL; never a lock or a system call.
    assert leak.state in ("python", "c_call", "runs", "gil")
    assert leak.current_stack[-1].name == "target"


@pytest.mark.skipif(_core.LAYOUT != "exact", reason="the GIL cannot be read here")
def test_who_waits_for_the_gil(blocked: Blocked) -> None:
    """Two threads that never let go by themselves: one has the GIL, the other waits for it."""
    over: list[int] = []

    def spin() -> None:
        while not over:
            pass

    with no_thread_leaks(lambda leaks: None, grace_period=0):
        scope = _core.ThreadScope()
        first = blocked.start(spin, lambda: over.append(1))
        second = blocked.start(spin, int)
        natives = {first.native_id, second.native_id}
        for _ in range(1000):
            rows = scope.threads()
            seen = _core.threads_doing([(row[0], row[2]) for row in rows])
            gil = [(row[2], one[3]) for row, one in zip(rows, seen, strict=True) if one[0] == "gil" and one[3]]
            if any({waits, holds} == natives for waits, holds in gil):
                break
        else:
            pytest.fail("never saw one wait for the other")
        scope.close()


def test_c_code_without_the_gil(blocked: Blocked) -> None:
    import hashlib

    over: list[int] = []
    data = bytes(64 << 20)

    def target() -> None:
        while not over:
            hashlib.sha256(data)

    leak = seen_as("runs", lambda: blocked.start(target, lambda: over.append(1)))
    assert leak.state in ("runs", "c_call", "python")
    assert leak.current_stack[-1].name == "target"


def test_event_loop_in_a_thread(blocked: Blocked) -> None:
    import asyncio

    loop = asyncio.new_event_loop()
    leak = seen_as("call", lambda: blocked.start(loop.run_forever, lambda: loop.call_soon_threadsafe(loop.stop)))
    assert leak.doing.startswith("runs an event loop, which waits for I/O (epoll_")
    blocked.endings.pop()()
    blocked.threads[0].join()
    loop.close()


def test_timer_says_when_it_is_due() -> None:
    timer = threading.Timer(60, int)
    leak = seen_as("lock", timer.start)
    timer.cancel()
    timer.join()
    assert re.fullmatch(r"a Timer, due in (5\d|60)\.\d s, which cancel\(\) ends", leak.role)
    assert leak.target == "int"


def test_helpers_of_the_standard_library() -> None:
    listener = logging.handlers.QueueListener(queue.SimpleQueue())
    leak = seen_as("lock", listener.start, exclude_daemon=False)
    assert "stop() of its QueueListener" in leak.role
    listener.stop()


def test_worker_of_a_thread_pool() -> None:
    import multiprocessing.pool

    got: list[Any] = []
    with no_thread_leaks(got.extend, grace_period=0, exclude_daemon=False):
        pool = multiprocessing.pool.ThreadPool(2)
    pool.terminate()
    pool.join()
    roles = sorted(leak.role for leak in got)
    assert len(roles) == 5 and all("terminate(), or `with`, ends it" in role for role in roles)


LIBC = ctypes.CDLL(None, use_errno=True)


class NativeThread:
    """A thread that no Python code knows: it runs a function of the C library, waiting for a semaphore."""

    def __init__(self) -> None:
        self.semaphore = ctypes.create_string_buffer(64)
        assert LIBC.sem_init(self.semaphore, 0, 0) == 0
        self.handle = ctypes.c_ulong()

    def start(self, function: Any = None) -> None:
        routine = function or ctypes.cast(LIBC.sem_wait, ctypes.c_void_p)
        assert LIBC.pthread_create(ctypes.byref(self.handle), None, routine, self.semaphore) == 0

    def end(self) -> None:
        LIBC.sem_post(self.semaphore)
        self.join()

    def join(self) -> None:
        assert LIBC.pthread_join(self.handle, None) == 0


def tasks() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def test_native_threads_on_request_only() -> None:
    before = tasks()
    got: list[Any] = []
    native = NativeThread()
    with no_thread_leaks("raise", grace_period=0), no_thread_leaks(got.extend, grace_period=0, native=True):
        native.start()
        (tid,) = tasks() - before - set(_core.own_tids())
        while _core.threads_doing([(0, tid)])[0][0] != "lock":
            time.sleep(0.001)
    with open(f"/proc/self/task/{tid}/comm", encoding="utf-8") as file:
        comm = file.read().strip()
    native.end()
    (leak,) = got
    assert (leak.name, leak.native_id, leak.ident, leak.role) == (comm, tid, 0, "started by C code")
    assert (leak.state, leak.doing) == ("lock", "waits for a lock")
    assert leak.current_stack is None and leak.creation_stack is None
    assert "not started by Python" in leak.format_creation_stack()


def test_loopwatchs_own_thread_is_none() -> None:
    import asyncio

    from loopwatch import no_event_loop_blocking

    async def main() -> None:
        async with no_thread_leaks("raise", grace_period=0.2, native=True):
            with no_event_loop_blocking():
                await asyncio.sleep(0)

    asyncio.run(main())
    assert _core.own_tids()[0] in tasks()


def test_native_thread_that_calls_python() -> None:
    over, begun = threading.Event(), threading.Event()

    @(
        ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
        if False
        else ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    )
    def called(_argument: int) -> None:
        begun.set()
        over.wait()

    native = NativeThread()
    got: list[Any] = []
    with no_thread_leaks("raise", grace_period=0), no_thread_leaks(got.extend, grace_period=0, native=True):
        native.start(called)
        assert begun.wait(10)
    over.set()
    native.join()
    (leak,) = got
    assert leak.role == "not started by threading"
    assert "called" in [frame.name for frame in leak.current_stack]


PRIVATE = ("_start_new_thread", "_start_joinable_thread")


class TestPatchers:
    """Whoever patches the same functions before, under or after a guard finds them as they were."""

    NAMES = tuple(
        (module, name)
        for module in (_thread, threading)
        for name in (
            "start_new_thread",
            "start_new",
            "start_joinable_thread",
            "_start_new_thread",
            "_start_joinable_thread",
        )
        if hasattr(module, name)
    )

    def here(self) -> list[Any]:
        return [getattr(module, name) for module, name in self.NAMES]

    def place(self) -> tuple[Any, str]:
        return next(place for place in self.NAMES if place[0] is threading)

    def started(self) -> int:
        """Starts a thread; how many frames of its creation are known."""
        over = threading.Event()
        got: list[Any] = []
        with no_thread_leaks(got.extend, grace_period=0):
            thread = threading.Thread(target=over.wait)
            thread.start()
        over.set()
        thread.join()
        return len(got[0].creation_stack or ())

    def test_originals_are_restored(self) -> None:
        before = self.here()
        with no_thread_leaks():
            with no_thread_leaks():
                inside = self.here()
            assert self.here() == inside
        assert self.here() == before
        assert all(hook is not original for hook, original in zip(inside, before, strict=True))
        assert [hook.__self__ for hook in inside] == before
        assert [hook.__name__ for hook in inside] == [original.__name__ for original in before]

    def test_a_guard_that_is_dropped_unhooks(self) -> None:
        before = self.here()
        scope = _core.ThreadScope()
        assert self.here() != before
        del scope
        assert self.here() == before
        scope = _core.ThreadScope()
        scope.close()
        scope.close()
        assert self.here() == before and not scope.open

    def test_patched_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module, name = self.place()
        original, calls = getattr(module, name), []

        def patch(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, patch)
        assert self.started() > 0
        assert len(calls) == 1
        assert getattr(module, name) is patch

    def test_patched_inside_and_left_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module, name = self.place()
        before = getattr(module, name)
        with no_thread_leaks():
            hook = getattr(module, name)

            def patch(*args: Any, **kwargs: Any) -> Any:
                return hook(*args, **kwargs)

            monkeypatch.setattr(module, name, patch)
        assert getattr(module, name) is patch  # not ours any more: left alone
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
        assert self.started() > 0  # hooked over it: one record of the two hooks
        assert getattr(module, name) is patch
        monkeypatch.undo()  # puts our old hook back
        assert getattr(module, name) is hook
        assert self.started() > 0
        assert getattr(module, name) is before

    def test_a_patch_that_returns_no_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for answer in (None, "x", 3, object()):
            monkeypatch.setattr(_thread, "start_new_thread", lambda *args, answer=answer: answer)
            with no_thread_leaks("raise"):
                assert _thread.start_new_thread(int, ()) is answer

    def test_errors_of_the_original_pass(self) -> None:
        with no_thread_leaks("raise"):
            with pytest.raises(TypeError) as hooked:
                _thread.start_new_thread(3, ())  # type: ignore[arg-type]
        with pytest.raises(TypeError) as bare:
            _thread.start_new_thread(3, ())  # type: ignore[arg-type]
        assert str(hooked.value) == str(bare.value)
