"""From the inner end of an await chain to what is waited for: one rule for each of asyncio's places to wait.

A rule is found by the function it stands in, ``("queues", "Queue.get")``; it gets that frame's link, whose local
variables (``self``, ``sock``, ``fut``) tell the rest.  What no rule knows is looked for from the other side: in the
loop's timers, in the future's callbacks.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loopwatch import _core
from loopwatch.leaks import jobs
from loopwatch.leaks.timerhandles import arguments_of, callback_of, timers_of

_ASYNCIO = os.path.dirname(asyncio.__file__) + os.sep
_MAX_TIMERS = 10_000  # looked through for one task
_MAX_DEADLINES = 1_000


@dataclass
class Found:
    """What a rule found: a kind and a clause; the tasks that are awaited, if any, pending ones only."""

    kind: str
    text: str
    detail: dict[str, Any] = field(default_factory=dict)
    tasks: Sequence[Any] = ()


Rule = Callable[[Any, Any, Any], "Found | None"]
_RULES: dict[tuple[str, str], Rule] = {}


def rule(module: str, *names: str) -> Callable[[Rule], Rule]:
    """Register a rule ``(loop, awaited, link)`` for functions of an asyncio module."""

    def register(function: Rule) -> Rule:
        for name in names:
            _RULES[(module, name)] = function
        return function

    return register


def recognise(loop: Any, awaited: Any, raw: Sequence[Any], links: Sequence[Any]) -> Found:
    """Tell what a suspended task waits for."""
    for look in (_task, _gather):
        found = look(awaited)
        if found is not None:
            return found
    for frame, link in zip(reversed(raw), reversed(links), strict=True):
        if not frame[0].startswith(_ASYNCIO):
            break
        stem = frame[0][len(_ASYNCIO) :].removesuffix(".py")
        known = _RULES.get((stem, frame[1]))
        if known is not None and (found is None or known in (_barrier, _queue)):  # these wait by another one's means
            found = known(loop, awaited, link) or found
    if found is not None:
        return found
    return _shield(awaited) or jobs.job_of(awaited, Found) or _timer_of(loop, awaited) or _bare(loop, awaited, raw)


def names_of(tasks: Iterable[Any]) -> list[str]:
    """The tasks' names; of a future that is none, its type's."""
    return [str(task.get_name()) if hasattr(task, "get_name") else type(task).__name__ for task in tasks]


def _listed(tasks: Sequence[Any]) -> str:
    names = [repr(name) for name in names_of(tasks[:5])]
    return ", ".join(names) + (f" and {len(tasks) - 5} more" if len(tasks) > 5 else "")


def pending(tasks: Iterable[Any]) -> list[Any]:
    """Those not done, in their own order; of a set, which has none, by name."""
    left = [task for task in tasks if not task.done()]
    return sorted(left, key=lambda task: names_of([task])) if isinstance(tasks, (set, frozenset)) else left


def others(waiters: Any) -> tuple[int, str]:
    """How many more wait at the same place, and how to say so."""
    count = max(0, len(pending(waiters)) - 1) if waiters else 0
    return count, f" ({count} other{'s' * (count > 1)} wait{'s' * (count == 1)} too)" if count else ""


def due_in(loop: Any, when: float) -> float:
    return max(0.0, when - float(loop.time()))


# ---- tasks and groups of them -----------------------------------------------------------------------------------


def _task(awaited: Any) -> Found | None:
    if not hasattr(awaited, "get_coro"):
        return None
    return Found("task", f"waits for task {names_of([awaited])[0]!r}", tasks=[awaited])


def _gather(awaited: Any) -> Found | None:
    children = getattr(awaited, "_children", None)
    if not isinstance(children, list) or type(awaited).__name__ != "_GatheringFuture":
        return None
    left = pending(children)
    done = len(children) - len(left)
    text = f"waits for {len(left)} of {len(children)} gathered tasks, {_listed(left)}"
    return Found("gather", text, {"done": done, "total": len(children)}, left)


def _shield(awaited: Any) -> Found | None:
    for inner in closure_values(awaited, "shield.<locals>._outer_done_callback", "inner"):
        name = names_of([inner])[0]
        kind = "task" if hasattr(inner, "get_coro") else "future"
        return Found(kind, f"waits for shielded {kind} {name!r}", {"shield": True}, [inner])
    return None


def closure_values(awaited: Any, qualname: str, variable: str) -> list[Any]:
    """The values that a variable has in a future's callbacks of that name."""
    values = []
    for entry in getattr(awaited, "_callbacks", None) or ():
        function: Any = entry[0] if isinstance(entry, tuple) else entry
        function = getattr(function, "func", function)
        if getattr(function, "__qualname__", None) == qualname:
            cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
            with contextlib.suppress(KeyError, ValueError):
                values.append(cells[variable].cell_contents)
    return values


