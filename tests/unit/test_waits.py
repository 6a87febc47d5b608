"""What a suspended task is said to wait for, on asyncio's loop and on uvloop's, from programs with a known answer."""

import asyncio
import pickle
import re
import socket
import subprocess
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import uvloop

from loopwatch import _core
from loopwatch.leaks.waits import Wait, quiescent, stuck, wait_of

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Any:
    def run(main: Callable[[], Any]) -> Any:
        async def clean() -> Any:
            try:
                return await main()
            finally:
                tasks = asyncio.all_tasks() - {asyncio.current_task()}
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(clean())

    return run


async def settled(coro: Any, name: str = "worker") -> Wait:
    """What a task waits for once it has come to rest, proved to survive pickling."""
    task = coro if isinstance(coro, asyncio.Task) else asyncio.get_running_loop().create_task(coro, name=name)
    for _ in range(5):
        await asyncio.sleep(0)
    wait = wait_of(task)
    assert pickle.loads(pickle.dumps(wait)) == wait
    return wait


def names(wait: Wait) -> list[str]:
    return [frame.qualname.rpartition(">.")[2] for frame in wait.frames]


async def wait(future: Any) -> Any:
    return await future


async def inner() -> None:
    await asyncio.sleep(10)


async def middle() -> None:
    await inner()


async def outer() -> None:
    await middle()


def test_the_whole_chain_and_the_timer(run: Any) -> None:
    async def main() -> Wait:
        return await settled(outer())

    found = run(main)
    assert names(found) == ["outer", "middle", "inner", "sleep"]
    first = outer.__code__.co_firstlineno
    assert found.frames[0].lineno == first + 1 and found.frames[0].line == "await middle()"
    assert found.kind == "timer" and 9.0 < found.detail["due"] < 10.1
    assert found.text == f"waits for a timer due in {found.detail['due']:.1f} s"


class Custom:
    def __await__(self) -> Any:
        yield from inner().__await__()


@types.coroutine
def old_style() -> Any:
    yield from Custom().__await__()


async def numbers() -> AsyncIterator[int]:
    await old_style()
    yield 1


async def through_a_loop() -> None:
    async for _ in numbers():
        pass


async def through_anext() -> None:
    await anext(numbers(), None)


@pytest.mark.parametrize("function", [through_a_loop, through_anext])
def test_every_kind_of_link(run: Any, function: Any) -> None:
    async def main() -> Wait:
        return await settled(function())

    expected = [function.__name__, "numbers", "old_style", "Custom.__await__", "inner", "sleep"]
    assert names(run(main)) == expected


def test_things_shared_by_tasks(run: Any) -> None:
    async def main() -> dict[str, Wait]:
        queue: asyncio.Queue[int] = asyncio.Queue()
        full: asyncio.Queue[int] = asyncio.Queue(1)
        full.put_nowait(1)
        lock, condition, barrier = asyncio.Lock(), asyncio.Condition(), asyncio.Barrier(3)
        await lock.acquire()

        async def notified() -> None:
            async with condition:
                await condition.wait()

        for _ in range(2):
            asyncio.get_running_loop().create_task(queue.get())
        return {
            "get": await settled(queue.get()),
            "put": await settled(full.put(2)),
            "join": await settled(full.join()),
            "lock": await settled(lock.acquire()),
            "semaphore": await settled(asyncio.Semaphore(0).acquire()),
            "event": await settled(asyncio.Event().wait()),
            "condition": await settled(notified()),
            "barrier": await settled(barrier.wait()),
        }

    found = run(main)
    assert {key: wait.text for key, wait in found.items()} == {
        "get": "waits for an item in an empty asyncio.Queue (2 others wait too)",
        "put": "waits for room in a full asyncio.Queue of 1",
        "join": "waits for the items of an asyncio.Queue to be done (1 are not)",
        "lock": "waits for a locked asyncio.Lock",
        "semaphore": "waits for an asyncio.Semaphore at zero to be released",
        "event": "waits for an asyncio.Event to be set",
        "condition": "waits for an asyncio.Condition to be notified",
        "barrier": "waits at an asyncio.Barrier, where 1 of 3 have come",
    }
    assert found["get"].detail["waiters"] == 2 and found["put"].detail["size"] == 1
    kinds = ["queue", "queue", "queue", "lock", "semaphore", "event", "condition", "barrier"]
    assert [wait.kind for wait in found.values()] == kinds


