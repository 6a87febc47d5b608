"""Shapes of programs with suspended tasks, and which of these nothing alive can wake.

Each shape is an async function: it starts tasks, and returns what must stay alive.  A task whose name begins with
"stuck" must be proved stuck, one that begins with "live" must not be.
"""

import asyncio
import contextvars
import functools
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Shape = Callable[[], Awaitable[Any]]
SHAPES: dict[str, Shape] = {}
KEEP: list[Any] = []  # a global: what somebody could use later
VAR: contextvars.ContextVar[Any] = contextvars.ContextVar("var")


def shape(function: Shape) -> Shape:
    SHAPES[function.__name__] = function
    return function


def start(name: str, coro: Any) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(coro, name=name)


async def wait(future: Any) -> Any:
    return await future


def new_future() -> Any:
    return asyncio.get_running_loop().create_future()


@shape
async def orphan_future() -> Any:
    return [start("stuck", wait(new_future()))]


@shape
async def orphan_future_task_kept_globally() -> Any:
    KEEP.append(start("stuck", wait(new_future())))


@shape
async def orphan_future_nobody_keeps_the_task() -> Any:
    start("stuck", wait(new_future()))


@shape
async def future_in_a_global() -> Any:
    KEEP.append(new_future())
    return start("live", wait(KEEP[-1]))


@shape
async def future_in_the_callers_variable() -> Any:
    future = new_future()
    return start("live", wait(future)), future


@shape
async def future_in_a_closure() -> Any:
    future = new_future()

    def finish() -> None:
        future.set_result(None)

    return start("live", wait(future)), finish


@shape
async def queue_without_producers() -> Any:
    async def worker(queue: asyncio.Queue[int]) -> None:
        while True:
            await queue.get()

    queue: asyncio.Queue[int] = asyncio.Queue()
    return [start(f"stuck-{n}", worker(queue)) for n in range(3)]


@shape
async def queue_with_a_sleeping_producer() -> Any:
    async def worker(queue: asyncio.Queue[int]) -> None:
        await queue.get()

    async def producer(queue: asyncio.Queue[int]) -> None:
        await asyncio.sleep(60)
        queue.put_nowait(1)

    queue: asyncio.Queue[int] = asyncio.Queue()
    return start("live-worker", worker(queue)), start("live-producer", producer(queue))


@shape
async def full_queue_without_consumers() -> Any:
    async def producer() -> None:
        queue: asyncio.Queue[int] = asyncio.Queue(1)
        while True:
            await queue.put(1)

    return [start("stuck", producer())]


async def hold(lock: Any, inside: Any) -> None:
    async with lock:
        await inside


@shape
async def lock_held_by_a_stuck_task() -> Any:
    lock = asyncio.Lock()
    return [start("stuck-holder", hold(lock, wait(new_future()))), start("stuck-waiter", hold(lock, asyncio.sleep(0)))]


@shape
async def lock_held_by_a_live_task() -> Any:
    lock = asyncio.Lock()
    return [start("live-holder", hold(lock, asyncio.sleep(60))), start("live-waiter", hold(lock, wait(new_future())))]


@shape
async def two_locks_the_wrong_way_round() -> Any:
    async def both(first: asyncio.Lock, second: asyncio.Lock) -> None:
        async with first:
            await asyncio.sleep(0)
            async with second:
                pass

    a, b = asyncio.Lock(), asyncio.Lock()
    return start("stuck-ab", both(a, b)), start("stuck-ba", both(b, a))


@shape
async def sleeping() -> Any:
    return start("live", asyncio.sleep(60))


@shape
async def reading_a_socket() -> Any:
    a, b = socket.socketpair()
    a.setblocking(False)
    return start("live", asyncio.get_running_loop().sock_recv(a, 1)), a, b


@shape
async def reading_a_stream() -> Any:
    a, b = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=a)

    async def read() -> bytes:
        return await reader.read(1)

    task = start("live", read())
    return task, b, writer


@shape
async def executor_job() -> Any:
    return start("live", asyncio.to_thread(time.sleep, 0.2))


@shape
async def own_executors_job() -> Any:
    with_pool = ThreadPoolExecutor(1)

    async def run() -> None:
        await asyncio.get_running_loop().run_in_executor(with_pool, time.sleep, 0.2)

    return start("live", run())


@shape
async def call_later_sets_it() -> Any:
    future = new_future()
    asyncio.get_running_loop().call_later(60, future.set_result, None)
    return start("live", wait(future))


@shape
async def call_later_cancels_the_task() -> Any:
    task = start("live", wait(new_future()))
    asyncio.get_running_loop().call_later(60, task.cancel)
    return [task]


@shape
async def call_later_cancels_all_in_a_set() -> Any:
    def cancel_all(tasks: Any) -> None:
        for task in tasks:
            task.cancel()

    tasks = {start("live", wait(new_future()))}
    asyncio.get_running_loop().call_later(60, functools.partial(cancel_all, tasks))
    return tasks


