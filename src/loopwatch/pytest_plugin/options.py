"""The settings as ini options and command line options of pytest; and what only the plugin has."""

from typing import TYPE_CHECKING, Any, Literal

from loopwatch.settings import SETTINGS, Setting

if TYPE_CHECKING:
    import pytest

    from loopwatch.pytest_plugin.plan import Layer

__all__ = ["add_options", "annotations", "is_used", "layers", "watches_everything"]

_ANNOTATIONS = "LOOPWATCH_ANNOTATIONS"


def add_options(parser: "pytest.Parser") -> None:
    """Declare everything.  Defaults are None: who set what is found out later."""
    group = parser.getgroup("loopwatch", "leaks and blocked event loops (loopwatch)")
    group.addoption("--loopwatch", action="store_true", default=None, help="Put every test under guard; findings warn.")
    parser.addini("loopwatch", "Put every test under guard, as --loopwatch does.", type="bool", default=False)
    for entry in SETTINGS.values():
        group.addoption(
            entry.command_line,
            dest=entry.ini,
            default=None,
            action="append" if entry.type == "ignores" else "store",
            metavar=_METAVARS.get(entry.type, "VALUE"),
            help=_help(entry),
        )
        parser.addini(entry.ini, _help(entry), type=_ini_type(entry), default=None)
    group.addoption(
        "--loopwatch-json",
        metavar="FILE",
        default=None,
        help="Write all findings to this file as JSON (schema loopwatch.pytest/1).",
    )
    group.addoption(
        "--loopwatch-update-baseline",
        action="store_true",
        default=False,
        help="Write the baseline file anew: all findings of this run are known from then on.",
    )
    group.addoption(
        "--loopwatch-annotations",
        choices=("github", "none"),
        default=None,
        help=f"Print findings as annotations of a pull request. Default: what {_ANNOTATIONS} says.",
    )


def _ini_type(entry: Setting) -> Literal["string", "linelist"]:
    return "linelist" if entry.type == "ignores" else "string"


_METAVARS = {"bool": "yes|no", "action": "ACTION", "seconds": "SEC", "duration": "SEC", "names": "NAME", "path": "FILE"}


def _help(entry: Setting) -> str:
    default = entry.default
    if entry.type == "bool":
        default = "yes" if default else "no"
    shown = "" if default in (None, ()) or hasattr(default, "pattern") else f" Default: {default}."
    return (entry.help + shown).replace("%", "%%")


def watches_everything(config: "pytest.Config") -> bool:
    """Whether tests without a marker are under guard too."""
    return bool(config.getoption("loopwatch") or config.getini("loopwatch"))


def is_used(config: "pytest.Config") -> bool:
    """Whether this run asks for anything of loopwatch, before any test is known."""
    options = ("loopwatch_json", "loopwatch_baseline", "loopwatch_update_baseline")
    return watches_everything(config) or any(config.getoption(option) for option in options)


def layers(config: "pytest.Config") -> "list[Layer]":
    """What the command line, the ini file and loopwatch's own file say, nearest first.  Raises SettingError."""
    from loopwatch.leaks.config import configured

    command_line: dict[str, Any] = {}
    ini: dict[str, Any] = {}
    file = str(config.inipath) if config.inipath is not None else "the ini file"
    for name, entry in SETTINGS.items():
        given = config.getoption(entry.ini)
        if given is not None:
            command_line[name] = entry.parse(given, entry.command_line, text=True)
        written = config.getini(entry.ini)
        if written not in (None, "", []):
            ini[name] = entry.parse(written, f"{file}, {entry.ini}", text=True)
    return [command_line, ini, configured(config.rootpath).values]


def annotations(config: "pytest.Config", environment: "dict[str, str]") -> bool:
    """Whether findings are to be printed as GitHub's annotations."""
    chosen = config.getoption("loopwatch_annotations") or environment.get(_ANNOTATIONS, "none")
    return bool(chosen == "github")
