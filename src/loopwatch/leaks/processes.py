"""Child processes that still run, or ended and were not reaped."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from loopwatch import _core
from loopwatch.errors import ProcessLeakError
from loopwatch.leaks import owners
from loopwatch.leaks.kinds import Kind, Leak, Session
from loopwatch.leaks.origins import Resource, ResourceSession, creation_of, merged, with_holders

if TYPE_CHECKING:
    from loopwatch.leaks.owners import Search

__all__ = ["LeakedProcess", "ProcessKind", "servant_descriptors"]

_STATES = {
    "R": "running",
    "S": "running (asleep)",
    "D": "running (waits for a disk)",
    "T": "stopped",
    "t": "stopped by a debugger",
    "I": "idle",
    "Z": "ended, not reaped (zombie)",
    "X": "ended",
}
_LONGEST_COMMAND = 200


@dataclass(frozen=True)
class LeakedProcess(Resource):
    """A child process that was started and not reaped.

    name: what it runs, such as "sleep", or the name of a ``multiprocessing.Process``.  pid: its process id.
    argv: its command line; empty for a zombie.  state: the kernel's letter: "R", "S", "D", "T", "Z", ...
    exit_status: of a zombie, the exit code, or minus the signal that ended it.
    owner: the object that would reap it, in words; holder: who holds that, in words.
    """

    kind: ClassVar[str] = "process"
    title: ClassVar[str] = "Process"
    made: ClassVar[str] = "started"
    unknown: ClassVar[str] = "it was started by C code, or past the functions that loopwatch watches"

    pid: int = 0
    argv: tuple[str, ...] = ()
    state: str = "R"
    exit_status: int | None = None
    owner: str | None = None
    holder: str | None = None

    def _state_text(self) -> str:
        text = _STATES.get(self.state, self.state)
        if self.exit_status is None:
            return text
        ended = f"signal {-self.exit_status}" if self.exit_status < 0 else f"status {self.exit_status}"
        return f"{text}, with {ended}"

    def tail(self) -> str:
        return f"pid {self.pid}, {self._state_text()}"

    def facts(self) -> Iterable[tuple[str, str | None]]:
        command = " ".join(self.argv)
        yield "Pid", str(self.pid)
        yield "Command", command if len(command) <= _LONGEST_COMMAND else f"{command[:_LONGEST_COMMAND]}..."
        yield "State", self._state_text()
        yield "Owner", self.owner or self.unsearched or "no Python object that we know would reap it"
        yield "Held by", self.holder
        yield "End it with", "wait(), after terminate() if it does not end by itself"

    def about(self) -> Sequence[object]:
        return (self.pid,)

    def labels(self) -> Mapping[str, Sequence[str]]:
        return merged(super().labels(), qualname=[self.argv[0]] if self.argv else [])


class ProcessKind(Kind):
    """Children of this process started under the guard, running or zombies.

    The resource tracker and the fork server of ``multiprocessing`` are left out: they serve the process for its life,
    and end with it.
    """

    name: ClassVar[str] = "processes"
    error = ProcessLeakError
    refusal: ClassVar[str] = "A child process is not killed from outside: terminate() it and wait() for it."

    def begin(self) -> Session:
        return _Session()


class _Session(ResourceSession):
    def __init__(self) -> None:
        self._open = True
        self._moment = _core.children_mark()
        _core.openings_begin()
        super().__init__()
        self._apart: list[Leak] = []
        self._left: list[LeakedProcess] = []

    def look(self) -> list[Leak]:
        self._apart, self._left = [], []
        if not self._open:
            return []
        children = _core.children_since(self._moment)
        if not children:
            return []
        servants = servant_pids()
        for pid, state, _start, comm in children:
            if pid in servants:
                continue
            origin = _core.started_at(pid)
            argv = _command(pid)
            leak = LeakedProcess(
                name=_worker_name(pid) or (os.path.basename(argv[0]) if argv else comm),
                creation_stack=creation_of(origin),
                pid=pid,
                argv=argv,
                state=state,
                exit_status=_status(pid) if state == "Z" else None,
            )
            (self._apart if self.foreign(origin) else self._left).append(leak)
        return list(self._left)

    def complete(self, leaks: Sequence[Any], search: "Search") -> list[Leak]:
        found = search.owned_by(owners.process_types(), owners.pids_of, [leak.pid for leak in leaks])
        reapers = [found.get(leak.pid) for leak in leaks]
        texts = [f"{type(one).__module__}.{type(one).__qualname__} object" for one in reapers]
        owned = [
            leak if owner is None else replace(leak, owner=text)
            for leak, owner, text in zip(leaks, reapers, texts, strict=True)
        ]
        return with_holders(owned, reapers, search)

    def apart(self) -> list[Leak]:
        return list(self._apart)

    def end(self) -> None:
        if self._open:
            self._open = False
            _core.openings_end()
        super().end()


def servant_pids() -> set[int]:
    """The pids of processes that multiprocessing keeps for itself."""
    return _of_servants("_pid", "_forkserver_pid")


def servant_descriptors() -> set[int]:
    """The descriptors by which it keeps them alive."""
    return _of_servants("_fd", "_forkserver_alive_fd")


def _of_servants(of_tracker: str, of_server: str) -> set[int]:
    found = set()
    for module, name, attribute in (
        ("multiprocessing.resource_tracker", "_resource_tracker", of_tracker),
        ("multiprocessing.forkserver", "_forkserver", of_server),
    ):
        number = getattr(getattr(sys.modules.get(module), name, None), attribute, None)
        if isinstance(number, int):
            found.add(number)
    return found


def _command(pid: int) -> tuple[str, ...]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            raw = file.read(4096)
    except OSError:
        return ()
    return tuple(part.decode("utf-8", "replace") for part in raw.rstrip(b"\0").split(b"\0")) if raw else ()


def _worker_name(pid: int) -> str | None:
    """The name of a multiprocessing.Process."""
    children: Any = getattr(sys.modules.get("multiprocessing.process"), "_children", ())
    for process in list(children):
        if getattr(getattr(process, "_popen", None), "pid", None) == pid:
            return str(process.name)
    return None


def _status(pid: int) -> int | None:
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return None
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
