"""File descriptors and sockets that were left open."""

import _socket
import contextlib
import os
import socket
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from traceback import FrameSummary
from typing import TYPE_CHECKING, Any, ClassVar

from loopwatch import _core
from loopwatch.errors import DescriptorLeakError
from loopwatch.findings import place_text
from loopwatch.leaks import owners
from loopwatch.leaks.anyio_workers import pid_of_pidfd
from loopwatch.leaks.kinds import Kind, Leak, Session
from loopwatch.leaks.loopfds import descriptors_of_loops
from loopwatch.leaks.origins import Resource, ResourceSession, creation_of, merged
from loopwatch.leaks.processes import servant_descriptors
from loopwatch.printable import printable
from loopwatch.stacks import is_own

if TYPE_CHECKING:
    from loopwatch._core import Origin
    from loopwatch.leaks.owners import Search

__all__ = ["DescriptorKind", "LeakedDescriptor"]

_STANDARD = 3  # stdin, stdout, stderr: redirected, never left open
_ANONYMOUS = "anon_inode:"
_KEPT = {
    "/dev/urandom": "kept open by whoever draws random numbers, for the process's life",
    "/dev/random": "as /dev/urandom",
}


@dataclass(frozen=True)
class LeakedDescriptor(Resource):
    """A file descriptor that is still open.

    name: the path of a file; of a socket its kind and addresses; else what it is.  fd: the number.
    what: "file", "directory", "socket", "listening socket", "pipe", "epoll", "eventfd", "pidfd", "device", ...
    local, peer: a socket's own address and the other end's, as text.
    creation_stack: where it was opened; None where C code did (libuv, SQLite) or another process.
    owner: the Python object that owns it, in words; None: none shows its number, as with what C libraries open.
    holder: who holds that object, in words.
    """

    kind: ClassVar[str] = "descriptor"
    title: ClassVar[str] = "Descriptor"
    made: ClassVar[str] = "opened"
    unknown: ClassVar[str] = "it was opened by C code, or past the functions that loopwatch watches"

    fd: int = -1
    what: str = "file"
    local: str | None = None
    peer: str | None = None
    owner: str | None = None
    holder: str | None = None

    def headline(self) -> str:
        place = f" opened at {place_text(self.place())}" if self.creation_stack else ""
        name = self.name if self.what in self.name else f"{self.what} {self.name}"
        return f"{printable(name)} (descriptor {self.fd}){place}: still open, {self._holder_text()}"

    def _holder_text(self) -> str:
        if self.owner is None:
            if self.unsearched:
                return f"its owner is {self.unsearched}"
            return "no Python object shows its number"
        return f"owned by a {self.owner}" + (f", held by {self.holder}" if self.holder else "")

    def facts(self) -> Iterable[tuple[str, str | None]]:
        yield "Descriptor", str(self.fd)
        yield "What", self.what
        yield "Local Address", self.local
        yield "Peer", self.peer
        yield "Owner", self.owner or self.unsearched or self._nobody_text()
        yield "Held by", self.holder or (self.unsearched if self.owner else None)

    def nature(self) -> str:
        return self.what

    def _nobody_text(self) -> str:
        nobody = "no Python object shows this number"
        if self.creation_stack:
            return f"{nobody}: code that knows it, Python's or C, is to close it"
        return f"{nobody}; a C library such as SQLite may own it: close its connection"

    def labels(self) -> Mapping[str, Sequence[str]]:
        return merged(super().labels(), name=[self.what])


class DescriptorKind(Kind):
    """Descriptors of the whole process that are open at the exit and were not, or were other files, at the entry.

    Standard streams are left out; so is what an open event loop keeps for itself, which is the loop's matter, what
    keeps the resource tracker and the fork server of ``multiprocessing`` alive, and that by which asyncio waits for a
    child process: the child is what was left.
    """

    name: ClassVar[str] = "descriptors"
    error = DescriptorLeakError
    refusal: ClassVar[str] = "A descriptor cannot be closed from outside: its owner would go on using the number."

    def begin(self) -> Session:
        return _Session()


class _Session(ResourceSession):
    def __init__(self) -> None:
        self._open = True
        self._before = _core.descriptors()
        _core.openings_begin()
        super().__init__()
        self._apart: list[Leak] = []
        self._left: list[LeakedDescriptor] = []

    def look(self) -> list[Leak]:
        self._apart, self._left = [], []
        if not self._open:
            return []
        fresh = [one for one in _core.descriptors_since(self._before) if one[0] >= _STANDARD]
        if not fresh:
            return []
        kept = descriptors_of_loops(fresh) | servant_descriptors()
        for number, mode, device, inode in fresh:
            if number in kept:
                continue
            origin = _core.opened_at(number, device, inode)
            leak = _leak(number, mode, origin)
            if leak is None or leak.name in _KEPT or not _is_still(number, device, inode):
                continue
            if leak.name.startswith("/proc/") and _is_loopwatchs(origin):
                continue
            if leak.what == "pidfd" and _is_asyncios(origin) and pid_of_pidfd(number) is not None:
                continue
            if self.foreign(origin):
                self._apart.append(leak)
            else:
                self._left.append(leak)
        return list(self._left)

    def complete(self, leaks: Sequence[Any], search: "Search") -> list[Leak]:
        found = search.owned_by(owners.descriptor_types(), owners.numbers_of, [leak.fd for leak in leaks])
        search.look(list(found.values()))
        return [_completed(leak, found.get(leak.fd), search) for leak in leaks]

    def apart(self) -> list[Leak]:
        return list(self._apart)

    def end(self) -> None:
        if self._open:
            self._open = False
            _core.openings_end()
        super().end()


