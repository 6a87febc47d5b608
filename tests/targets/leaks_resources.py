"""Programs that forget one thing each, and programs that forget nothing, for the guards of resources.

A leaking program is a coroutine function that takes a list in which it may keep objects alive; the line to be named in
the report is marked ``# culprit:<name of the function>``.  ``LEAKS`` says by which guard it is found, under which name,
and what the report has to say; ``CLEAN`` are those that every guard has to let pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import os
import re
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

Keep = list[Any]
Program = Callable[[Keep], Awaitable[None]]


@dataclass(frozen=True)
class Truth:
    """What is true of a leaking program."""

    program: Program
    guard: str
    name: str  # a regular expression for the finding's whole name
    says: tuple[str, ...] = ()  # parts of the report
    count: int = 1
    has_place: bool = True  # on uvloop, C opens sockets: no line is known
    by_c: bool = False  # C opens it, on every loop
    only: str = ""  # the only loop on which it leaks


LEAKS: dict[str, Truth] = {}
CLEAN: dict[str, Program] = {}


def leaks(guard: str, name: str, *says: str, **more: Any) -> Callable[[Program], Program]:
    def register(program: Program) -> Program:
        LEAKS[program.__name__] = Truth(program, guard, name, says, **more)
        return program

    return register


def clean(program: Program) -> Program:
    CLEAN[program.__name__] = program
    return program


def close_all(keep: Keep) -> None:
    """Close what a leaking program kept, so that the test itself leaks nothing."""
    for one in reversed(keep):
        if isinstance(one, int):
            with contextlib.suppress(OSError):
                os.close(one)
        elif isinstance(one, subprocess.Popen):
            with contextlib.suppress(ProcessLookupError):
                one.kill()
            one.wait()
        elif isinstance(one, multiprocessing.process.BaseProcess):
            one.kill()
            one.join()
        else:
            end = getattr(one, "shutdown", None) if not isinstance(one, socket.socket) else None
            end = end or getattr(one, "cancel", None) or getattr(one, "close", None)
            if callable(end):
                end()
    keep.clear()


# --- async generators ---


async def numbers() -> AsyncIterator[int]:
    data = list(range(1000))
    try:
        for number in data:
            yield number  # culprit:suspended
            await asyncio.sleep(0)
    finally:
        data.clear()


@leaks("no_async_generator_leaks", "numbers", "suspended", "aclose()")
async def generator_kept(keep: Keep) -> None:
    generator = numbers()
    keep.append(generator)
    async for number in generator:  # culprit:generator_kept
        if number >= 10:
            break


@leaks("no_async_generator_leaks", "numbers", "finalised by the garbage collector, not by its user")
async def generator_dropped(keep: Keep) -> None:
    """Seed 001, pattern 3: only a part is consumed."""
    count = 0
    generator = numbers()
    async for _ in generator:  # culprit:generator_dropped
        count += 1
        if count >= 10:
            break


@leaks("no_async_generator_leaks", "numbers", "suspended")
async def generator_asked_once(keep: Keep) -> None:
    generator = numbers()
    keep.append(generator)
    await anext(generator)  # culprit:generator_asked_once


@clean
async def generator_exhausted(keep: Keep) -> None:
    keep.append([number async for number in numbers()])


@clean
async def generator_closed(keep: Keep) -> None:
    async with contextlib.aclosing(numbers()) as generator:
        async for number in generator:
            if number >= 10:
                break


@clean
async def generator_never_begun(keep: Keep) -> None:
    keep.append(numbers())


@clean
async def generator_as_context_manager(keep: Keep) -> None:
    @contextlib.asynccontextmanager
    async def resource() -> AsyncIterator[int]:
        yield 1

    async with resource():
        await asyncio.sleep(0)
    with contextlib.suppress(KeyError):
        async with resource():
            raise KeyError


# --- timers ---


@leaks("no_timer_leaks", "forgotten", "Due: in ")
async def timer_left(keep: Keep) -> None:
    def forgotten() -> None:
        raise AssertionError("not within the test")

    keep.append(asyncio.get_running_loop().call_later(100, forgotten))  # culprit:timer_left


@leaks("no_timer_leaks", "Cache.expire", "Due: in 1000 s")
async def timer_of_a_method(keep: Keep) -> None:
    class Cache:
        def expire(self, number: int) -> None:
            raise AssertionError("not within the test")

    loop = asyncio.get_running_loop()
    keep.append(loop.call_at(loop.time() + 1000, functools.partial(Cache().expire, 1)))  # culprit:timer_of_a_method


class LeakyConnection:
    """Seed 001, pattern 2: the loop's timer holds it, and it asks for the next."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.data: list[str] = []
        self.handle: asyncio.TimerHandle | None = None
        self.handler = lambda: self.process_data()
        self.loop.call_soon(self.handler)

    def process_data(self) -> None:
        self.data.append("data")
        self.handle = self.loop.call_later(0.005, self.handler)  # culprit:timer_again

    def cancel(self) -> None:
        if self.handle is not None:
            self.handle.cancel()


