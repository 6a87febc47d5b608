"""What keeps an object alive, against programs that hold it in one known way each."""

import asyncio
import collections
import contextvars
import ctypes
import functools
import gc
import inspect
import pickle
import random
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from loopwatch import _core
from loopwatch.memory import Chain, MemoryLeakDetector, held_by

app = types.ModuleType("app")
variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")


class Order:
    pass


class Slotted:
    __slots__ = ("__weakref__", "order")

    def handle(self) -> None: ...


@pytest.fixture(autouse=True)
def _module() -> Iterator[None]:
    sys.modules["app"] = app
    app.__dict__["__name__"] = "app"
    yield
    del sys.modules["app"]
    for name in [name for name in vars(app) if not name.startswith("__")]:
        delattr(app, name)
    sys.modules["app"] = app
    del sys.modules["app"]


def put(holder: object) -> None:
    app.holder = holder  # type: ignore[attr-defined]


def in_slot(order: Order) -> Slotted:
    holder = Slotted()
    holder.order = order
    return holder


def in_instance(order: Order) -> Order:
    holder = Order()
    holder.order = order  # type: ignore[attr-defined]
    return holder


def in_class(order: Order) -> type:
    return type("Shop", (), {"order": order})


def in_closure(order: Order) -> Callable[[], Order]:
    return lambda: order


def in_default(order: Order) -> Callable[..., Order]:
    def serve(order: Order = order) -> Order:
        return order

    return serve


def in_exception(order: Order) -> Exception:
    def fails() -> None:
        held = order
        raise ValueError(type(held))

    try:
        fails()
    except ValueError as error:
        return error
    raise AssertionError


def in_method(order: Order) -> object:
    holder = Slotted()
    holder.order = order
    return holder.handle


def in_generator(order: Order) -> object:
    def numbers(held: Order) -> Iterator[int]:
        yield 1

    generator = numbers(order)
    next(generator)
    return generator


def in_lru_cache(order: Order) -> object:
    box = [order]

    @functools.lru_cache
    def load(key: int) -> Order:
        return box.pop()

    load(7)
    return load


def in_context(order: Order) -> object:
    context = contextvars.copy_context()
    context.run(variable.set, order)
    return context


HOLDERS: list[tuple[str, Callable[[Order], object], str]] = [
    ("global", lambda order: order, "module app -> .holder"),
    ("dict", lambda order: {"order-7": order}, "module app -> dict holder -> key 'order-7'"),
    ("dict of dicts", lambda order: {1: {b"k": order}}, "module app -> dict holder -> key 1 -> key b'k'"),
    ("key", lambda order: {order: 1}, "module app -> dict holder -> as key"),
    ("list", lambda order: [0, 1, order], "module app -> list holder -> index 2"),
    ("tuple", lambda order: ([], order), "module app -> tuple holder -> index 1"),
    ("set", lambda order: {order}, "module app -> set holder -> element"),
    ("deque", lambda order: collections.deque([0, order]), "module app -> .holder (collections.deque) -> index 1"),
    ("slot", in_slot, f"module app -> .holder ({__name__}.Slotted) -> .order"),
    ("attribute", in_instance, f"module app -> .holder ({__name__}.Order) -> .order"),
    ("class", in_class, f"module app -> .holder (class {__name__}.Shop) -> .order"),
    ("closure", in_closure, "module app -> .holder (function in_closure.<locals>.<lambda>) -> closure variable order"),
    (
        "default",
        in_default,
        "module app -> .holder (function in_default.<locals>.serve) -> tuple __defaults__ -> index 0",
    ),
    (
        "partial",
        lambda order: functools.partial(print, order),
        "module app -> .holder (functools.partial) -> tuple args -> index 0",
    ),
    ("method", in_method, "module app -> .holder (method Slotted.handle) -> .__self__"),
    ("generator", in_generator, "module app -> .holder (generator in_generator.<locals>.numbers) -> local held"),
    ("lru_cache", in_lru_cache, "module app -> .holder (functools._lru_cache_wrapper)"),
    ("context", in_context, "module app -> .holder (_contextvars.Context) -> context variable variable"),
    ("py_object", ctypes.py_object, "module app -> .holder (ctypes.py_object) -> ._objects"),
    ("weakref callback", lambda order: weakref.ref(Slotted, functools.partial(print, order)), "-> .__callback__ ("),
]


@pytest.mark.parametrize(("make", "expected"), [entry[1:] for entry in HOLDERS], ids=[entry[0] for entry in HOLDERS])
def test_each_way_to_hold_is_named(make: Callable[[Order], object], expected: str) -> None:
    order = Order()
    put(make(order))
    chain = held_by(order)
    assert chain is not None
    assert chain.kind == "module" and chain.target in (f"{__name__}.Order", "class")
    assert str(chain).startswith(expected) or (expected.startswith("->") and expected in str(chain)), chain
    assert str(chain).endswith(f"{__name__}.Order")


