"""``no_leaks``: every kind of leak in one guard, one report, one exception group."""

import difflib
import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from loopwatch.actions import Action, Handler, LeakAction, Report, Site, dispatch, parse_action, raise_first
from loopwatch.errors import LeakError, LeakErrorGroup
from loopwatch.leaks.baseline import Baseline
from loopwatch.leaks.config import configured
from loopwatch.leaks.guard import LeakGuard, check_logger, seconds
from loopwatch.leaks.kinds import Kind
from loopwatch.leaks.known_good import KNOWN_GOOD
from loopwatch.leaks.suppress import Ignores, ignores_from, name_filter_from
from loopwatch.leaks.waiting import Findings, Rule
from loopwatch.loops import running_loop
from loopwatch.settings import KINDS, SETTINGS
from loopwatch.visits import decorate_bare, decorated_function

__all__ = ["EverythingGuard", "guard_from_settings", "no_leaks", "rules_from_settings"]

Switch = bool | Action | Mapping[str, Any] | None

_MODULES = {
    "tasks": "tasks",
    "destroyed_tasks": "tasks",
    "task_exceptions": "tasks",
    "coroutines": "tasks",
    "threads": "threads",
    "blocking": "blocks",
}
_OPTIONS = {
    kind: [(entry, entry.option) for entry in SETTINGS.values() if entry.kind == kind and entry.option is not None]
    for kind in KINDS
}
_COMMON = ("action", "name_filter", "ignore", "grace_period")


def no_leaks(
    action: Action | None = None,
    logger: logging.Logger | None = None,
    *,
    tasks: Switch = None,
    destroyed_tasks: Switch = None,
    task_exceptions: Switch = None,
    coroutines: Switch = None,
    threads: Switch = None,
    async_generators: Switch = None,
    timers: Switch = None,
    descriptors: Switch = None,
    processes: Switch = None,
    loops: Switch = None,
    executors: Switch = None,
    blocking: Switch = None,
    ignore: Ignores = (),
    grace_period: float | None = None,
    default_ignores: bool | None = None,
    baseline: "Baseline | str | None" = None,
) -> "EverythingGuard":
    """Find all that the guarded code leaves behind, and what blocks the event loop meanwhile.

    Use it as ``with``, as ``async with``, or as a decorator of a function, async or not, with or without parentheses.

    action: what happens to findings: "warn" (default), "log", "cancel", "raise", a callable that takes the list of
        findings, or a sequence of several.  "raise" raises one LeakErrorGroup that holds an error for each kind.
    logger: where "log" writes; default ``logging.getLogger("loopwatch")``.
    tasks ... blocking: a kind of leak each: True or False; an action for this kind; or a dict of options: ``action``,
        ``name_filter``, ``ignore``, ``grace_period`` and the kind's own, such as ``{"threshold": 0.5}`` for blocking.
        Default None: on.  Where no event loop runs, kinds that need one are left out, unless they were asked for here.
    ignore: findings to overlook: ``Ignore`` entries, names, compiled regular expressions.
    grace_period: seconds to wait at most for leaks to end; default None: as long as each kind needs.  The wait ends as
        soon as all is clean.
    default_ignores: whether to overlook the known background work of common libraries; default True.
    baseline: a file of known findings (see ``Baseline``): only what is new is reported; default None.

    Defaults come from ``loopwatch.toml`` or ``[tool.loopwatch]`` in ``pyproject.toml`` where there is one.

    Raises ValueError and TypeError for options that are wrong; RuntimeError when a kind that needs an event loop was
    asked for and none runs, or when it is left in another task or thread than it was entered in; at the exit, with the
    action "raise", LeakErrorGroup.  An exception of the guarded code is never replaced: it carries the findings as a
    note.
    """
    if decorated_function(action):
        return decorate_bare(no_leaks(), action)
    switches = {
        "tasks": tasks,
        "destroyed_tasks": destroyed_tasks,
        "task_exceptions": task_exceptions,
        "coroutines": coroutines,
        "threads": threads,
        "async_generators": async_generators,
        "timers": timers,
        "descriptors": descriptors,
        "processes": processes,
        "loops": loops,
        "executors": executors,
        "blocking": blocking,
    }
    values: dict[str, Any] = dict(configured().values)
    if action is not None:
        values["action"] = action
        for name in [name for name in values if name.endswith("_action")]:
            del values[name]
    given = {"grace_period": grace_period, "default_ignores": default_ignores, "baseline": baseline}
    values |= {name: value for name, value in given.items() if value is not None}
    values["ignore"] = (*ignores_from(ignore), *values.get("ignore", ()))
    return EverythingGuard("no_leaks", _rules(values, switches), logger, [k for k, v in switches.items() if v])


def guard_from_settings(
    values: Mapping[str, Any], *, name: str = "no_leaks", logger: logging.Logger | None = None
) -> "EverythingGuard":
    """A guard for the settings of ``loopwatch.settings`` as a flat mapping, each already parsed; the rest as default.

    Unlike ``no_leaks`` it reads no configuration file, and kinds that cannot begin are always left out.
    """
    return EverythingGuard(name, rules_from_settings(values), logger, ())


