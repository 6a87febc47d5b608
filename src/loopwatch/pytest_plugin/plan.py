"""What to look for in one test: from its marker, the command line, the ini file and the configuration file.

The nearest that says something wins, in that order.  A marked test raises where nothing says otherwise, as pyleak's
marker does; a test that only ``--loopwatch`` puts under guard warns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopwatch.actions import Handler, LeakAction, parse_action
from loopwatch.blocking import nanoseconds
from loopwatch.leaks.guard import Rule
from loopwatch.settings import KINDS, SETTINGS, SettingError, setting

__all__ = ["BlockRule", "Layer", "Plan", "Planner", "marker_layer"]

Layer = Mapping[str, Any]
"""Settings by name, parsed, from one place: a marker, the command line, a file."""

_EVERYTHING = "all"
_NOTHING = "none"
_SHORTEST_INTERVAL_NS = 1_000_000


@dataclass(frozen=True)
class BlockRule:
    """The rule for blocks of the event loop."""

    actions: tuple[LeakAction | Handler, ...]
    threshold_ns: int
    interval_ns: int


@dataclass(frozen=True)
class Plan:
    """What to look for in a test and in the fixtures that it is the first to use."""

    rules: tuple[Rule, ...]
    blocking: BlockRule | None

    def __bool__(self) -> bool:
        return bool(self.rules) or self.blocking is not None


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
        values = _Values(layers, marked)
        names = [name for name in KINDS if values[name]]
        blocking = None
        if "blocking" in names:
            names.remove("blocking")
            threshold = nanoseconds("blocking_threshold", values["blocking_threshold"])
            interval = min(nanoseconds("blocking_check_interval", values["blocking_check_interval"]), threshold // 10)
            blocking = BlockRule(values.actions("blocking"), threshold, max(interval, _SHORTEST_INTERVAL_NS))
        return Plan(tuple(rule for name in names for rule in _rules(name, values)), blocking)


class _Values:
    """The value of each setting: what the nearest layer says, else the default."""

    def __init__(self, layers: Sequence[Layer], marked: bool) -> None:
        self._layers = layers
        self._marked = marked

    def __getitem__(self, name: str) -> Any:
        for layer in self._layers:
            if name in layer:
                return layer[name]
        described = SETTINGS[name]
        if self._marked and described.marker_default is not None:
            return described.marker_default
        return described.default

    def actions(self, kind: str) -> tuple[LeakAction | Handler, ...]:
        """The actions for a kind.  Within a layer its own setting is nearer than the one for all kinds."""
        own = next(entry.name for entry in SETTINGS.values() if entry.kind == kind and entry.option == "action")
        for layer in self._layers:
            for name in (own, "action"):
                if layer.get(name) is not None:
                    return parse_action(layer[name])
        return parse_action(self["action"])


def _rules(name: str, values: _Values) -> Sequence[Rule]:
    """The rule for a kind, with its options."""
    return ()
