"""The faults: everything that blocks an event loop, one function each, with the line and the cause that are true of it.

A set of causes has one member wherever the truth has one; where it has two, the reason given says so.
"""

from __future__ import annotations

import abc
import ctypes
import gc
import hashlib
import json
import math
import os
import random
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from .registry import FAULTS, Armed, Fault, fault

__all__ = ["FAULTS", "Armed", "Fault"]

usleep_holding_gil = ctypes.PyDLL(None).usleep
HOLDS = "runs in C, holds the GIL, makes no system call"
RELEASES = "runs in C without the GIL and makes no system call"


@cache
def numbers() -> list[int]:
    return [random.randrange(1 << 30) for _ in range(2_000_000)]


# --- C calls that hold the GIL ---------------------------------------------------------------------------------------


@fault(lambda units: "a" * int(math.sqrt(units)), {"c_call"}, HOLDS, calibrated=True)  # quadratic in the length
def regex(text: str) -> object:
    return re.search(r"a*b", text)  # culprit:regex


@fault(lambda units: 1 << int(units), {"c_call"}, HOLDS, calibrated=True)
def big_pow(exponent: int) -> object:
    return pow(3, exponent, (1 << 1279) - 1)  # culprit:big_pow


@fault(lambda units: numbers()[: int(units)], {"c_call"}, HOLDS, calibrated=True)
def sort_ints(values: list[int]) -> object:
    return sorted(values)  # culprit:sort_ints


@fault(lambda units: [x / 7 for x in numbers()[: int(units)]], {"c_call"}, HOLDS, calibrated=True)
def json_dumps(values: list[float]) -> object:
    return json.dumps(values)  # culprit:json_dumps


@fault(lambda units: [(*range(500), 1)] * int(units), {"c_call"}, HOLDS, calibrated=True)
def membership(values: list[tuple[int, ...]]) -> object:
    return (*range(500), 2) in values  # culprit:membership


@fault(lambda s: s, {"c_call", "syscall"}, "holds the GIL in C, and sleeps in clock_nanosleep: both are true")
def pydll_usleep(seconds: float) -> object:
    return usleep_holding_gil(int(seconds * 1e6))  # culprit:pydll_usleep


# --- C calls that release it -----------------------------------------------------------------------------------------


@fault(lambda s: s, {"syscall"}, "sleeps in clock_nanosleep")
def time_sleep(seconds: float) -> None:
    time.sleep(seconds)  # culprit:time_sleep


class LockedDatabase:
    """Two connections to one file: the first holds the write lock for good, the second waits for it."""

    def __init__(self, seconds: float) -> None:
        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "db.sqlite")
        self.holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.waiter = sqlite3.connect(path, timeout=seconds, isolation_level=None, check_same_thread=False)
        self.holder.execute("CREATE TABLE t (x)")
        self.waiter.execute("SELECT count(*) FROM t").fetchone()
        self.holder.execute("BEGIN EXCLUSIVE")

    def close(self) -> None:
        self.waiter.close()
        self.holder.close()
        self.folder.cleanup()


@fault(LockedDatabase, {"syscall"}, "SQLite's busy handler sleeps between its tries")
def sqlite_locked(database: LockedDatabase) -> None:
    try:
        database.waiter.execute("BEGIN IMMEDIATE")  # culprit:sqlite_locked
    except sqlite3.OperationalError:
        pass


class Query:
    """A database in memory and a query over so many rows."""

    def __init__(self, units: float) -> None:
        self.connection = sqlite3.connect(":memory:", check_same_thread=False)
        self.rows = int(units)

    def close(self) -> None:
        self.connection.close()


COUNT = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < ?) SELECT count(*) FROM c"


@fault(Query, {"c_call_released"}, RELEASES, calibrated=True)
def sqlite_query(query: Query) -> object:
    return query.connection.execute(COUNT, (query.rows,)).fetchone()  # culprit:sqlite_query


@cache
def text() -> bytes:
    return b"".join(b"%d;" % (x % 10_000) for x in numbers())


@fault(lambda units: text()[: int(units)], {"c_call_released"}, RELEASES, calibrated=True)
def zlib_compress(data: bytes) -> object:
    return zlib.compress(data, 9)  # culprit:zlib_compress


@fault(int, {"c_call_released"}, RELEASES, calibrated=True)
def pbkdf2(rounds: int) -> object:
    return hashlib.pbkdf2_hmac("sha256", b"password", b"salt", max(1, rounds))  # culprit:pbkdf2


@fault(lambda s: f"{max(0.0, s - 0.003):.6f}", {"syscall"}, "waits for the child, in wait4 or poll")
def subprocess_run(seconds: str) -> object:
    return subprocess.run(["sleep", seconds], check=True)  # culprit:subprocess_run