def test_tasks_are_followed_and_named(run: Any) -> None:
    async def main() -> dict[str, Wait]:
        create = asyncio.get_running_loop().create_task
        writer = create(inner(), name="db-writer")

        async def gathers() -> None:
            await asyncio.gather(writer, create(asyncio.sleep(0), name="quick"), create(inner(), name="slow"))

        async def groups() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(inner(), name="b")
                group.create_task(inner(), name="a")

        async def shields() -> None:
            await asyncio.shield(writer)

        async def waits() -> None:
            await asyncio.wait([writer], return_when="FIRST_COMPLETED")

        async def with_timeout() -> None:
            await asyncio.wait_for(writer, 5)

        return {
            "task": await settled(wait(writer)),
            "gather": await settled(gathers()),
            "task_group": await settled(groups()),
            "shield": await settled(shields()),
            "wait": await settled(waits()),
            "wait_for": await settled(with_timeout()),
        }

    found = run(main)
    timer = r"waits for a timer due in \d+.\d s"
    for key, pattern in {
        "task": "waits for task 'db-writer', which " + timer,
        "gather": "waits for 2 of 3 gathered tasks, 'db-writer', 'slow'; the first, 'db-writer', " + timer,
        "task_group": "waits for 2 tasks of its task group, 'a', 'b'; the first, 'a', " + timer,
        "shield": "waits for shielded task 'db-writer', which " + timer,
        "wait": "waits for the first of 1 tasks, 'db-writer', which " + timer,
        "wait_for": r"waits for task 'db-writer'( \(asyncio.timeout ends it in .*\)| for at most .* more)?, which "
        + timer,
    }.items():
        assert re.fullmatch(pattern, found[key].text), found[key].text
        assert names(found[key])[-2:] == ["inner", "sleep"]
    assert found["gather"].detail["done"] == 1 and found["gather"].detail["total"] == 3


def test_tasks_in_a_circle_end() -> None:
    async def main() -> str:
        box: list[Any] = []

        async def first() -> None:
            await asyncio.wait([box[1]])

        async def second() -> None:
            await asyncio.wait([box[0]])

        create = asyncio.get_running_loop().create_task
        box += [create(first(), name="first"), create(second(), name="second")]
        return (await settled(box[0])).text

    assert asyncio.run(main()).endswith("'first', which waits for this very task")


def test_sockets(run: Any) -> None:
    async def main() -> Any:
        def silent(reader: Any, writer: Any) -> None:
            writers.append(writer)

        writers: list[Any] = []
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        peer = "{}:{}".format(*server.sockets[0].getsockname())
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        found = await settled(reader.read(1))
        fd = writer.get_extra_info("socket").fileno()
        writer.close()
        for other in writers:
            other.close()
        server.close()
        return found, peer, fd

    found, peer, fd = run(main)
    assert found.text == f"waits for data from {peer} on socket fd {fd}"
    assert (found.kind, found.detail["fd"], found.detail["peer"], found.detail["direction"]) == (
        "socket",
        fd,
        peer,
        "read",
    )


