"""Starts a monitor as the environment variable ``LOOPWATCH`` says, with no change to the program.

    LOOPWATCH=monitor                                  all by default: alarms are written to stderr
    LOOPWATCH=monitor,interval=5,json=alarms.jsonl     settings of Monitor, separated by commas; with json= alarms go
                                                       to that file only, unless stderr=on is given too
    LOOPWATCH=0                                        none, as without it

A file ``loopwatch_autostart.pth`` in site-packages imports this module when Python starts and the variable is set;
while it is not set, that costs a look into the environment.  A value that is wrong is said so on stderr, and the
program runs on.  Children that a program forks (gunicorn's workers) or starts anew have a monitor of their own.
"""

import contextlib
import difflib
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopwatch.monitor.monitor import Monitor

__all__ = ["VARIABLE", "parse", "start_from_environment"]

VARIABLE = "LOOPWATCH"
_ON = ("1", "true", "yes", "on")
_OFF = ("0", "false", "no", "off")


def _truth(text: str) -> bool:
    if text.lower() in (*_ON, *_OFF):
        return text.lower() in _ON
    raise ValueError(f"must be on or off, got {text!r}")


def _memory(text: str) -> bool | str:
    return "sampled" if text == "sampled" else _truth(text)


_SETTINGS: Mapping[str, Callable[[str], Any]] = {
    "interval": float,
    "window": int,
    "sigma": float,
    "consecutive": int,
    "max_tasks": int,
    "memory_growth": float,
    "lag": float,
    "hang": float,
    "repeat": float,
    "objects": int,
    "json": str,
    "stderr": _truth,
    "memory": _memory,
    "ignore": str,
}

_monitor: "Monitor | None" = None
_refused: set[str] = set()  # values that were complained of: site may read a .pth file twice


def parse(text: str) -> dict[str, Any] | None:
    """The settings that a value of the variable asks for; None for none.  Raises ValueError for one that is wrong.

    ``ignore`` may be given several times: names of tasks, or qualified names of coroutines, to overlook.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or (len(words) == 1 and words[0].lower() in _OFF):
        return None
    if words[0].lower() not in ("monitor", *_ON):
        raise ValueError(f"it begins with {words[0]!r}; write {VARIABLE}=monitor, and settings behind commas")
    settings: dict[str, Any] = {}
    for word in words[1:]:
        name, equals, value = (part.strip() for part in word.partition("="))
        if name not in _SETTINGS:
            close = difflib.get_close_matches(name, _SETTINGS, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_SETTINGS)}"
            raise ValueError(f"no such setting: {name!r}; {hint}")
        if not equals or not value:
            raise ValueError(f"{name} has no value; write {name}=...")
        try:
            read = _SETTINGS[name](value)
        except ValueError as error:
            raise ValueError(f"{name}={value}: {error}") from None
        settings[name] = (*settings.get("ignore", ()), read) if name == "ignore" else read
    if "json" not in settings:
        settings.setdefault("stderr", True)
    else:
        settings["json"] = os.path.abspath(settings["json"])
    return settings


def start_from_environment() -> "Monitor | None":
    """Start a monitor if ``LOOPWATCH`` asks for one.  Idempotent.  Never raises: what is wrong is said on stderr."""
    global _monitor
    if _monitor is not None:
        return _monitor.start()
    try:
        settings = parse(os.environ.get(VARIABLE, ""))
        if settings is None:
            return None
        from loopwatch.monitor.monitor import Monitor

        _monitor = Monitor(**settings).start()
        os.register_at_fork(after_in_child=_again)
    except Exception as error:
        value = os.environ.get(VARIABLE, "")
        if value not in _refused:
            _refused.add(value)
            _say(f"{VARIABLE}={value!r} starts no monitor: {error}")
        return None
    return _monitor


def _again() -> None:
    """In a forked child, after the parent's monitor was taken down there."""
    if _monitor is not None:
        try:
            _monitor.start()
        except Exception as error:
            _say(f"no monitor in this child process: {error}")


def _say(text: str) -> None:
    with contextlib.suppress(Exception):
        sys.stderr.write(f"loopwatch: {text}\n")