@shape
async def event_in_a_global() -> Any:
    event = asyncio.Event()
    KEEP.append(event)
    return start("live", event.wait())


@shape
async def event_of_nobody() -> Any:
    return start("stuck", asyncio.Event().wait())


@shape
async def event_in_another_threads_stack() -> Any:
    ready, done = threading.Event(), threading.Event()
    box = [asyncio.Event()]

    def other(loop: Any) -> None:
        event = box.pop()
        ready.set()
        done.wait(20)
        if not loop.is_closed():
            loop.call_soon_threadsafe(event.set)

    task = start("live", box[0].wait())
    thread = threading.Thread(target=other, args=(asyncio.get_running_loop(),))
    thread.start()
    ready.wait(20)
    KEEP.append((done.set, thread.join))
    return task


@shape
async def future_held_by_c_code() -> Any:
    future = new_future()
    holder = functools.lru_cache(maxsize=None)(lambda key: future)
    holder(1)
    KEEP.append(holder)
    return start("live", wait(future))


@shape
async def future_in_an_iterator() -> Any:
    future = new_future()
    KEEP.append(map(abs, iter([future])))
    return start("live", wait(future))


@shape
async def gather_of_stuck_tasks() -> Any:
    children = [start(f"stuck-child{n}", wait(new_future())) for n in range(2)]

    async def parent() -> None:
        await asyncio.gather(*children)

    return [start("stuck-parent", parent())]


@shape
async def gather_with_one_live_child() -> Any:
    async def parent() -> None:
        await asyncio.gather(
            asyncio.create_task(asyncio.sleep(60), name="live-child"),
            asyncio.create_task(wait(new_future()), name="live-sibling"),  # the parent's cancel() reaches it
        )

    return [start("live-parent", parent())]


@shape
async def wait_for_with_a_timeout() -> Any:
    async def parent() -> None:
        await asyncio.wait_for(wait(new_future()), 60)

    return [start("live", parent())]


@shape
async def wait_for_without_a_timeout() -> Any:
    async def parent() -> None:
        await asyncio.wait_for(wait(new_future()), None)

    return [start("stuck", parent())]


@shape
async def under_timeout() -> Any:
    async def body() -> None:
        async with asyncio.timeout(60):
            await new_future()

    return [start("live", body())]


@shape
async def under_a_timeout_without_a_deadline() -> Any:
    async def body() -> None:
        async with asyncio.timeout(None):
            await new_future()

    return [start("stuck", body())]


@shape
async def shielded() -> Any:
    inner = start("stuck-inner", wait(new_future()))

    async def outer() -> None:
        await asyncio.shield(inner)

    return [start("stuck-outer", outer())]


@shape
async def shielded_live() -> Any:
    inner = start("live-inner", asyncio.sleep(60))

    async def outer() -> None:
        await asyncio.shield(inner)

    return [start("live-outer", outer())]


@shape
async def task_group_all_stuck() -> Any:
    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(wait(new_future()), name="stuck-a")
            group.create_task(wait(new_future()), name="stuck-b")

    return [start("stuck-parent", parent())]


@shape
async def task_group_with_a_live_child() -> Any:
    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(wait(new_future()), name="live-by-sibling")
            group.create_task(asyncio.sleep(60), name="live")

    return [start("live-parent", parent())]


@shape
async def condition_of_nobody() -> Any:
    async def body() -> None:
        condition = asyncio.Condition()
        async with condition:
            await condition.wait()

    return [start("stuck", body())]


@shape
async def semaphore_of_stuck_tasks() -> Any:
    semaphore = asyncio.Semaphore(1)
    return [start(f"stuck-{n}", hold(semaphore, wait(new_future()))) for n in range(2)]


@shape
async def semaphore_held_elsewhere() -> Any:
    semaphore = asyncio.Semaphore(0)
    KEEP.append(semaphore)
    return [start("live", semaphore.acquire())]


@shape
async def barrier_of_nobody() -> Any:
    barrier = asyncio.Barrier(3)
    return [start(f"stuck-{n}", barrier.wait()) for n in range(2)]


@shape
async def async_generator() -> Any:
    async def numbers() -> Any:
        yield 1
        await new_future()

    async def consume() -> None:
        async for _ in numbers():
            pass

    return [start("stuck", consume())]


@shape
async def waits_for_a_stuck_task() -> Any:
    inner = start("stuck-inner", wait(new_future()))
    return [start("stuck-outer", wait(inner))]


@shape
async def waits_for_a_live_task() -> Any:
    inner = start("live-inner", asyncio.sleep(60))
    return [start("live-outer", wait(inner))]


@shape
async def asyncio_wait_of_stuck_tasks() -> Any:
    inner = start("stuck-inner", wait(new_future()))

    async def outer() -> None:
        await asyncio.wait([inner])

    return [start("stuck-outer", outer())]