def test_sockets_used_directly() -> None:
    async def main() -> tuple[Wait, Wait, int]:
        loop = asyncio.get_running_loop()
        with socket.socket() as listening, socket.socket() as client:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            listening.setblocking(False)
            accept = loop.create_task(loop.sock_accept(listening))
            found = await settled(accept)
            client.setblocking(False)
            await loop.sock_connect(client, listening.getsockname())
            connection, _ = await accept
            reading = loop.create_task(loop.sock_recv(client, 1))
            second = await settled(reading)
            reading.cancel()
            connection.close()
            return found, second, client.fileno()

    accepting, reading, fd = asyncio.run(main())
    assert accepting.text.startswith(f"waits for a connection to {accepting.detail['local']} on socket fd ")
    assert reading.text == f"waits for data from {accepting.detail['local']} on socket fd {fd}"


def work(done: threading.Event) -> None:
    done.wait(20)


def test_executors_and_threads(run: Any) -> None:
    async def main() -> dict[str, Wait]:
        loop, done = asyncio.get_running_loop(), threading.Event()
        with ThreadPoolExecutor(1, "pool") as pool:
            try:
                running = loop.create_task(wait(loop.run_in_executor(pool, work, done)))
                return {
                    "running": await settled(running),
                    "queued": await settled(wait(loop.run_in_executor(pool, work, done))),
                    "thread": await settled(asyncio.to_thread(work, done)),
                }
            finally:
                done.set()

    found = run(main)
    function = f"{__name__}.work"
    assert found["running"].text.startswith(f"waits for the executor job {function}, which runs")
    assert found["queued"].text == f"waits for the executor job {function}, which has not begun"
    assert found["thread"].text.startswith(f"waits for {function} in a thread, which runs")
    assert [wait.kind for wait in found.values()] == ["executor", "executor", "thread"]


def test_processes(run: Any) -> None:
    async def main() -> tuple[Wait, int]:
        process = await asyncio.create_subprocess_exec("sleep", "20")
        try:
            return await settled(process.wait()), process.pid
        finally:
            process.kill()
            await process.wait()

    found, pid = run(main)
    assert (found.kind, found.text) == ("process", f"waits for process {pid} to end")


def test_timers_timeouts_and_bare_futures(run: Any) -> None:
    async def main() -> tuple[Wait, Wait, Wait]:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_later(6, future.set_result, None)

        async def limited() -> None:
            async with asyncio.timeout(7):
                await loop.create_future()

        return await settled(wait(future)), await settled(wait(loop.create_future())), await settled(limited())

    timer, bare, limited = run(main)
    assert timer.kind == "timer" and 5 < timer.detail["due"] < 6.1
    assert bare.kind == "future" and bare.text.startswith("waits for a future ")
    assert limited.text.endswith("(asyncio.timeout ends it in 7.0 s)") and 6 < limited.detail["deadline"] < 7.01


def test_states_of_tasks_that_do_not_wait(run: Any) -> None:
    async def main() -> list[str]:
        fresh = asyncio.get_running_loop().create_task(inner())
        current: Any = asyncio.current_task()
        kinds = [wait_of(fresh).text, wait_of(current).kind]
        future = asyncio.get_running_loop().create_future()
        woken = asyncio.get_running_loop().create_task(wait(future))
        await asyncio.sleep(0)
        future.set_result(1)
        kinds.append(wait_of(woken).text)
        await woken
        return [*kinds, wait_of(woken).kind]

    assert run(main) == ["has not begun: it is ready to run", "running", "is ready to run", "done"]


def test_a_task_of_a_closed_loop() -> None:
    loop = asyncio.new_event_loop()
    task = loop.create_task(inner())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert wait_of(task).text == "can never run again: its event loop is closed"
    task._log_destroy_pending = False


@pytest.mark.parametrize("wrong", [None, 1, "task", object()])
def test_wrong_arguments_are_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"must be an asyncio\.Task, got"):
        wait_of(wrong)
    with pytest.raises(TypeError, match="expected a task, a coroutine or a generator, got"):
        _core.await_chain(wrong)
    with pytest.raises(TypeError):
        stuck(5)  # type: ignore[arg-type]


