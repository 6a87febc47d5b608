"""A baseline: the leaks that a large code base has today, so that only new ones count.

A leak is known again by its kind, and by the file and function that created it: not by the line, which moves with every
edit.  Where that is unknown, or only Python's own library, whose functions are named otherwise by another version, by
whose it is (a test, a fixture), and where nobody knows that, by what it is.  For each such place the baseline holds how
many of them one scope may leave behind; more than that are new.
"""

import collections
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from loopwatch.leaks.suppress import FINDING_KINDS
from loopwatch.stacks import library_folders

__all__ = ["Baseline", "BaselineEntry", "BaselineError"]

_VERSION = 1
_LIBRARY = "stdlib/"

Place = tuple[str, int, str]
"""File, line and qualified name."""


class BaselineError(ValueError):
    """A baseline file cannot be read.  The message says what is wrong with it and what to do."""


class Fingerprint(NamedTuple):
    """What a leak is known by."""

    file: str
    qualname: str
    kind: str


@dataclass(frozen=True, order=True)
class BaselineEntry:
    """One place that leaks: how many of this kind a scope may leave behind that ``qualname`` in ``file`` created."""

    file: str
    qualname: str
    kind: str
    count: int

    def __str__(self) -> str:
        if not self.file:
            return f"{self.count} {self.kind} created at an unknown place: {self.qualname}"
        return f"{self.count} {self.kind} created by {self.qualname} in {self.file}"


