"""Files that reports go to: whether one can be written, and writing it whole."""

import contextlib
import json
import os
import tempfile
from typing import Any


def why_not_writable(path: str, *, append: bool = False) -> str | None:
    """Why no report can be written to that path, and what to do; None where one can.

    A report replaces the file, so its folder must be writable; with ``append`` a file that exists is written itself.
    """
    if os.path.isdir(path):
        return f"{path} is a folder: name a file in it"
    if is_special(path) or (append and os.path.exists(path)):
        if os.access(path, os.W_OK, effective_ids=True):
            return None
        return f"this user cannot write the file {path}: name another, or permit it"
    folder = os.path.dirname(os.path.realpath(path))
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        try:
            os.stat(folder)
        except PermissionError:
            return f"this user cannot reach the folder {folder}: name another, or permit it"
    if not os.path.isdir(folder):
        return f"there is no folder {folder}: create it with `mkdir -p {folder}`, or name a file in another"
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return f"this user cannot write in the folder {folder}: name another, or permit it"
    return None


def write_atomically(path: str, content: dict[str, Any]) -> None:
    """Write the document next to its place and move it there: a reader sees all of it or nothing.

    A link is followed, not replaced.  What is no plain file (a pipe, ``/dev/stdout``, ``/dev/null``) is written to.
    Raises OSError where the folder cannot be written.
    """
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":")) + "\n"
    if is_special(path):
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
        return
    path = os.path.realpath(path)
    descriptor, name = tempfile.mkstemp(prefix=".loopwatch.", dir=os.path.dirname(path))
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            file.write(text)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def is_special(path: str) -> bool:
    """Whether a path leads to something that must not be replaced by a file: no plain file, or an open descriptor."""
    if os.path.exists(path) and not os.path.isfile(path):
        return True
    for _ in range(40):  # /dev/stdout is a link to /proc/self/fd/1, which may be a link to a plain file
        if os.path.realpath(os.path.dirname(path) or ".").startswith("/proc/"):
            return True
        if not os.path.islink(path):
            return False
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return False


def _umask() -> int:
    """The process' umask, read without changing it."""
    with (
        contextlib.suppress(OSError, ValueError),
        open("/proc/self/status", encoding="ascii", errors="replace") as file,
    ):
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o077
