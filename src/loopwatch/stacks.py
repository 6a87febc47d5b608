"""Stacks of the core as Python's own traceback objects.

The core hands out plain tuples (``RawFrame``); people and tools expect ``traceback.FrameSummary``.  A ``Frame`` is one,
with the qualified name beside the bare one.  Columns need no conversion: both count UTF-8 bytes, the core writes -1 and
``FrameSummary`` None for "unknown".  Source lines are read at once, so that a finding can be pickled and printed
elsewhere.
"""

import copy
import functools
import linecache
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from loopwatch.printable import printable, printable_source

if TYPE_CHECKING:
    from loopwatch._core import RawFrame

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_PROGRAM = os.path.join(_PACKAGE, "commands", "program.py")
_RUNNERS = ("asyncio", "trio", "uvloop", "trio_asyncio", "anyio")


class Frame(traceback.FrameSummary):
    """One line of a stack: a ``traceback.FrameSummary`` that also knows ``qualname``, such as ``Handler.get``."""

    __slots__ = ("qualname",)

    qualname: str


def frames_from_raw(raw: Iterable["RawFrame"]) -> tuple[Frame, ...]:
    """Turn frames of the core into ``Frame`` objects, outermost first, with their source lines."""
    return tuple(_frame(*fields) for fields in raw)


def summary_from_raw(raw: Iterable["RawFrame"]) -> traceback.StackSummary:
    """The same as what ``traceback`` makes of a stack: a list that can format itself."""
    return traceback.StackSummary(frames_from_raw(raw))


def _frame(filename: str, qualname: str, line: int, end_line: int, column: int, end_column: int) -> Frame:
    offer_source(filename)
    columns = column >= 0 and end_column >= 0 and line > 0
    frame = Frame(
        filename,
        line if line > 0 else None,
        qualname.rpartition(".")[2] or qualname,
        end_lineno=end_line if end_line > 0 else None,
        colno=column if columns else None,
        end_colno=end_column if columns else None,
    )
    frame.qualname = qualname
    return frame


def offer_source(filename: str) -> None:
    """Let linecache ask the loader of a module that is no plain file (one imported from a zip archive)."""
    if filename in linecache.cache or filename.startswith("<") or os.path.exists(filename):
        return
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == filename:
            linecache.lazycache(filename, vars(module))
            return


def qualified_name(frame: traceback.FrameSummary) -> str:
    """The qualified name of a frame's function; the bare one where no other is known."""
    return str(getattr(frame, "qualname", frame.name))


def format_stack(frames: Sequence[traceback.FrameSummary]) -> str:
    """Format a stack as a traceback does, outermost first, each line ending with a newline, and safe to print."""
    safe = [_printable_frame(frame) for frame in frames]
    try:
        text = "".join(traceback.StackSummary.from_list(safe).format())
    except Exception:  # the source changed under us and its columns no longer fit: the lines alone
        text = "".join(traceback.format_list([(frame.filename, frame.lineno or 0, frame.name, "") for frame in safe]))
    return printable_source(text)


def _printable_frame(frame: traceback.FrameSummary) -> traceback.FrameSummary:
    if frame.filename.isprintable() and frame.name.isprintable():
        return frame
    safe = copy.copy(frame)  # its source lines with it: they could not be found under the changed name
    safe.filename, safe.name = printable(frame.filename), printable(frame.name)
    return safe


@functools.lru_cache(maxsize=4096)
def is_library(filename: str) -> bool:
    """Tell whether a file belongs to Python, to an installed distribution or to loopwatch, not to the program."""
    if filename.startswith(("<frozen ", _PACKAGE)):
        return True
    if "/site-packages/" in filename or "/dist-packages/" in filename:
        return True
    return any(filename.startswith(folder) for folder in library_folders())