class Baseline:
    """The known leaks of a code base.  Safe for use by several threads.

    ``new`` tells which of a scope's leaks it does not know, ``note`` remembers what a scope left behind, ``stale``
    tells which entries were met by no scope, ``save`` writes what was noted.
    """

    def __init__(self, path: str | os.PathLike[str], entries: Iterable[BaselineEntry] = ()) -> None:
        self.path = os.path.abspath(path)
        self._folder = os.path.join(os.path.dirname(self.path), "")
        self._known = {Fingerprint(entry.file, entry.qualname, entry.kind): entry.count for entry in entries}
        self._seen: dict[Fingerprint, int] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Baseline":
        """Read a baseline file.  Raises BaselineError where it is missing or is none."""
        try:
            with open(path, encoding="utf-8") as file:
                data = json.load(file)
        except FileNotFoundError:
            raise BaselineError(
                f"there is no baseline file {os.fspath(path)!r}: a run of `pytest --loopwatch --loopwatch-baseline "
                f"{os.fspath(path)}` writes it"
            ) from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BaselineError(f"the baseline file {os.fspath(path)!r} cannot be read: {error}") from error
        return cls(path, _entries(data, os.fspath(path)))

    @classmethod
    def of(cls, value: "Baseline | str | os.PathLike[str] | None") -> "Baseline | None":
        """The baseline of a path, read once a process; a baseline and None as they are."""
        if value is None or isinstance(value, Baseline):
            return value
        if not isinstance(value, str | os.PathLike):
            raise TypeError(
                f"baseline must be a path, a Baseline or None, got {value!r} of type {type(value).__name__}"
            )
        path = os.path.abspath(value)
        with _lock:
            if path not in _loaded:
                _loaded[path] = cls.load(path)
            return _loaded[path]

    def new(self, leaks: Sequence[Any], owner: Place | None = None) -> list[Any]:
        """Those of one scope's leaks that are not known, the surplus over a known count included.

        ``owner`` is where the scope is written, such as a test function.
        """
        left = dict(self._known)
        fresh = []
        for leak in leaks:
            fingerprint = self.fingerprint(leak, owner)
            if left.get(fingerprint, 0) > 0:
                left[fingerprint] -= 1
            else:
                fresh.append(leak)
        return fresh

    def note(self, leaks: Iterable[Any], owner: Place | None = None) -> None:
        """Remember what one scope left behind, known or not."""
        counts = collections.Counter(self.fingerprint(leak, owner) for leak in leaks)
        self.absorb([(*fingerprint, count) for fingerprint, count in counts.items()])

    def absorb(self, seen: Iterable[Sequence[Any]]) -> None:
        """Remember what ``seen`` gave in another process, such as a worker of pytest-xdist."""
        with self._lock:
            for file, qualname, kind, count in seen:
                fingerprint = Fingerprint(file, qualname, kind)
                self._seen[fingerprint] = max(count, self._seen.get(fingerprint, 0))

    def seen(self) -> list[tuple[str, str, str, int]]:
        """What was noted, as plain data: (file, qualname, kind, most in one scope)."""
        with self._lock:
            return sorted((*fingerprint, count) for fingerprint, count in self._seen.items())

    def stale(self) -> list[BaselineEntry]:
        """The entries that no scope met since this baseline was read: mended, or not run."""
        with self._lock:
            missing = [(fp, count) for fp, count in self._known.items() if fp not in self._seen]
        return sorted(BaselineEntry(*fingerprint, count) for fingerprint, count in missing)

    def save(self) -> None:
        """Write what was noted to ``path``, sorted, in one step.  Raises OSError."""
        leaks = [
            {"kind": kind, "file": file, "qualname": qualname, "count": count}
            for file, qualname, kind, count in self.seen()
        ]
        text = json.dumps({"version": _VERSION, "leaks": leaks}, indent=2, ensure_ascii=False) + "\n"
        draft = f"{self.path}.{os.getpid()}.tmp"
        try:
            with open(draft, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(draft, self.path)
        except BaseException:
            if os.path.exists(draft):
                os.unlink(draft)
            raise

    def fingerprint(self, leak: Any, owner: Place | None = None) -> Fingerprint:
        """What a leak is known by: its place, that of its owner, or what it is."""
        place = leak.place()
        file = "" if place is None else self._portable(place[0])
        if place is not None and not file.startswith(_LIBRARY):
            return Fingerprint(file, place[2], leak.kind)
        if owner is not None:  # not to be taken for what the owner's own lines make
            return Fingerprint(self._portable(owner[0]), f"{owner[2]} (made elsewhere)", leak.kind)
        nature = getattr(leak, "nature", None)  # a block of the loop has none
        return Fingerprint(file, str(nature()) if callable(nature) else "", leak.kind)

    def _portable(self, filename: str) -> str:
        """A file's path, the same on other machines where it lies below the baseline's folder or in a library."""
        for marker in ("/site-packages/", "/dist-packages/"):
            if marker in filename:
                return "site-packages/" + filename.rpartition(marker)[2]
        for folder in library_folders():
            if filename.startswith(folder):
                return _LIBRARY + filename.removeprefix(folder)
        if filename.startswith("<frozen "):
            return _LIBRARY + filename
        return filename.removeprefix(self._folder)


_loaded: dict[str, Baseline] = {}
_lock = threading.Lock()


def _entries(data: Any, path: str) -> list[BaselineEntry]:
    where = f"the baseline file {path!r}"
    if not isinstance(data, Mapping) or not isinstance(data.get("leaks"), list):
        raise BaselineError(f'{where} holds no baseline: expected an object with "version" and "leaks"')
    if data.get("version") != _VERSION:
        raise BaselineError(
            f"{where} has version {data.get('version')!r}, this loopwatch reads version {_VERSION}: write it anew"
        )
    entries = []
    for number, item in enumerate(data["leaks"], 1):
        match item:
            case {"kind": str(kind), "file": str(file), "qualname": str(qualname), "count": int(count)} if count > 0:
                if kind not in FINDING_KINDS:
                    raise BaselineError(
                        f"{where}: entry {number} has the kind {kind!r}, which no finding has: there are "
                        f"{', '.join(FINDING_KINDS)}"
                    )
                entries.append(BaselineEntry(file, qualname, kind, count))
            case _:
                raise BaselineError(
                    f"{where}: entry {number} must have the strings kind, file and qualname and a count above 0, "
                    f"got {item!r}"
                )
    return entries