def rules_from_settings(values: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules of all kinds that these settings switch on, in the order of reports; those not given as default.

    Raises ValueError and TypeError for values that are wrong.
    """
    return tuple(_rules(values, {}))


class EverythingGuard(LeakGuard):
    """What ``no_leaks`` returns.  ``leaks`` are the findings of the exit last made, of all kinds."""

    def __init__(self, name: str, rules: Sequence[Rule], logger: logging.Logger | None, asked: Iterable[str]) -> None:
        super().__init__(name, (), logger=check_logger(logger))
        self._rules = list(rules)
        self._asked = frozenset(asked)

    def _rules_here(self) -> Sequence[Rule]:
        here = []
        for rule in self._rules:
            if rule.kind.can_begin():
                here.append(rule)
            elif rule.kind.name in self._asked and running_loop() is not None:
                raise RuntimeError(
                    f"{self.name}({rule.kind.name}=...) was asked for on a loop that is not asyncio's: only asyncio "
                    f"has {rule.kind.name} to watch, so leave {rule.kind.name} out"
                )
            elif rule.kind.name in self._asked:
                raise RuntimeError(
                    f"{self.name}({rule.kind.name}=...) was asked for where no event loop runs that it could watch: "
                    f"use it inside a coroutine (`async def`), or leave {rule.kind.name} out"
                )
        return here

    def _report(self, found: Sequence[Findings], body: BaseException | None, site: Callable[[], Site]) -> None:
        self._keep(found)
        failures: list[BaseException] = []
        for actions, together in _by_actions(found).items():
            try:
                self._dispatch_group(actions, together, body, site)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                failures.append(error)
        raising = [one.error() for one in found if one.leaks and LeakAction.RAISE in one.rule.actions]
        if body is None:
            raise_first(_group(raising) if raising else None, failures)

    def _dispatch_group(
        self,
        actions: tuple[LeakAction | Handler, ...],
        together: Sequence[Findings],
        body: BaseException | None,
        site: Callable[[], Site],
    ) -> None:
        errors = [findings.error() for findings in together]
        survivors = [findings.survivors for findings in together if findings.survivors is not None]
        text = _text(errors)
        if LeakAction.CANCEL in actions and not survivors:
            self._log(logging.INFO, "Cancelled: %s", text)
        leaks = [leak for findings in together for leak in findings.leaks]
        report = Report(leaks, _group(errors), lambda: "\n".join(survivors) or None, self._logger, text)
        dispatch([action for action in actions if action is not LeakAction.RAISE], report, site, body)


def _by_actions(found: Sequence[Findings]) -> dict[tuple[LeakAction | Handler, ...], list[Findings]]:
    together: dict[tuple[LeakAction | Handler, ...], list[Findings]] = {}
    for findings in found:
        if findings.leaks:
            together.setdefault(findings.rule.actions, []).append(findings)
    return together


def _group(errors: Sequence[LeakError]) -> LeakErrorGroup:
    counts = [str(error.args[0]).removeprefix("Detected ") for error in errors]
    return LeakErrorGroup(f"Detected {', '.join(counts)}", errors)


def _text(errors: Sequence[LeakError]) -> str:
    if len(errors) == 1:
        return str(errors[0])
    return "\n\n".join([_group(errors).message, *map(str, errors)])


def _rules(values: Mapping[str, Any], switches: Mapping[str, Switch]) -> list[Rule]:
    """The rules of all kinds that are on.  ``values`` are settings; ``switches`` go before them."""
    common = parse_action(values.get("action", SETTINGS["action"].default))
    grace = values.get("grace_period")
    grace = None if grace is None else seconds("grace_period", grace)
    ignores = ignores_from(values.get("ignore", ()))
    if values.get("default_ignores", True):
        ignores += KNOWN_GOOD
    baseline = Baseline.of(values.get("baseline"))
    rules = []
    for name in KINDS:
        options = _options(name, values, switches.get(name))
        if options is None:
            continue
        action = options.pop("action", None)
        names = None if name == "blocking" else options.pop("name_filter", None)  # blocks have no names
        own_grace, own_ignores = options.pop("grace_period", grace), ignores_from(options.pop("ignore", ()))
        kind = _kind(name, options)
        rules.append(
            Rule(
                kind,
                common if action is None else parse_action(action),
                name_filter_from(names),
                own_ignores + ignores,
                kind.grace_period if own_grace is None else seconds("grace_period", own_grace),
                baseline,
            )
        )
    return rules


def _options(name: str, values: Mapping[str, Any], switch: Switch) -> dict[str, Any] | None:
    """The options of a kind, from the settings and from what ``no_leaks`` was given for it; None where it is off."""
    if switch is False or (switch is None and not values.get(name, SETTINGS[name].default)):
        return None
    options: dict[str, Any] = {}
    for entry, option in _OPTIONS[name]:
        value = values.get(entry.name, entry.default)
        if value is not None:
            options[option] = value
    if isinstance(switch, Mapping):
        options |= switch
    elif switch is not None and switch is not True:
        options["action"] = switch
    return options


def _kind(name: str, options: Mapping[str, Any]) -> Kind:
    """Make a kind with its own options.  Raises TypeError for an option that it does not know."""
    kind = find_kind(name)
    known = _parameters(kind)
    for option in options:
        if option not in known:
            valid = [option for option in (*_COMMON, *known) if name != "blocking" or option != "name_filter"]
            close = difflib.get_close_matches(str(option), valid, n=1)
            hint = f"did you mean {close[0]!r}? It has" if close else "it has"
            raise TypeError(f"no_leaks({name}=...) has no option {option!r}; {hint}: {', '.join(valid)}")
    return kind(**options)


@functools.cache
def _parameters(kind: type[Kind]) -> tuple[str, ...]:
    return tuple(inspect.signature(kind).parameters)


@functools.cache
def find_kind(name: str) -> type[Kind]:
    """The class of a kind, from the module that defines it.  Raises LookupError where that module has none."""
    module = importlib.import_module(f"loopwatch.leaks.{_MODULES.get(name, 'resources')}")
    for candidate in vars(module).values():
        if isinstance(candidate, type) and issubclass(candidate, Kind) and getattr(candidate, "name", None) == name:
            return candidate
    raise LookupError(f"{module.__name__} has no kind {name!r}")