def _completed(leak: LeakedDescriptor, owner: Any, search: "Search") -> Leak:
    if owner is None:
        return replace(leak, unsearched=search.cut)
    holder = _holder_text(owner, search)
    return replace(leak, owner=_object_text(owner), holder=holder, unsearched=None if holder else search.cut)


def _is_still(number: int, device: int, inode: int) -> bool:
    """Whether a descriptor still is that file: another thread may have closed it, and its number be another's now."""
    try:
        status = os.fstat(number)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (device, inode)


def _is_loopwatchs(origin: "Origin | None") -> bool:
    """Whether a file of /proc is what loopwatch's watchdog, or a guard in another thread, reads just now."""
    if origin is None:  # not opened by Python code while a guard was open
        return True
    frames = origin.frames()
    return bool(frames) and is_own(frames[-1][0])


def _is_asyncios(origin: "Origin | None") -> bool:
    frames = [] if origin is None else origin.frames()
    return bool(frames) and frames[-1][0].endswith("/asyncio/unix_events.py")


def _leak(number: int, mode: int, origin: "Origin | None") -> LeakedDescriptor | None:
    try:
        target = os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return None  # closed meanwhile
    creation: list[FrameSummary] | None = creation_of(origin)
    if stat.S_ISSOCK(mode):
        what, name, local, peer = _socket_text(number)
        return LeakedDescriptor(name, creation, number, what, local, peer)
    if stat.S_ISFIFO(mode):
        return LeakedDescriptor("pipe" if target.startswith("pipe:") else target, creation, number, "pipe")
    if target.startswith(_ANONYMOUS):
        what = _anonymous(target.removeprefix(_ANONYMOUS).strip("[]"))
        return LeakedDescriptor(what, creation, number, what)
    what = "directory" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "device"
    if target.startswith("/memfd:"):
        what = "memory file"
    elif target.startswith(("pidfd:", "[pidfd]")):
        what = "pidfd"
    return LeakedDescriptor(target, creation, number, what)


def _anonymous(name: str) -> str:
    return {"eventpoll": "epoll"}.get(name, name)


def _socket_text(number: int) -> tuple[str, str, str | None, str | None]:
    """What a socket is, its name, its own address, its peer's; by a copy of the descriptor that is closed again."""
    try:
        copy = _socket.socket(fileno=os.dup(number))
    except OSError:
        return "socket", "socket", None, None
    try:
        family = getattr(socket.AddressFamily(copy.family), "name", "") if copy.family >= 0 else ""
        listening = False
        with contextlib.suppress(OSError):
            listening = bool(copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        local, peer = _address(copy.getsockname), _address(copy.getpeername)
        what = "listening socket" if listening else "socket"
        kind = "Unix " if family == "AF_UNIX" else ""
        kind += "UDP " if copy.type == socket.SOCK_DGRAM and family in ("AF_INET", "AF_INET6") else ""
        name = f"{kind}{what}"
        if local and peer:
            name += f" {local} -> {peer}"
        elif local or peer:
            name += f" {local or peer}"
        return what, name, local, peer
    except (OSError, ValueError):
        return "socket", "socket", None, None
    finally:
        copy.close()


def _address(ask: Any) -> str | None:
    try:
        address = ask()
    except OSError:
        return None
    if isinstance(address, tuple) and len(address) >= 2:
        host = f"[{address[0]}]" if ":" in str(address[0]) else address[0]
        return f"{host}:{address[1]}"
    if isinstance(address, bytes):
        address = address.decode("utf-8", "replace").replace("\0", "@")
    return str(address) or None


def _object_text(owner: Any) -> str:
    kind = type(owner)
    return f"{kind.__module__.removeprefix('_')}.{kind.__qualname__} object"


def _holder_text(owner: Any, search: "Search") -> str | None:
    transport = search.transport_of(owner)
    if transport is not None:
        state = "closing" if transport.is_closing() else "open"
        protocol = getattr(transport, "get_protocol", lambda: None)()
        about = f" with protocol {type(protocol).__qualname__}" if protocol is not None else ""
        return f"an asyncio transport that is {state}{about}"
    return search.holder_of(owner)