@rule("tasks", "_wait")
def _wait(loop: Any, awaited: Any, link: Any) -> Found | None:
    left = pending(_core.frame_local(link, "fs", ()))
    condition = _core.frame_local(link, "return_when", "ALL_COMPLETED")
    which = "all" if condition == "ALL_COMPLETED" else "the first"
    return Found("wait", f"waits for {which} of {len(left)} tasks, {_listed(left)}", tasks=left)


@rule("tasks", "wait_for")
def _wait_for(loop: Any, awaited: Any, link: Any) -> Found | None:
    inner = _core.frame_local(link, "fut")
    if not hasattr(inner, "done"):
        return None  # 3.12 and later await it themselves
    found = _task(inner)
    timer = _core.frame_local(link, "timeout_handle")
    limit = f" for at most {due_in(loop, timer.when()):.1f} s more" if timer is not None else ""
    return Found("task", f"{found.text}{limit}", {}, [inner]) if found else None


@rule("taskgroups", "TaskGroup.__aexit__", "TaskGroup._aexit")
def _task_group(loop: Any, awaited: Any, link: Any) -> Found | None:
    left = pending(getattr(_core.frame_local(link, "self"), "_tasks", ()))
    many = "task" if len(left) == 1 else "tasks"
    return Found("task_group", f"waits for {len(left)} {many} of its task group, {_listed(left)}", tasks=left)


# ---- timers -----------------------------------------------------------------------------------------------------


def _timer(loop: Any, handle: Any) -> Found | None:
    when = getattr(handle, "when", None)
    if when is None or handle.cancelled():
        return None
    due = due_in(loop, when())
    return Found("timer", f"waits for a timer due in {due:.1f} s", {"due": due})


@rule("tasks", "sleep")
def _sleep(loop: Any, awaited: Any, link: Any) -> Found | None:
    return _timer(loop, _core.frame_local(link, "h"))


def _timer_of(loop: Any, awaited: Any) -> Found | None:
    """The timer that will set this future's result, if one is known."""
    for handle in timers_of(loop, _MAX_TIMERS):
        owner = getattr(callback_of(handle), "__self__", None)
        if owner is awaited or any(argument is awaited for argument in arguments_of(handle)):
            return _timer(loop, handle)
    return None


# ---- what tasks share -------------------------------------------------------------------------------------------


def _shared(kind: str, clause: str) -> Rule:
    def found(loop: Any, awaited: Any, link: Any) -> Found | None:
        thing = _core.frame_local(link, "self")
        if thing is None:
            return None
        count, text = others(getattr(thing, "_waiters", None))
        name = f"{type(thing).__module__}.{type(thing).__qualname__}".replace("asyncio.locks.", "asyncio.")
        return Found(kind, f"waits {clause.format(name)}{text}", {"repr": _repr(thing), "waiters": count})

    return found


def _repr(thing: Any) -> str:
    try:
        return repr(thing)[:200]
    except Exception:
        return object.__repr__(thing)


rule("locks", "Lock.acquire")(_shared("lock", "for a locked {}"))
rule("locks", "Event.wait")(_shared("event", "for an {} to be set"))
rule("locks", "Condition.wait")(_shared("condition", "for an {} to be notified"))
rule("locks", "Semaphore.acquire")(_shared("semaphore", "for an {} at zero to be released"))


@rule("locks", "Barrier.wait")
def _barrier(loop: Any, awaited: Any, link: Any) -> Found | None:
    barrier = _core.frame_local(link, "self")
    there, parties = barrier.n_waiting, barrier.parties
    detail = {"repr": _repr(barrier), "waiters": max(0, there - 1), "size": parties}
    return Found("barrier", f"waits at an asyncio.Barrier, where {there} of {parties} have come", detail)


@rule("queues", "Queue.get", "Queue.put", "Queue.join")
def _queue(loop: Any, awaited: Any, link: Any) -> Found | None:
    queue = _core.frame_local(link, "self")
    if queue is None:
        return None
    name = type(queue).__qualname__
    name = f"asyncio.{name}" if type(queue).__module__.startswith("asyncio") else name
    verb = link.__name__
    size = queue.qsize()
    count, text = others(getattr(queue, {"get": "_getters", "put": "_putters"}.get(verb, ""), None))
    clause = {
        "get": f"an item in an empty {name}" if size == 0 else f"an item in an {name} that holds {size}",
        "put": f"room in a full {name} of {size}",
        "join": f"the items of an {name} to be done ({getattr(queue, '_unfinished_tasks', '?')} are not)",
    }[verb]
    detail = {"repr": _repr(queue), "size": size, "maxsize": queue.maxsize, "waiters": count}
    return Found("queue", f"waits for {clause}{text}", {**detail, "direction": verb})


