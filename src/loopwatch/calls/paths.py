"""Which files' calls are told: substrings of their paths, to include and to leave out."""

import os
from collections.abc import Iterable

from loopwatch.stacks import is_own

_LIBRARY = os.path.dirname(os.__file__)
_MODULES = ("asyncio/", "concurrent/", "importlib/", "contextlib.py", "functools.py", "threading.py", "typing.py")

DEFAULT_EXCLUDE_PATHS = (
    "<frozen",
    "/asyncio_event_loop_monitor/",
    *(f"{_LIBRARY}/{module}" for module in _MODULES),  # whole paths: a project may be called my-asyncio-app
)


class PathFilter:
    """Tells whether a file's functions are told.  Answers are kept: a program has few files and many calls."""

    def __init__(self, include: Iterable[str] | None, exclude: Iterable[str] | None) -> None:
        self.include = _substrings("include_paths", include, ())
        self.exclude = _substrings("exclude_paths", exclude, DEFAULT_EXCLUDE_PATHS)
        self._known: dict[str, bool] = {}

    def passes(self, filename: str) -> bool:
        known = self._known.get(filename)
        if known is None:
            known = not is_own(filename) and not any(part in filename for part in self.exclude)
            known = known and (not self.include or any(part in filename for part in self.include))
            if len(self._known) < 10_000:
                self._known[filename] = known
        return known


def _substrings(name: str, given: Iterable[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    if given is None:
        return default
    if isinstance(given, str | bytes):
        raise TypeError(f"{name} must be a list of substrings of paths, got the single {given!r}: write [{given!r}]")
    try:
        parts = tuple(given)
    except TypeError:
        raise TypeError(f"{name} must be a list of substrings of paths or None, got {given!r}") from None
    wrong = [part for part in parts if type(part) is not str or not part]
    if wrong:
        raise TypeError(f"{name} must hold substrings of paths, not {wrong[0]!r}")
    return parts
