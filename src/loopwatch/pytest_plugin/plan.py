"""What to look for in one test: from its marker, the command line, the ini file and the configuration file.

The nearest that says something wins, in that order.  A marked test raises where nothing says otherwise, as pyleak's
marker does; a test that only ``--loopwatch`` puts under guard warns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loopwatch.actions import Action
from loopwatch.findings import CallerContext
from loopwatch.leaks.blocks import BlockingKind
from loopwatch.leaks.everything import rules_from_settings
from loopwatch.leaks.waiting import Rule
from loopwatch.settings import KINDS, SETTINGS, Setting, SettingError, setting

__all__ = ["Layer", "Plan", "Planner", "marker_layer", "seen_from"]

Layer = Mapping[str, Any]
"""Settings by name, parsed, from one place: a marker, the command line, a file."""

_EVERYTHING = "all"
_NOTHING = "none"


Plan = tuple[Rule, ...]
"""What to look for, with what to do about it."""


def marker_layer(args: Sequence[Any], kwargs: Mapping[str, Any], where: str) -> Layer:
    """The settings of a ``no_leaks`` marker.

    Names of kinds given by position select just these; "all" selects all, "none" nothing.  Raises SettingError for
    what does not exist, with what does.
    """
    layer: dict[str, Any] = {}
    if args:
        layer = dict.fromkeys(KINDS, False)
        for arg in args:
            if arg == _EVERYTHING:
                layer.update(dict.fromkeys(KINDS, True))
            elif isinstance(arg, str) and arg in KINDS:
                layer[arg] = True
            elif arg != _NOTHING:
                names = ", ".join(repr(name) for name in (*KINDS, _EVERYTHING, _NOTHING))
                raise SettingError(f"{where}: no_leaks({arg!r}) selects nothing that there is; there are {names}")
    for name, value in kwargs.items():
        if name == "baseline":
            raise SettingError(f"{where}: a baseline is one for the whole run: write --loopwatch-baseline FILE")
        layer[name] = setting(name, where).parse(value, where)
    return layer


class Planner:
    """Makes plans from layers, nearest first, and remembers the one for tests without a marker."""

    def __init__(self, layers: Sequence[Layer], everything: bool) -> None:
        self._layers = tuple(layers)
        self._everything = everything
        self._unmarked: Plan | None = None

    def plan(self, marker: Layer | None) -> Plan | None:
        """The plan for a test with these settings in its marker, None for one without marker."""
        if marker is not None:
            return self._make((marker, *self._layers), marked=True)
        if not self._everything:
            return None
        if self._unmarked is None:
            self._unmarked = self._make(self._layers, marked=False)
        return self._unmarked

    def _make(self, layers: Sequence[Layer], *, marked: bool) -> Plan:
        values = {
            name: next((layer[name] for layer in layers if layer.get(name) is not None), _default(entry, marked))
            for name, entry in SETTINGS.items()
        }
        for entry in SETTINGS.values():
            if entry.option == "action":
                values[entry.name] = _action(entry.name, layers, values["action"])
        values["ignore"] = tuple(ignore for layer in layers for ignore in layer.get("ignore", ()))
        values["baseline"] = None  # one for the whole run, not one for each scope
        return rules_from_settings(values)


def seen_from(plan: Plan, place: tuple[str, int, str] | None) -> Plan:
    """The same plan, with stacks of blocks that begin at this function."""
    if place is None:
        return plan
    caller = CallerContext(place[0], place[2])
    return tuple(
        replace(rule, kind=rule.kind.seen_from(caller)) if rule.kind.__class__ is BlockingKind else rule
        for rule in plan
    )


def _default(entry: Setting, marked: bool) -> Any:
    return entry.marker_default if marked and entry.marker_default is not None else entry.default


def _action(own: str, layers: Sequence[Layer], otherwise: Action) -> Action:
    """The action of a kind: within a layer its own is nearer than the one for all kinds."""
    for layer in layers:
        for name in (own, "action"):
            if layer.get(name) is not None:
                action: Action = layer[name]
                return action
    return otherwise