@rule("base_subprocess", "BaseSubprocessTransport._wait")
def _process(loop: Any, awaited: Any, link: Any) -> Found | None:
    pid = getattr(_core.frame_local(link, "self"), "_pid", None)
    return Found("process", f"waits for process {pid} to end", {"pid": pid})


@rule("subprocess", "Process.wait")
def _process_of_other_loops(loop: Any, awaited: Any, link: Any) -> Found | None:
    pid = getattr(_core.frame_local(link, "self"), "pid", None)
    return Found("process", f"waits for process {pid} to end", {"pid": pid})


@rule("base_events", "Server.serve_forever", "Server.wait_closed")
def _server(loop: Any, awaited: Any, link: Any) -> Found | None:
    server = _core.frame_local(link, "self")
    places = [jobs.address(sock) for sock in getattr(server, "sockets", ())]
    verb = "serves forever" if link.__name__ == "serve_forever" else "waits for a server to close"
    return Found("server", verb + (" on " + ", ".join(places) if places else ""), {"local": places})


# ---- sockets ----------------------------------------------------------------------------------------------------


def _on_socket(clause: str, direction: str, local_first: bool = False) -> Rule:
    def found(loop: Any, awaited: Any, link: Any) -> Found | None:
        sock = _core.frame_local(link, "sock")
        return jobs.socket_wait(sock, clause, direction, Found, local_first) if sock is not None else None

    return found


_LOOP = "BaseSelectorEventLoop"
rule(
    "selector_events",
    *(f"{_LOOP}.{name}" for name in ("sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into")),
)(_on_socket("for data from", "read"))
rule("selector_events", f"{_LOOP}.sock_sendall", f"{_LOOP}.sock_sendto")(_on_socket("to send to", "write"))
rule("selector_events", f"{_LOOP}.sock_accept")(_on_socket("for a connection to", "read", True))


@rule("selector_events", f"{_LOOP}.sock_connect")
def _connect(loop: Any, awaited: Any, link: Any) -> Found | None:
    sock, peer = _core.frame_local(link, "sock"), jobs.address_text(_core.frame_local(link, "address"))
    detail = {"fd": sock.fileno(), "peer": peer, "direction": "connect"}
    return Found("socket", f"waits for {peer} to accept a connection on socket fd {sock.fileno()}", detail)


@rule("streams", "StreamReader._wait_for_data")
def _read(loop: Any, awaited: Any, link: Any) -> Found | None:
    transport = getattr(_core.frame_local(link, "self"), "_transport", None)
    return jobs.transport_wait(transport, "for data from", "read", Found)


@rule("streams", "FlowControlMixin._drain_helper", "StreamWriter.wait_closed")
def _drain(loop: Any, awaited: Any, link: Any) -> Found | None:
    owner = _core.frame_local(link, "self")
    transport = getattr(owner, "_transport", None)
    clause = "for room to send to" if link.__name__ == "_drain_helper" else "for the end of the connection to"
    return jobs.transport_wait(transport, clause, "write", Found)


def deadline_of(loop: Any, task: Any) -> float | None:
    """In how many seconds an ``asyncio.timeout`` will cancel a task; None where none will, or it cannot be seen."""
    dues = [
        due_in(loop, handle.when())
        for handle in timers_of(loop, _MAX_DEADLINES)
        if getattr(getattr(callback_of(handle), "__self__", None), "_task", None) is task
    ]
    return min(dues, default=None)


def _bare(loop: Any, awaited: Any, raw: Sequence[Any]) -> Found:
    kind = type(awaited)
    detail = {"repr": _repr(awaited)}
    if raw and raw[-1][0].startswith("<"):  # compiled code, such as uvloop's: only its name is known
        return Found("future", f"waits in {raw[-1][1]}", detail)
    name = "a future" if kind is asyncio.Future else f"a future of type {kind.__module__}.{kind.__qualname__}"
    if not hasattr(loop, "_scheduled"):
        return Found("future", f"waits for {name} ({type(loop).__module__} does not show what is behind it)", detail)
    return Found("future", f"waits for {name} that no part of asyncio stands behind", detail)
