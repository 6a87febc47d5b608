"""Settings from a file: ``loopwatch.toml``, or ``[tool.loopwatch]`` in ``pyproject.toml``.

The nearest file upward from a folder counts, alone; in one folder ``loopwatch.toml`` goes before ``pyproject.toml``.
It is read once a process.  Where it is wrong, the error names the file, the key, what was expected and what came.
"""

import functools
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loopwatch.leaks.known_good import KNOWN_GOOD
from loopwatch.leaks.suppress import Ignore
from loopwatch.settings import SettingError, pattern_from_text, setting

__all__ = ["Config", "configured", "find_config", "read_config"]

_MATCHING = ("name", "qualname", "stack", "creator", "module")
_IGNORE_KEYS = (*_MATCHING, "kind", "reason")


@dataclass(frozen=True)
class Config:
    """What a file sets.  ``values`` are checked settings by name; ``path`` is None where there is no file."""

    path: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


def configured(folder: str | os.PathLike[str] | None = None) -> Config:
    """The settings that hold in a folder, by default the current one.  Raises SettingError where the file is wrong."""
    try:
        return _configured(os.getcwd() if folder is None else os.path.abspath(folder))
    except FileNotFoundError:  # the current folder is gone
        return Config()


def standing() -> tuple[Ignore, ...]:
    """What every guard overlooks: the entries of the file, and the known background work of libraries."""
    values = configured().values
    entries: tuple[Ignore, ...] = values.get("ignore", ())
    return entries + KNOWN_GOOD if values.get("default_ignores", True) else entries


@functools.lru_cache(maxsize=64)
def _configured(folder: str) -> Config:
    path = find_config(folder)
    return Config() if path is None else read_config(path)


def find_config(folder: str | os.PathLike[str]) -> str | None:
    """The nearest file upward from a folder that holds settings of loopwatch; None where there is none."""
    here = os.path.abspath(folder)
    while True:
        path = os.path.join(here, "loopwatch.toml")
        if os.path.isfile(path):
            return path
        path = os.path.join(here, "pyproject.toml")
        if os.path.isfile(path) and _table(path) is not None:
            return path
        parent = os.path.dirname(here)
        if parent == here:
            return None
        here = parent


def read_config(path: str | os.PathLike[str]) -> Config:
    """Read and check a file.  Raises SettingError."""
    path = os.fspath(path)
    values: dict[str, Any] = {}
    where = path if _is_own(path) else f"{path}, [tool.loopwatch]"
    for name, value in (_table(path) or {}).items():
        entry = setting(name, where)
        if name == "ignore":
            value = _ignores(value, where)
        values[name] = entry.parse(value, where)
    if values.get("baseline") is not None:
        values["baseline"] = os.path.join(os.path.dirname(os.path.abspath(path)), values["baseline"])
    return Config(path, values)


def _is_own(path: str) -> bool:
    return os.path.basename(path) != "pyproject.toml"


def _table(path: str) -> Mapping[str, Any] | None:
    """The settings as they stand in a file; None where a pyproject.toml has none."""
    try:
        with open(path, "rb") as file:
            raw = file.read()
        if not _is_own(path) and b"loopwatch" not in raw:
            return None
        data = tomllib.loads(raw.decode("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"{path} cannot be read: {error}") from error
    if _is_own(path):
        return data
    tool = data.get("tool")
    table = tool.get("loopwatch") if isinstance(tool, Mapping) else None
    if table is not None and not isinstance(table, Mapping):
        raise SettingError(f"{path}: [tool.loopwatch] must be a table, got {table!r}")
    return table


def _ignores(value: Any, where: str) -> list[Ignore]:
    if not isinstance(value, list):
        raise SettingError(f"{where}: ignore must be an array of tables ([[ignore]]), got {value!r}")
    return [_ignore(item, f"{where}: ignore entry {number}") for number, item in enumerate(value, 1)]


def _ignore(item: Any, where: str) -> Ignore:
    if not isinstance(item, Mapping):
        raise SettingError(f'{where} must be a table such as {{name = "...", reason = "..."}}, got {item!r}')
    for key, text in item.items():
        if key not in _IGNORE_KEYS:
            raise SettingError(f"{where} has an unknown key {key!r}; it may have {', '.join(_IGNORE_KEYS)}")
        if not isinstance(text, str):
            raise SettingError(f"{where}: {key} must be a string, got {text!r}")
    if not str(item.get("reason", "")).strip():
        raise SettingError(f"{where} has no reason: say why this is no leak, for who reads it later")
    try:
        entry: dict[str, Any] = {
            key: pattern_from_text(text) if key in _MATCHING else text for key, text in item.items()
        }
        return Ignore(**entry)
    except ValueError as error:
        raise SettingError(f"{where}: {error}") from error