@leaks("no_timer_leaks", "<lambda>", "Schedules itself again: yes, ", "times", count=3)
async def timer_again(keep: Keep) -> None:
    keep += [LeakyConnection(asyncio.get_running_loop()) for _ in range(3)]
    await asyncio.sleep(0.05)


@clean
async def timers_of_tasks(keep: Keep) -> None:
    keep.append(asyncio.ensure_future(asyncio.sleep(100)))
    await asyncio.wait({keep[0]}, timeout=0.001)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.001)
    async with asyncio.timeout(100):
        await asyncio.sleep(0.001)
    keep.pop().cancel()
    await asyncio.sleep(0)


@clean
async def timers_done_and_cancelled(keep: Keep) -> None:
    loop = asyncio.get_running_loop()
    keep.append(loop.call_later(100, print, 1))
    keep[0].cancel()
    ran = asyncio.Event()
    keep.append(loop.call_later(0.001, ran.set))
    await ran.wait()


@clean
async def timer_due_soon(keep: Keep) -> None:
    keep.append(asyncio.get_running_loop().call_later(0.02, int))


# --- descriptors ---


@leaks("no_descriptor_leaks", r".*\.log", "What: file", "Owner: io.TextIOWrapper object", "a list")
async def file_left(keep: Keep) -> None:
    directory = tempfile.mkdtemp()
    keep.append(open(os.path.join(directory, "some.log"), "w"))  # culprit:file_left


@leaks("no_descriptor_leaks", "/etc/.*", "no Python object shows this number: code that knows it")
async def number_lost(keep: Keep) -> None:
    keep.append(os.open("/etc/passwd", os.O_RDONLY))  # culprit:number_lost


@leaks("no_descriptor_leaks", r"listening socket 127\.0\.0\.1:\d+", "Owner: socket.socket object")
async def listener_left(keep: Keep) -> None:
    listener = socket.socket()  # culprit:listener_left
    keep.append(listener)
    listener.bind(("127.0.0.1", 0))
    listener.listen()


@leaks(
    "no_descriptor_leaks",
    r".*/a\.db",
    "a C library such as SQLite may own it: close its connection",
    has_place=False,
    by_c=True,
)
async def database_left(keep: Keep) -> None:
    keep.append(sqlite3.connect(os.path.join(tempfile.mkdtemp(), "a.db")))  # culprit:database_left


@leaks("no_descriptor_leaks", r"listening socket 127\.0\.0\.1:\d+", "Owner: ", " object\n")
async def server_left(keep: Keep) -> None:
    keep.append(await asyncio.start_server(print, "127.0.0.1", 0))  # culprit:server_left


@leaks(
    "no_descriptor_leaks",
    r"socket 127\.0\.0\.1:\d+ -> 127\.0\.0\.1:\d+",
    "transport that is open",
    "Peer: 127",
    has_place=False,
)
async def connection_left(keep: Keep) -> None:
    _reader, writer = await asyncio.open_connection(*LISTENER[0].getsockname())  # culprit:connection_left
    keep.append(writer)


LISTENER: list[socket.socket] = []


@leaks("no_descriptor_leaks", "Unix socket", "What: socket", count=2)
async def pair_left(keep: Keep) -> None:
    keep += socket.socketpair()  # culprit:pair_left


@leaks("no_descriptor_leaks", "pipe", "What: pipe", count=2)
async def pipe_left(keep: Keep) -> None:
    keep += os.pipe()  # culprit:pipe_left


@leaks("no_descriptor_leaks", "eventfd", "What: eventfd")
async def eventfd_left(keep: Keep) -> None:
    keep.append(os.eventfd(0))  # culprit:eventfd_left


@leaks("no_descriptor_leaks", r"/etc/passwd", "Descriptor: ")
async def number_reused(keep: Keep) -> None:
    """Another file under the number of one that was open before."""
    os.close(NUMBER_REUSED[0])
    again = os.open("/etc/passwd", os.O_RDONLY)  # culprit:number_reused
    assert again == NUMBER_REUSED[0]
    keep.append(again)