def test_links_are_data_that_holds_nothing() -> None:
    order = Order()
    alive = weakref.ref(order)
    put({"cache": [order]})
    chain = held_by(order)
    assert chain is not None
    assert chain == pickle.loads(pickle.dumps(chain))
    assert [(link.how, link.name, link.type) for link in chain.links] == [
        ("attribute", "holder", "dict"),
        ("key", "'cache'", "list"),
        ("index", "0", f"{__name__}.Order"),
    ]
    del order
    put(None)
    assert alive() is None


def test_exceptions_hold_the_frames_that_raised_them() -> None:
    order = Order()
    put(in_exception(order))
    text = str(held_by(order))
    assert "-> .__traceback__ (" in text and "tb_frame" in text and "local " in text
    put(None)


def test_what_nothing_holds_has_no_chain() -> None:
    order = Order()
    assert held_by(order) is None
    inner = order
    assert inner is order

    def asks(thing: Order) -> Chain | None:
        return held_by(thing)

    def shares() -> Order:  # makes `order` a cell of this function, which only this function holds
        return order

    chain = asks(order)  # the variable of the function that calls the one that asks does count
    assert chain is not None and chain.kind == "frame" and chain.place is not None
    assert chain.place[2] == "test_what_nothing_holds_has_no_chain"
    assert shares() is inner


def test_garbage_is_held_by_nothing() -> None:
    gc.disable()
    try:
        one, other = Order(), Order()
        one.other, other.one = other, one  # type: ignore[attr-defined]
        del one
        assert held_by(other) is None
    finally:
        gc.enable()


def test_a_weak_reference_is_no_holder() -> None:
    order = Order()
    put([weakref.ref(order), weakref.WeakSet([order]), weakref.WeakValueDictionary({1: order})])
    assert held_by(order) is None


def test_the_callers_own_list_counts_only_where_nothing_else_does() -> None:
    order = Order()
    mine = [order]
    chain = held_by(order)
    assert chain is not None and chain.kind == "frame"
    assert "-> local mine -> index 0 ->" in str(chain)
    put({"a": {"b": {"c": order}}})
    assert str(held_by(order)).startswith("module app ->")
    assert mine


def test_a_variable_of_another_thread() -> None:
    ready, end, found = threading.Event(), threading.Event(), []

    def works() -> None:
        hidden = Order()
        found.append(weakref.ref(hidden))
        ready.set()
        end.wait()  # line: waits

    thread = threading.Thread(target=works, name="holder")
    thread.start()
    ready.wait(10)
    order = found[0]()
    chain = held_by(order)
    end.set()
    thread.join()
    assert chain is not None and chain.place is not None
    lines, first = inspect.getsourcelines(works)
    line = first + next(number for number, text in enumerate(lines) if "line: waits" in text)
    assert (chain.kind, chain.thread) == ("frame", "holder")
    assert chain.place == (__file__, line, "test_a_variable_of_another_thread.<locals>.works")
    assert [(link.how, link.name) for link in chain.links] == [("local", "hidden")]


def test_a_reference_that_only_c_code_has() -> None:
    order = Order()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(order))
    try:
        chain = held_by(order)
    finally:
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(order))
    assert chain is not None and chain.kind == "C"
    assert str(chain) == f"C code, or a value in use -> {__name__}.Order"
    assert held_by(order) is None


def test_what_is_not_tracked_is_found_too() -> None:
    text = "a text that is made here, number " + str(random.random())
    put({"a": {"b": ("x", text)}})
    assert str(held_by(text)).startswith("module app -> dict holder -> key 'a' -> key 'b' -> index 1 -> str 'a text")


# --- asyncio ---


async def answer() -> int:
    return 7


async def forever(held: object = None) -> None:
    await asyncio.Event().wait()


def test_a_done_task_in_a_cache() -> None:
    async def main() -> str:
        task = asyncio.create_task(answer(), name="order-7")
        await task
        put({"order-7": task})
        return str(held_by(task))

    text = asyncio.run(main())
    assert text == "module app -> dict holder -> key 'order-7' -> Task 'order-7' (answer, done)"


def test_done_tasks_in_a_global_list_are_named_with_what_they_retain() -> None:
    async def large() -> bytes:
        return bytes(1_000_000)

    async def main() -> None:
        detector = MemoryLeakDetector()
        put([])
        for number in range(3):
            app.holder.append(asyncio.create_task(large(), name=f"job-{number}"))  # type: ignore[attr-defined]
        await asyncio.wait(app.holder)  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        found = detector.retained_tasks()
        assert sorted(each.name for each in found) == ["job-0", "job-1", "job-2"]
        for each in found:
            number = each.name[-1]
            assert str(each.held_by).startswith(f"module app -> list holder -> index {number} -> Task 'job-{number}'")
            assert each.state == "done" and each.coroutine.endswith("large")
            assert 1_000_000 < each.retained.bytes < 1_002_000
        assert len(detector.retained_tasks(limit=2)) == 2
        del found, each
        put(None)
        assert detector.retained_tasks() == []

    asyncio.run(main())


