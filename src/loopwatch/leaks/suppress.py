"""Which findings a guard is to overlook, and why; and which it is asked for by name.

An ``Ignore`` overlooks, with a reason; a name filter selects.  Both take an exact string or a compiled regular
expression, which may match anywhere in the text (``re.search``).
"""

import difflib
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopwatch.stacks import is_own

__all__ = ["FINDING_KINDS", "Ignore", "Ignores", "NameFilter", "ignores_from", "name_filter_from"]

Pattern = str | re.Pattern[str]
NameFilter = Pattern | None
_KEYS = ("name", "qualname", "stack", "creator", "module")
FINDING_KINDS = (
    "task",
    "destroyed_task",
    "task_exception",
    "coroutine",
    "thread",
    "async_generator",
    "timer",
    "descriptor",
    "process",
    "loop",
    "executor",
    "block",
)
_REGEX_SIGNS = re.compile(r"\\[A-Za-z.]|\.[*+?]|^\^|\$$|\(\?|\[[^\]]+\][*+?{]|\)[*+?{|]")


@dataclass(frozen=True)
class Ignore:
    """Findings to overlook: those for which all that is given here matches.

    name: the task's or thread's name.  qualname: the coroutine's or thread target's qualified name.  stack: a function
    on its current stack.  creator: a function on the stack that created it.  module: the module whose code made it, or
    that defines the task's coroutine, the thread's target, the timer's callback.  kind: only findings of this kind
    ("task", "thread", ...).  Each is a string, matched whole, or a compiled regular expression, searched.  reason: why
    it is no leak, for people.
    """

    name: Pattern | None = None
    qualname: Pattern | None = None
    stack: Pattern | None = None
    creator: Pattern | None = None
    module: Pattern | None = None
    kind: str | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        given = [key for key in _KEYS if getattr(self, key) is not None]
        if not given and self.kind is None:
            raise ValueError(
                "Ignore() without anything to match would overlook every leak: give it name=, qualname=, "
                "stack=, creator=, module= or kind="
            )
        if self.kind is not None and self.kind not in FINDING_KINDS:
            close = difflib.get_close_matches(str(self.kind), FINDING_KINDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(FINDING_KINDS)}"
            raise ValueError(f"Ignore(kind={self.kind!r}) names no kind of finding; {hint}")
        if not isinstance(self.reason, str):
            raise TypeError(f"Ignore(reason=...) must be a string, got {self.reason!r}")
        for key in given:
            check_pattern(f"Ignore({key}=...)", getattr(self, key))

    def matches(self, leak: Any, labels: Mapping[str, Sequence[str]] | None = None) -> bool:
        """Whether it covers this finding, whose labels may be given where they are known already."""
        if self.kind is not None and leak.kind != self.kind:
            return False
        labels = leak.labels() if labels is None else labels
        for key in _KEYS:
            pattern = getattr(self, key)
            if pattern is not None and not any(fits(pattern, text) for text in labels.get(key, ())):
                return False
        return True


@dataclass(frozen=True)
class _ByName(Ignore):
    """A bare string or regular expression in ``ignore=``: the name, or the qualified name."""

    def __post_init__(self) -> None:
        name: Any = self.name
        check_pattern("ignore", name)

    def matches(self, leak: Any, labels: Mapping[str, Sequence[str]] | None = None) -> bool:
        labels = leak.labels() if labels is None else labels
        assert self.name is not None
        return any(fits(self.name, text) for key in ("name", "qualname") for text in labels.get(key, ()))


Ignores = Ignore | Pattern | Iterable[Ignore | Pattern]


def ignores_from(value: object) -> tuple[Ignore, ...]:
    """Turn ``ignore=`` as users write it into entries.  Raises TypeError for what is none."""
    if value == ():
        return ()
    if isinstance(value, str | re.Pattern | Ignore):
        value = (value,)
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        raise TypeError(
            f"ignore must be a sequence of loopwatch.Ignore, strings or compiled regular expressions, got "
            f"{value!r} of type {type(value).__name__}"
        )
    return tuple(item if isinstance(item, Ignore) else _ByName(name=item) for item in value)


def first_match(ignores: Iterable[Ignore], leak: Any) -> Ignore | None:
    """The first entry that covers a finding; its labels are asked for once, and only where they matter."""
    ignores = [entry for entry in ignores if entry.kind is None or entry.kind == leak.kind]
    if not ignores:
        return None
    labels = leak.labels()
    return next((entry for entry in ignores if entry.matches(leak, labels)), None)


def name_filter_from(value: NameFilter) -> NameFilter:
    """Check a ``name_filter``: the names to report, all others pass.  Raises TypeError for what is none."""
    return None if value is None else check_pattern("name_filter", value)


def fits(pattern: Pattern, text: str) -> bool:
    return text == pattern if isinstance(pattern, str) else pattern.search(text) is not None


def check_pattern(what: str, value: Pattern) -> Pattern:
    """Check that a pattern is one; warn of a string that was meant as a regular expression."""
    if isinstance(value, re.Pattern):
        if isinstance(value.pattern, bytes):  # type: ignore[unreachable]
            raise TypeError(f"{what} must be a regular expression of str, got one of bytes: {value!r}")
        return value
    if not isinstance(value, str):
        raise TypeError(
            f"{what} must be a string (matched whole) or a compiled regular expression, got {value!r} of "
            f"type {type(value).__name__}"
        )
    if not value:
        raise ValueError(f"{what} is an empty string, which no name equals")
    if _REGEX_SIGNS.search(value):
        warnings.warn(
            f"{what}={value!r} is compared as it stands and will hardly equal any name: for a regular "
            f"expression write re.compile({_raw(value)}), on the command line and in files re:{value}",
            UserWarning,
            stacklevel=_outside(),
        )
    return value


def _outside() -> int:
    """The stacklevel, for a warning of the caller, of the code outside of loopwatch that called it."""
    level = 1
    while sys._getframe(level).f_back is not None and _is_inside(sys._getframe(level).f_code.co_filename):
        level += 1
    return level


def _is_inside(filename: str) -> bool:
    return is_own(filename) or filename == "<string>"  # where dataclasses write their __init__


def _raw(text: str) -> str:
    return f'r"{text}"' if '"' not in text and not text.endswith("\\") else repr(text)
