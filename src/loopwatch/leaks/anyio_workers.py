"""The worker processes of ``anyio.to_process``, and the descriptors by which they are spoken to.

anyio keeps them for the next call and ends them when the loop is closed.  A pipe is theirs where it is the worker's
standard stream too; a socket, which uvloop takes instead, where the loop's transport for that process has it.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Collection, Iterator
from typing import Any

from loopwatch.leaks.owners import instances_of, numbers_of

__all__ = ["is_worker", "serves_worker"]

_STREAMS = (0, 1, 2)


def is_worker(argv: Collection[str]) -> bool:
    """Whether that is the command line of one."""
    return tuple(argv)[-2:] == ("-m", "anyio.to_process")


def serves_worker(number: int) -> bool:
    """Whether a descriptor of this process is a pipe to a worker, or its pidfd."""
    if "anyio.to_process" not in sys.modules:
        return False
    workers = set(_workers())
    target = _target(f"/proc/self/fd/{number}")
    if target.startswith("pipe:"):
        return any(_target(f"/proc/{pid}/fd/{stream}") == target for pid in workers for stream in _STREAMS)
    if "pidfd" in target:
        return pid_of_pidfd(number) in workers
    return target.startswith("socket:") and bool(workers) and number in _sockets(workers)


def pid_of_pidfd(number: int) -> int | None:
    """The process that a pidfd is of, if only to be reaped; None where it is gone."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/self/fdinfo/{number}", encoding="ascii") as file:
        pids = [int(line.split()[1]) for line in file if line.startswith("Pid:")]
        return pids[0] if pids and pids[0] > 0 else None
    return None


def _workers() -> Iterator[int]:
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
            for pid in file.read().split():
                with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as line:
                    if is_worker(os.fsdecode(line.read().rstrip(b"\0")).split("\0")):
                        yield int(pid)


def _sockets(workers: Collection[int]) -> Iterator[int]:
    for process in instances_of(asyncio.subprocess.Process):
        transport: Any = getattr(process, "_transport", None)
        if process.pid in workers and transport is not None:
            for stream in _STREAMS:
                yield from numbers_of(transport.get_pipe_transport(stream))


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