@shape
async def asyncio_wait_with_a_timeout() -> Any:
    async def outer() -> None:
        await asyncio.wait([asyncio.create_task(wait(new_future()), name="live-inner")], timeout=60)

    return [start("live-outer", outer())]


@shape
async def weak_reference_to_the_future() -> Any:
    future = new_future()
    KEEP.append(weakref.ref(future))
    return start("live", wait(future))


@shape
async def weak_value_dictionary() -> Any:
    future = new_future()
    registry = weakref.WeakValueDictionary({1: future})
    KEEP.append(registry)
    return start("live", wait(future))


class Plain:
    pass


@shape
async def callback_of_a_weak_reference_to_something_alive() -> Any:
    thing, future = Plain(), new_future()
    KEEP.append(thing)

    async def body() -> None:
        ref = weakref.ref(thing_box.pop(), lambda _: done(future))
        await future
        del ref

    def done(what: Any) -> None:
        what.set_result(None)

    thing_box = [thing]
    return [start("live", body())]


class SetsOnDel:
    def __init__(self, future: Any) -> None:
        self.future, self.me = future, self

    def __del__(self) -> None:
        if not self.future.done():
            self.future.get_loop().call_soon_threadsafe(self.future.cancel)


@shape
async def garbage_with_a_finalizer() -> Any:
    future = new_future()
    SetsOnDel(future)
    return [start("live", wait(future))]


@shape
async def future_in_a_context_variable() -> Any:
    VAR.set(new_future())
    KEEP.append(contextvars.copy_context())
    return [start("live", wait(VAR.get()))]


@shape
async def attribute_of_the_loop() -> Any:
    loop: Any = asyncio.get_running_loop()
    if not hasattr(loop, "__dict__"):
        return None
    loop.extra = new_future()
    return [start("live", wait(loop.extra))]


@shape
async def attribute_of_a_task() -> Any:
    future = new_future()
    task: Any = start("live", wait(future))
    task.extra = future
    KEEP.append(task)


@shape
async def signal_handler() -> Any:
    event = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, event.set)
    return [start("live", event.wait())]


@shape
async def plain_signal_handler() -> Any:
    event = asyncio.Event()
    old = signal.signal(signal.SIGUSR2, lambda *_: event.set())
    KEEP.append(lambda: signal.signal(signal.SIGUSR2, old))
    return [start("live", event.wait())]


@shape
async def class_attribute() -> Any:
    Plain.future = new_future()  # type: ignore[attr-defined]
    return [start("live", wait(Plain.future))]  # type: ignore[attr-defined]


@shape
async def coroutine_held_elsewhere() -> Any:
    coro = wait(new_future())
    KEEP.append(coro)
    return [start("live", coro)]


@shape
async def live_task_holds_the_task() -> Any:
    async def boss(task: Any) -> None:
        await asyncio.sleep(60)
        task.cancel()

    task = start("live-worker", wait(new_future()))
    return [start("live-boss", boss(task))]


@shape
async def subclass_of_task() -> Any:
    class MyTask(asyncio.Task):  # type: ignore[type-arg]
        pass

    return [MyTask(wait(new_future()), loop=asyncio.get_running_loop(), name="stuck")]


@shape
async def subclass_of_task_with_the_future_in_a_slot() -> Any:
    class Slotted(asyncio.Task):  # type: ignore[type-arg]
        __slots__ = ("mine",)

    future = new_future()
    task: Any = Slotted(wait(future), loop=asyncio.get_running_loop(), name="live")
    task.mine = future
    return [task]


@shape
async def about_to_be_cancelled() -> Any:
    task = start("live", wait(new_future()))
    await asyncio.sleep(0)
    task.get_loop().call_soon(task.cancel)
    KEEP.append("no turn")
    return [task]


@shape
async def not_begun() -> Any:
    await asyncio.sleep(0)
    KEEP.append("no turn")
    return [start("live", wait(new_future()))]


@shape
async def concurrent_future() -> Any:
    import concurrent.futures

    inner: Any = concurrent.futures.Future()
    KEEP.append(inner)
    return [start("live", wait(asyncio.wrap_future(inner)))]


@shape
async def frozen_objects() -> Any:
    import gc

    event = asyncio.Event()
    holder = [event]
    holder.append(holder)  # type: ignore[arg-type]
    task = start("live", event.wait())
    await asyncio.sleep(0)
    gc.freeze()  # the collector shows these no more before 3.15
    KEEP.extend([holder, gc.unfreeze])
    return [task]


if sys.version_info >= (3, 12):

    @shape
    async def eager_task() -> Any:
        async def body() -> None:
            await new_future()

        return [asyncio.Task(body(), loop=asyncio.get_running_loop(), name="stuck", eager_start=True)]
