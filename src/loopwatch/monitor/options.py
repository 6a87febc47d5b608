"""The settings of a monitor, checked."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loopwatch.leaks.suppress import Ignore, ignores_from
from loopwatch.monitor.sinks import check_sinks

__all__ = ["MonitorOptions", "check_options"]


@dataclass(frozen=True)
class MonitorOptions:
    """See ``Monitor``."""

    interval: float
    window: int
    sigma: float
    consecutive: int
    max_tasks: int
    memory_growth: float
    lag: float
    hang: float
    repeat: float
    ignores: tuple[Ignore, ...]
    sampled: bool
    objects: int
    on_sample: Callable[[Any], object] | None


def check_options(
    *,
    on_alarm: Any,
    on_sample: Any,
    logger: Any,
    json: Any,
    stderr: Any,
    ignore: Any,
    memory: Any,
    **numbers: Any,
) -> MonitorOptions:
    """Raise TypeError or ValueError, with what was expected, for what is wrong."""
    for name, what in (("interval", "seconds"), ("lag", "seconds")):
        _number(name, numbers[name], f"must be a finite number of {what} above 0", above=0)
    for name, what in (("hang", "seconds, or 0 for never"), ("repeat", "seconds"), ("sigma", "standard deviations")):
        _number(name, numbers[name], f"must be a number of {what}, at least 0", least=0)
    _number("memory_growth", numbers["memory_growth"], "must be a fraction above 0, such as 0.5", above=0)
    _whole("window", numbers["window"], 3)
    _whole("consecutive", numbers["consecutive"], 1)
    _whole("max_tasks", numbers["max_tasks"], 0)
    _whole("objects", numbers["objects"], 0)
    if numbers["lag"] < 0.001:
        raise ValueError(f"lag must be at least 0.001 seconds, got {numbers['lag']!r}")
    if numbers["interval"] < 0.01:
        raise ValueError(f"interval must be at least 0.01 seconds, got {numbers['interval']!r}")
    if memory not in (False, True, "sampled"):
        raise ValueError(f"memory must be False, True or 'sampled', got {memory!r}")
    check_sinks(on_alarm, logger, json, stderr)
    if on_sample is not None and not callable(on_sample):
        raise TypeError(f"on_sample must be a callable that takes a Reading, got {on_sample!r}")
    return MonitorOptions(on_sample=on_sample, ignores=ignores_from(ignore), sampled=bool(memory), **numbers)


def _number(name: str, value: Any, expected: str, *, above: float | None = None, least: float | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} {expected}; got {value!r} of type {type(value).__name__}")
    good = math.isfinite(value) and value < 1e9
    if not good or (above is not None and value <= above) or (least is not None and value < least):
        raise ValueError(f"{name} {expected}; got {value!r}")


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r} of type {type(value).__name__}")
    if value < least or value > 1_000_000:
        raise ValueError(f"{name} must be a whole number from {least} to 1,000,000, got {value}")