NUMBER_REUSED: list[int] = []


@clean
async def files_closed(keep: Keep) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
    for number in (*os.pipe(), os.dup(0), os.eventfd(0)):
        os.close(number)
    with select.epoll():
        pass


@clean
async def streams_closed(keep: Keep) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        writer.close()  # the transport closes its socket in a later iteration


# --- child processes ---


@leaks("no_process_leaks", "sleep", "State: running", "Owner: subprocess.Popen object", "Command: sleep 60")
async def child_runs(keep: Keep) -> None:
    keep.append(subprocess.Popen(["sleep", "60"]))  # culprit:child_runs


@leaks("no_process_leaks", ".*", "zombie", "with status 3")
async def child_not_reaped(keep: Keep) -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(3)"])  # culprit:child_not_reaped
    keep.append(child)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


@leaks("no_process_leaks", ".*", "zombie", "signal 9")
async def child_killed(keep: Keep) -> None:
    child = subprocess.Popen(["sleep", "60"])  # culprit:child_killed
    keep.append(child)
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


@leaks("no_process_leaks", "counter", "multiprocessing", "running")
async def worker_left(keep: Keep) -> None:
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=signal.pause, name="counter", daemon=True)
    keep.append(worker)
    worker.start()  # culprit:worker_left


@clean
async def children_reaped(keep: Keep) -> None:
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()
    subprocess.run(["true"], check=True)
    subprocess.Popen(["true"]).wait()


# --- event loops ---


@leaks("no_loop_leaks", "asyncio .*EventLoop", "not closed", "a list")
async def loop_left(keep: Keep) -> None:
    keep.append(asyncio.SelectorEventLoop())  # culprit:loop_left


@leaks("no_loop_leaks", "asyncio .*EventLoop", "not closed")
async def loop_left_after_use(keep: Keep) -> None:
    def use() -> None:
        loop = asyncio.SelectorEventLoop()  # culprit:loop_left_after_use
        keep.append(loop)
        loop.run_until_complete(asyncio.sleep(0))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()


@leaks("no_loop_leaks", "uvloop Loop", "not closed", has_place=False, only="uvloop")
async def uvloop_left(keep: Keep) -> None:
    import uvloop

    keep.append(uvloop.new_event_loop())  # culprit:uvloop_left


@clean
async def loops_closed(keep: Keep) -> None:
    asyncio.SelectorEventLoop().close()
    thread = threading.Thread(target=lambda: asyncio.run(asyncio.sleep(0)))
    thread.start()
    thread.join()


# --- executors ---


@leaks("no_executor_leaks", "ThreadPoolExecutor", "1 worker thread", "a list")
async def pool_left(keep: Keep) -> None:
    pool = ThreadPoolExecutor(3)  # culprit:pool_left
    keep.append(pool)
    await asyncio.get_running_loop().run_in_executor(pool, int)


@leaks("no_executor_leaks", "ThreadPoolExecutor 'named'", "1 worker thread", "2 jobs queued")
async def pool_busy(keep: Keep) -> None:
    pool = ThreadPoolExecutor(1, "named")  # culprit:pool_busy
    release, begun = threading.Event(), threading.Event()
    keep += [pool, Release(release)]
    pool.submit(lambda: (begun.set(), release.wait()))
    await asyncio.to_thread(begun.wait)
    pool.submit(int)
    pool.submit(int)


class Release:
    """Lets a worker go when the test is over."""

    def __init__(self, event: threading.Event) -> None:
        self.close = event.set


@leaks("no_executor_leaks", "ProcessPoolExecutor", "1 worker process")
async def processes_left(keep: Keep) -> None:
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))  # culprit:processes_left
    keep.append(pool)
    await asyncio.get_running_loop().run_in_executor(pool, int)


@clean
async def pools_shut_down(keep: Keep) -> None:
    with ThreadPoolExecutor() as pool:
        pool.submit(int).result()
    ThreadPoolExecutor(7).shutdown()
    keep.append(ThreadPoolExecutor())  # never used: it has no worker
    await asyncio.to_thread(int)  # the loop's own
    await asyncio.get_running_loop().run_in_executor(None, int)


@clean
async def pool_dropped(keep: Keep) -> None:
    """Its workers end with it."""
    ThreadPoolExecutor().submit(int).result()


def matches(truth: Truth, name: str) -> bool:
    return re.search(f"(?:^|<locals>[.]){truth.name}$", name) is not None