class Helper(abc.ABC):
    """A thread that stands ready, and once the gate is released does its work."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.gate = threading.Lock()
        self.gate.acquire()
        self.ready = threading.Event()
        self.done = False
        self.thread = threading.Thread(target=self.work, name=type(self).__name__, daemon=True)
        self.thread.start()
        self.ready.wait()

    @abc.abstractmethod
    def work(self) -> None: ...

    def close(self) -> None:
        self.thread.join()


class HeldLock(Helper):
    """Holds a lock, and gives it back so many seconds after the gate was released."""

    def work(self) -> None:
        self.lock = threading.Lock()
        with self.lock:
            self.ready.set()
            self.gate.acquire()
            time.sleep(self.seconds)


@fault(HeldLock, {"lock"}, "waits on the futex of a lock")
def lock_wait(held: HeldLock) -> None:
    held.gate.release()
    held.lock.acquire()  # culprit:lock_wait


class LatePeer(Helper):
    """The other end of a socket pair, which says something only so many seconds after the gate was released."""

    def work(self) -> None:
        self.socket, self.other = socket.socketpair()
        self.ready.set()
        self.gate.acquire()
        time.sleep(self.seconds)
        self.other.send(b"x")

    def close(self) -> None:
        super().close()
        self.socket.close()
        self.other.close()


@fault(LatePeer, {"syscall"}, "waits in recvfrom")
def socket_recv(peer: LatePeer) -> object:
    peer.gate.release()
    return peer.socket.recv(1)  # culprit:socket_recv


# --- Python code -----------------------------------------------------------------------------------------------------


@fault(lambda s: s, {"python"}, "Python code")
def python_loop(seconds: float) -> None:
    until = time.thread_time() + seconds  # CPU time: being starved makes it no shorter
    value = 0
    while time.thread_time() < until:  # culprit:python_loop
        for step in range(1000):  # culprit:python_loop
            value = value * 3 % 1_000_003 + step  # culprit:python_loop


@fault(int, {"python"}, "Python code: sum only drives the generator", calibrated=True)
def python_genexpr(count: int) -> object:
    return sum(i * i % 7 for i in range(count))  # culprit:python_genexpr


# --- others to blame -------------------------------------------------------------------------------------------------


def hold_gil(seconds: float) -> None:
    usleep_holding_gil(int(seconds * 1e6))  # culprit:gil_held_holder


class GilHog(Helper):
    """Takes the GIL once the gate is released and keeps it for so many seconds."""

    def work(self) -> None:
        self.ready.set()
        self.gate.acquire()
        hold_gil(self.seconds)
        self.done = True


@fault(GilHog, {"gil"}, "waits for the GIL, which another thread holds", holder=hold_gil)
def gil_held(hog: GilHog) -> None:
    hog.gate.release()
    while not hog.done:  # culprit:gil_held
        time.sleep(0)  # culprit:gil_held


class Heap:
    """Many objects that the collector has to visit, in an order that no cache likes."""

    def __init__(self, units: float) -> None:
        gc.collect()
        gc.freeze()  # nothing but these objects is visited
        size = min(600_000, max(1, int(units)))
        self.rounds = max(1, round(units / size))
        order = numbers()
        self.cells: list[list[Any]] = [[] for _ in range(size)]
        for i, cell in enumerate(self.cells):
            cell.append(self.cells[order[i] % size])

    def close(self) -> None:
        for cell in self.cells:
            cell.clear()
        gc.unfreeze()


@fault(Heap, {"gc"}, "nothing but the garbage collector", calibrated=True)
def gc_collect(heap: Heap) -> None:
    for _ in range(heap.rounds):  # culprit:gc_collect
        gc.collect()  # culprit:gc_collect


class SlowModule:
    """A module with so many lines, never compiled before."""

    serial = 0

    def __init__(self, units: float) -> None:
        SlowModule.serial += 1
        self.name = f"slow_module_{os.getpid()}_{SlowModule.serial}"
        self.folder = tempfile.TemporaryDirectory()
        source = "".join(f"x{i % 1000} = {i} + {i % 7} * len('{i}')\n" for i in range(int(units)))
        Path(self.folder.name, self.name + ".py").write_text(source, encoding="utf-8")
        sys.path.insert(0, self.folder.name)

    def close(self) -> None:
        sys.path.remove(self.folder.name)
        sys.modules.pop(self.name, None)
        self.folder.cleanup()


@fault(SlowModule, {"import"}, "an import that compiles a large module", calibrated=True)
def import_module(module: SlowModule) -> None:
    __import__(module.name)  # culprit:import_module