def test_an_event_listener_that_was_not_removed() -> None:
    class Emitter:
        def __init__(self) -> None:
            self.listeners: dict[str, list[Callable[[], None]]] = {}

        def on(self, event: str, callback: Callable[[], None]) -> None:
            self.listeners.setdefault(event, []).append(callback)

    put(Emitter())
    listener = Slotted()
    app.holder.on("data", listener.handle)  # type: ignore[attr-defined]
    text = str(held_by(listener))
    assert "-> dict listeners -> key 'data' -> index 0 (method Slotted.handle) -> .__self__ ->" in text


def test_an_item_of_an_unbounded_queue() -> None:
    async def main() -> str:
        order = Order()
        put(asyncio.Queue())
        app.holder.put_nowait("first")  # type: ignore[attr-defined]
        app.holder.put_nowait(order)  # type: ignore[attr-defined]
        return str(held_by(order))

    assert asyncio.run(main()).startswith(
        "module app -> .holder (asyncio.queues.Queue) -> ._queue (collections.deque) -> index 1 ->"
    )


def test_a_variable_of_a_suspended_coroutine_and_the_timer_that_will_wake_it() -> None:
    async def sleeps(held: Order) -> None:
        await asyncio.sleep(300)

    async def main() -> Chain | None:
        order = Order()
        task = asyncio.create_task(sleeps(order), name="sleeper")
        await asyncio.sleep(0)
        gone = weakref.ref(task)
        del task
        chain = held_by(order)
        gone().cancel()  # type: ignore[union-attr]
        return chain

    chain = asyncio.run(main())
    assert chain is not None
    text = str(chain)
    assert "list _scheduled -> index 0 (a timer due in 300.0 s)" in text or "a timer due in 299" in text
    assert "Task 'sleeper'" in text and "-> local held (" in text
    assert chain.links[-1].place is not None and chain.links[-1].place[0] == __file__


def test_a_task_that_a_task_group_or_a_manager_holds() -> None:
    from loopwatch.prevention import TaskManager

    async def main() -> str:
        put(TaskManager())
        task = app.holder.create_task(forever())  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        text = str(held_by(task))
        await app.holder.cancel_all()  # type: ignore[attr-defined]
        return text

    assert "(loopwatch.prevention.managers.TaskManager) -> set _tasks -> element -> Task" in asyncio.run(main())


# --- any graph ---


def reference_length(target: object, roots: dict[str, object]) -> int | None:
    """Number of references from the module to the object, by gc.get_referents()."""
    level: list[object] = [roots]
    seen = {id(roots)}
    length = 0
    while level:
        length += 1
        following: list[object] = []
        for holder in level:
            for held in gc.get_referents(holder):
                if held is target:
                    return length
                if id(held) not in seen and not isinstance(held, type | types.ModuleType | types.FunctionType):
                    seen.add(id(held))
                    following.append(held)
        level = following
    return None


@pytest.mark.parametrize("seed", range(6))
def test_random_graphs_against_a_slow_search(seed: int) -> None:
    dice = random.Random(seed)
    made: list[Any] = [dice.choice([list, dict, Order, set])() for _ in range(30)]
    for _ in range(45):
        one, other = dice.sample(made, 2)
        if isinstance(one, list):
            one.append(other)
        elif isinstance(one, dict):
            one[len(one)] = other
        elif isinstance(one, Order):
            setattr(one, f"a{len(vars(one))}", other)
        elif isinstance(other, Order):
            one.add(other)
    put(made[:8])
    targets = [each for each in made if isinstance(each, Order)]
    made = []
    lengths = []
    for target in targets:
        expected = reference_length(target, vars(app))
        raw = _core.held_by([target], 0, (targets,))
        if expected is None:
            assert raw is None or raw[0] != "module"
        else:
            assert raw is not None and raw[0] == "module"
            assert len(raw[4]) == expected + 1  # the module's own link to its dict
            lengths.append(expected)
    assert lengths


def test_searches_leave_nothing_behind() -> None:
    order = Order()
    put({"order": order})
    drifts = []
    references = sys.getrefcount(order)
    for _ in range(6):
        gc.collect()
        blocks = sys.getallocatedblocks()
        for _ in range(5):
            held_by(order)
        gc.collect()
        drifts.append(sys.getallocatedblocks() - blocks)
    assert min(drifts) < 10, drifts
    assert sys.getrefcount(order) == references
    assert gc.isenabled()


def test_while_other_threads_make_and_drop_objects() -> None:
    end = threading.Event()

    def churns() -> None:
        while not end.is_set():
            kept = [{"n": [number]} for number in range(200)]
            del kept

    threads = [threading.Thread(target=churns) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        order = Order()
        put([order])
        for _ in range(8):
            assert str(held_by(order)).startswith("module app -> list holder -> index 0")
    finally:
        end.set()
        for thread in threads:
            thread.join()