def test_compiled_coroutines_are_no_trouble() -> None:
    async def main() -> Wait:
        a, b = socket.socketpair()
        a.setblocking(False)
        with a, b:
            task = asyncio.get_running_loop().create_task(asyncio.get_running_loop().sock_recv(a, 1))
            found = await settled(task)
            task.cancel()
            await asyncio.wait([task])
            return found

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(main())
    assert found.kind == "future" and names(found) == ["Loop.sock_recv"]


def test_sites_are_the_programs_own() -> None:
    async def main() -> tuple[Any, list[int]]:
        create = asyncio.get_running_loop().create_task
        tasks = [create(outer()), create(outer()), create(through_a_loop()), create(inner())]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return _core.await_site(tasks[0]), _core.await_hashes(tasks)

    site, hashes = asyncio.run(main())
    assert site[0][1:3] == ("inner", inner.__code__.co_firstlineno + 1) and site[3] == 4
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3 and 0 not in hashes


# ---- quiescence -------------------------------------------------------------------------------------------------


def judge(prepare: Callable[[asyncio.AbstractEventLoop], Any]) -> str | None:
    async def main() -> str | None:
        task = asyncio.get_running_loop().create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        kept = prepare(asyncio.get_running_loop())
        try:
            return quiescent(asyncio.get_running_loop())
        finally:
            for undo in kept if isinstance(kept, list) else []:
                undo()
            task.cancel()

    return asyncio.run(main())


ALONE = """
import asyncio
from loopwatch.leaks.waits import quiescent

async def main():
    loop = asyncio.get_running_loop()
    task = loop.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    reasons = [quiescent(loop)]
    loop.call_later(5, print).cancel()
    reasons.append(quiescent(loop))
    await asyncio.to_thread(int)
    for _ in range(200):  # the worker goes back to its queue
        if quiescent(loop):
            break
        await asyncio.sleep(0.01)
    reasons.append(quiescent(loop))
    task.cancel()
    print(*reasons, sep="\\n")

asyncio.run(main())
"""


def test_a_loop_with_nothing_left_is_quiescent() -> None:
    """In a process of its own, as no other thread may live; an idle worker and a cancelled timer do not count."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(line.startswith("nothing on this loop can wake it: ") for line in lines)


def a_timer(loop: Any) -> Any:
    loop.call_later(5, print)


def a_callback(loop: Any) -> Any:
    loop.call_soon(int)


def a_reader(loop: Any) -> Any:
    a, b = socket.socketpair()
    loop.add_reader(a, print)
    return [lambda: loop.remove_reader(a), a.close, b.close]


def a_signal_handler(loop: Any) -> Any:
    import signal

    loop.add_signal_handler(signal.SIGUSR2, print)


def a_plain_signal_handler(loop: Any) -> Any:
    import signal

    old = signal.signal(signal.SIGUSR2, lambda *_: None)
    return [lambda: signal.signal(signal.SIGUSR2, old)]


def a_thread(loop: Any) -> Any:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, args=(20,))
    thread.start()
    return [done.set, thread.join]


def a_job(loop: Any) -> Any:
    done = threading.Event()
    loop.run_in_executor(None, done.wait, 20)
    return [done.set]


@pytest.mark.parametrize(
    "what", [a_timer, a_callback, a_reader, a_signal_handler, a_plain_signal_handler, a_thread, a_job]
)
def test_whatever_may_wake_it_counts(what: Any) -> None:
    assert judge(what) is None


def test_other_loops_are_never_called_quiescent() -> None:
    async def main() -> str | None:
        return quiescent(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) is None


def test_proofs_are_for_the_tasks_asked() -> None:
    async def main() -> tuple[dict[Any, str], Any]:
        create = asyncio.get_running_loop().create_task
        tasks = [create(asyncio.Event().wait()), create(asyncio.Event().wait()), create(inner())]
        await asyncio.sleep(0)
        return stuck(tasks[1:]), tasks[1]

    found, expected = asyncio.run(main())
    assert found == {expected: "nothing alive holds the future it waits for: only cancel() can end this"}