@functools.cache
def library_folders() -> tuple[str, ...]:
    """Where Python's own library lies."""
    paths = sysconfig.get_paths()
    folders = {os.path.join(paths[name], "") for name in ("stdlib", "platstdlib") if paths.get(name)}
    folders |= {os.path.join(os.path.realpath(folder), "") for folder in folders}
    return tuple(sorted(folders))


def is_own(filename: str) -> bool:
    """Tell whether a file is part of loopwatch."""
    return filename.startswith(_PACKAGE)


def is_runner(filename: str) -> bool:
    """Tell whether a file is part of what runs every program here: the loop, runpy, loopwatch."""
    if filename.startswith(("<frozen ", _PACKAGE)):
        return True
    parts = filename.split("/")
    return is_library(filename) and (parts[-1] == "runpy.py" or any(name in parts for name in _RUNNERS))


def launcher_frames(frames: Sequence[traceback.FrameSummary]) -> int:
    """How many frames at the outer end belong to `loopwatch run`: its own, its script's, and runpy's below them."""
    started = [number for number, frame in enumerate(frames) if frame.filename == _PROGRAM]
    if not started:
        return 0
    first = started[-1] + 1
    while first < len(frames) and _is_runpy(frames[first].filename):
        first += 1
    return min(first, len(frames) - 1)


def _is_runpy(filename: str) -> bool:
    return filename == "<frozen runpy>" or (filename.endswith("/runpy.py") and is_library(filename))


_LOOP_FRAMES = frozenset({"_run_once", "run_forever", "unrolled_run"})
_RUNS_A_LOOP = re.compile(r"\brun_(until_complete|forever)\(")
_BEFORE_IT_RUNS = frozenset({"run_until_complete", "run_forever", "ensure_future", "_ensure_future", "create_task"})


def _runs_the_loop(frames: Sequence[traceback.FrameSummary], number: int) -> bool:
    """Tell whether the frame after this one is what an event loop called; loops of C code show by the call of them."""
    frame = frames[number]
    if frame.name in _LOOP_FRAMES and is_runner(frame.filename):
        return True
    if not _RUNS_A_LOOP.search(frame.line or ""):
        return False
    below = frames[number + 1] if number + 1 < len(frames) else None
    return below is None or below.name not in _BEFORE_IT_RUNS


def below_loop(frames: Sequence[traceback.FrameSummary]) -> Sequence[traceback.FrameSummary]:
    """The frames of what an event loop called; all of them where they hold no loop, none where it called C code."""
    called = 0
    for number in range(len(frames)):
        if _runs_the_loop(frames, number):
            called = number + 1
    return frames[called:]


def user_frame(frames: Sequence[traceback.FrameSummary]) -> traceback.FrameSummary | None:
    """The innermost frame of the program's own code, the line to fix.

    Only what the loop called counts: the line that started the loop is nobody's fault.  Where that holds none of the
    program's own, the innermost one that is not the loop's own; where it holds none of these either, or where the loop
    called C code, the innermost.  None for an empty stack.
    """
    inside = below_loop(frames) or frames[-1:]
    for skip in (is_library, is_runner):
        for frame in reversed(inside):
            if not skip(frame.filename):
                return frame
    return inside[-1] if inside else None


@functools.lru_cache(maxsize=4096)
def module_of(filename: str) -> str:
    """The dotted name of the module that was loaded from a file; the file's own name where none was."""
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) == filename:
            return name
    return os.path.basename(filename).removesuffix(".py")


def making_module(creation_stack: Sequence[traceback.FrameSummary]) -> str | None:
    """The module whose code made a thing: that of the innermost frame outside of Python's own library."""
    for frame in reversed(creation_stack):
        if not _is_standard(frame.filename):
            return module_of(frame.filename)
    return module_of(creation_stack[-1].filename) if creation_stack else None


@functools.lru_cache(maxsize=4096)
def _is_standard(filename: str) -> bool:
    return is_library(filename) and "/site-packages/" not in filename and "/dist-packages/" not in filename
