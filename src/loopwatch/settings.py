"""Every setting of the leak guards, described once.

From one ``Setting`` follow the option of ``no_leaks``, the marker's argument, the key in ``loopwatch.toml``, the ini
option and the command line option.  ``Setting.parse`` checks a value and turns it into what the guards take, whether it
was written as text (ini, command line) or as a Python or TOML value.
"""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from loopwatch.actions import parse_action

__all__ = ["DEFAULT_THREAD_NAME_FILTER", "KINDS", "SETTINGS", "Setting", "SettingError", "setting"]

DEFAULT_THREAD_NAME_FILTER = re.compile(r"^(?!asyncio_\d+$).*")
"""All threads but the workers of asyncio's own executor, which live as long as the loop."""

_REGEX = "re:"
_YES = ("true", "yes", "on", "1")
_NO = ("false", "no", "off", "0")


class SettingError(ValueError):
    """A setting is misspelt or has a value that it cannot have.  The message names where it was written."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting.

    name: its name in ``no_leaks(...)``, the marker and the toml file.  type: "bool", "action", "seconds",
    "duration", "names", "path" or "ignores".
    default: its value where nobody sets it; None: as each kind has it.  help: one sentence.
    kind: the kind that it belongs to, None for all.  option: the name of the kind's own option that it sets (of
    ``no_leaks(KIND={option: value})``), None for the switch itself and for what belongs to no kind.
    marker_default: its value under pytest's marker where the marker does not set it; None: the default.
    """

    name: str
    type: str
    default: Any
    help: str
    kind: str | None = None
    option: str | None = None
    marker_default: Any = None

    @property
    def ini(self) -> str:
        """Its name in pytest.ini or ``[tool.pytest.ini_options]``."""
        return f"loopwatch_{self.name}"

    @property
    def command_line(self) -> str:
        """Its name on pytest's command line."""
        return f"--loopwatch-{self.name.replace('_', '-')}"

    @property
    def valid(self) -> str:
        """What it may be, for help and messages."""
        return _VALID[self.type]

    def parse(self, value: Any, where: str, *, text: bool = False) -> Any:
        """Check a value and give it the form that the guards take.

        where: for messages, such as "pyproject.toml, [tool.loopwatch]".  text: it comes from an ini file or the command
        line, so that numbers and switches are written as strings.  Raises SettingError.
        """
        try:
            return _PARSERS[self.type](value, text)
        except (TypeError, ValueError) as error:
            detail = "" if str(error) in ("", self.valid) else f" ({error})"
            raise SettingError(f"{where}: {self.name} must be {self.valid}, got {value!r}{detail}") from error


def setting(name: str, where: str) -> Setting:
    """The setting of this name.  Raises SettingError, with the nearest name, where there is none."""
    found = SETTINGS.get(name)
    if found is None:
        close = difflib.get_close_matches(name, SETTINGS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(SETTINGS)}"
        raise SettingError(f"{where}: there is no setting {name!r}; {hint}")
    return found


def pattern_from_text(text: str) -> str | re.Pattern[str]:
    """A name as files write it: matched whole; a regular expression where it begins with ``re:``."""
    if not text.startswith(_REGEX):
        return text
    try:
        return re.compile(text.removeprefix(_REGEX))
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None


def _bool(value: Any, text: bool) -> bool:
    if isinstance(value, bool):
        return value
    if text and isinstance(value, str) and value.lower() in _YES + _NO:
        return value.lower() in _YES
    raise TypeError("")


def _action(value: Any, text: bool) -> Any:
    if text and isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
        value = value[0] if len(value) == 1 else value
    if value is not None:
        parse_action(value)
    return value


def _seconds(value: Any, text: bool) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str) if text else (int, float)):
        raise TypeError("")
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError("")
    return number


def _duration(value: Any, text: bool) -> float | None:
    number = _seconds(value, text)
    if number == 0:
        raise ValueError("")
    return number


def _names(value: Any, text: bool) -> str | re.Pattern[str] | None:
    if value is None or isinstance(value, re.Pattern):
        return value
    if not isinstance(value, str):
        raise TypeError("")
    return pattern_from_text(value) if value else None


def _path(value: Any, text: bool) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise TypeError("")
    return os.fspath(value)


def _ignores(value: Any, text: bool) -> tuple[Any, ...]:
    from loopwatch.leaks.suppress import ignores_from

    if text and isinstance(value, str):
        value = [line for line in value.splitlines() if line.strip()]
    if isinstance(value, Mapping):
        raise TypeError("")
    if isinstance(value, Iterable) and not isinstance(value, str):
        value = [ignore_from_text(item) if text and isinstance(item, str) else item for item in value]
    return ignores_from(value)


def ignore_from_text(line: str) -> Any:
    """An entry as ini files write it: ``[KEY=]PATTERN [# REASON]``, where KEY is one of Ignore's, else the name."""
    from loopwatch.leaks.suppress import Ignore

    keys = [one.name for one in dataclasses.fields(Ignore) if one.name != "reason"]
    pattern, _, reason = line.partition(" #")
    key, found, rest = pattern.strip().partition("=")
    if found and key in keys:
        match: Any = rest if key == "kind" else pattern_from_text(rest)
        return Ignore(**{key: match}, reason=reason.strip())
    close = difflib.get_close_matches(key, keys, n=1) if found and key.isidentifier() else ()
    if close:
        raise ValueError(f"{key!r} is no key, did you mean {close[0]!r}? A name with '=' in it is written name=NAME")
    return Ignore(name=pattern_from_text(pattern.strip()), reason=reason.strip())


_PARSERS: dict[str, Callable[[Any, bool], Any]] = {
    "bool": _bool,
    "action": _action,
    "seconds": _seconds,
    "duration": _duration,
    "names": _names,
    "path": _path,
    "ignores": _ignores,
}
_VALID = {
    "bool": "true or false",
    "action": "'warn', 'log', 'cancel', 'raise' or several of these",
    "seconds": "a number of seconds, 0 or more",
    "duration": "a number of seconds above 0",
    "names": "a name, matched whole, or a regular expression written as 're:...'",
    "path": "the path of a file",
    "ignores": "a list of what to overlook",
}

_KINDS = {
    "tasks": ("task", "asyncio tasks that outlive the scope"),
    "destroyed_tasks": ("destroyed_task", "tasks destroyed while pending"),
    "task_exceptions": ("task_exception", "tasks that ended with an exception nobody retrieved"),
    "coroutines": ("coroutine", "coroutines never awaited"),
    "threads": ("thread", "threads that outlive the scope"),
    "async_generators": ("async_generator", "async generators neither exhausted nor closed"),
    "timers": ("timer", "timers (call_later, call_at) still scheduled"),
    "descriptors": ("descriptor", "file descriptors and sockets left open"),
    "processes": ("process", "child processes not reaped"),
    "loops": ("loop", "event loops not closed"),
    "executors": ("executor", "executors not shut down"),
    "blocking": ("blocking", "what blocks the event loop"),
}
KINDS = tuple(_KINDS)
"""The names of all kinds, in the order of reports."""


def _all() -> Iterable[Setting]:
    yield Setting(
        "action", "action", "warn", "What happens to findings whose kind says nothing else.", None, None, "raise"
    )
    for kind, (singular, what) in _KINDS.items():
        yield Setting(kind, "bool", True, f"Look for {what}.", kind)
        yield Setting(f"{singular}_action", "action", None, f"What happens to {what}.", kind, "action")
        yield from _MORE.get(kind, ())
    yield Setting(
        "grace_period", "seconds", None, "How long to wait at most for leaks to end; as long as each kind needs."
    )
    yield Setting("ignore", "ignores", (), "Findings to overlook, each with its reason.")
    yield Setting("default_ignores", "bool", True, "Overlook the known background work of common libraries.")
    yield Setting("baseline", "path", None, "A file of known findings: only what is new is reported.")


_MORE = {
    "tasks": (
        Setting("task_name_filter", "names", None, "Report tasks of this name only.", "tasks", "name_filter"),
        Setting(
            "enable_task_creation_tracking",
            "bool",
            False,
            "Show the stack that created a task in texts.",
            "tasks",
            "enable_creation_tracking",
        ),
    ),
    "threads": (
        Setting(
            "thread_name_filter",
            "names",
            DEFAULT_THREAD_NAME_FILTER,
            "Report threads of this name only; by default all but the workers of asyncio's executor.",
            "threads",
            "name_filter",
        ),
        Setting("exclude_daemon_threads", "bool", True, "Leave out daemon threads.", "threads", "exclude_daemon"),
    ),
    "blocking": (
        Setting(
            "blocking_threshold",
            "duration",
            0.2,
            "Seconds that the loop may be busy without a break.",
            "blocking",
            "threshold",
        ),
        Setting(
            "blocking_check_interval",
            "duration",
            0.01,
            "Seconds between two looks at the stack of a busy loop; a tenth of the threshold where that is shorter, "
            "at least 0.001.",
            "blocking",
            "check_interval",
        ),
    ),
}

SETTINGS: Mapping[str, Setting] = {entry.name: entry for entry in _all()}
"""All settings by name, in the order of help."""
