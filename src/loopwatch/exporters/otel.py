"""OpenTelemetry, through its metrics API: in a checkout, ``pip install '.[opentelemetry]'``.

    monitor = loopwatch.Monitor().start()
    OpenTelemetryExporter(monitor)                      # with the global meter provider, or meter_provider=

Names follow ``nodejs.eventloop.*`` of the semantic conventions.  Which service, host and process it is say the SDK's
resource attributes.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from loopwatch import __version__
from loopwatch.exporters.families import Families, Family
from loopwatch.exporters.fold import LIMIT, check_monitor

if TYPE_CHECKING:
    from loopwatch.monitor.histogram import Histogram
    from loopwatch.monitor.monitor import Monitor
    from loopwatch.monitor.readings import Reading

try:
    from opentelemetry import metrics as _otel
except ImportError as error:
    raise ImportError(
        "loopwatch.exporters.otel needs OpenTelemetry's API, which could not be imported: type "
        f"`pip install 'loopwatch[opentelemetry]'` (or `pip install opentelemetry-api`, and the SDK and an exporter of "
        f"your choice) with the Python in use. ({error})"
    ) from error

__all__ = ["SLOW", "OpenTelemetryExporter"]

SLOW = 0.01
_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_MOST = 10_000
_FRESH = 0.5
_Value = tuple[Mapping[str, str], float]

# name, kind, unit, description, family of ``families.py`` it is read from, its attributes
_FROM_FAMILIES = (
    ("asyncio.eventloop.ready", "gauge", "{callback}", "Callbacks that wait to be run now.", "loop_ready_callbacks"),
    ("asyncio.eventloop.timers", "gauge", "{timer}", "Timers that wait.", "loop_timers"),
    (
        "asyncio.eventloop.busy",
        "gauge",
        "s",
        "For how long a loop has been busy without a break now.",
        "loop_busy_seconds",
    ),
    ("asyncio.eventloop.count", "gauge", "{loop}", "Event loops that are not closed.", "loops"),
    ("asyncio.task.count", "gauge", "{task}", "Tasks, alive or done and retained.", "tasks"),
    ("asyncio.task.age.max", "gauge", "s", "Age of the oldest task that is alive.", "task_oldest_seconds"),
    ("asyncio.task.created", "counter", "{task}", "Tasks created.", "tasks_created"),
    ("asyncio.task.ended", "counter", "{task}", "Tasks that ended, by how.", "tasks_ended"),
    ("asyncio.task.destroyed", "counter", "{task}", "Tasks that were freed while pending.", "tasks_destroyed_pending"),
    (
        "asyncio.task.exception.unretrieved",
        "counter",
        "{task}",
        "Tasks that failed, and nobody asked for the exception.",
        "tasks_exceptions_never_retrieved",
    ),
    ("asyncio.task.steps", "counter", "{step}", "Runs of coroutines between two awaits.", "tasks_steps"),
    ("asyncio.task.time", "counter", "s", "Time spent in these.", "tasks_busy_seconds"),
    ("asyncio.eventloop.block.count", "counter", "{block}", "Busy spans above the monitor's lag.", "blocks"),
    ("asyncio.eventloop.block.time", "counter", "s", "Time that blocks took.", "block_seconds"),
    ("asyncio.eventloop.block.max", "gauge", "s", "The longest block.", "block_longest_seconds"),
    ("loopwatch.process.block.count", "counter", "{block}", "Blocks of any culprit, from 0 on.", "process_blocks"),
    ("loopwatch.process.block.time", "counter", "s", "Time that these took.", "process_blocked_seconds"),
    (
        "loopwatch.process.exception.unretrieved",
        "counter",
        "{task}",
        "Tasks of any coroutine that failed, and nobody asked for the exception, from 0 on.",
        "process_exceptions_never_retrieved",
    ),
    ("loopwatch.alarm.count", "counter", "{alarm}", "Alarms given, by kind.", "alarms"),
    ("loopwatch.series.cut", "gauge", "{series}", 'Label sets told together as "other".', "series_cut"),
    ("loopwatch.process.memory.resident", "gauge", "By", "Memory resident.", "process_resident_memory_bytes"),
    (
        "loopwatch.process.memory.unique",
        "gauge",
        "By",
        "Memory resident that is its own.",
        "process_unique_memory_bytes",
    ),
    ("loopwatch.process.threads", "gauge", "{thread}", "Threads, known to Python and the kernel.", "process_threads"),
    ("loopwatch.process.descriptors", "gauge", "{descriptor}", "Open file descriptors.", "process_open_fds"),
)
_ATTRIBUTES = {
    "loop": "asyncio.eventloop.type",
    "thread": "thread.name",
    "coroutine": "asyncio.task.coroutine",
    "site": "asyncio.task.site",
    "state": "asyncio.task.state",
    "outcome": "asyncio.task.outcome",
    "culprit": "asyncio.eventloop.block.culprit",
    "cause": "asyncio.eventloop.block.cause",
    "kind": "loopwatch.alarm.kind",
    "of": "loopwatch.of",
}
_DELAYS = {
    "min": "The shortest busy span",
    "max": "The longest busy span",
    "mean": "The mean busy span",
    "p50": "What half of all busy spans do not exceed",
    "p90": "What 90 % of all busy spans do not exceed",
    "p99": "What 99 % of all busy spans do not exceed",
}


class OpenTelemetryExporter:
    """Instruments for all that a monitor knows.

    monitor: a ``loopwatch.Monitor``; nothing is given while it does not run.
    meter_provider: default the global one.
    limit: how many coroutines and blocks get series of their own; the rest is told together as ``other``.  Default 50.

    Delays (min, max, mean, p50, p90, p99) and utilization are those since the collection before.  Spans of 10 ms and
    more also go to the histogram ``asyncio.eventloop.delay.slow``: the API takes values into a histogram one by one
    only, which the millions of short ones would be too many for.  With several readers, give each a meter provider.
    Raises TypeError or ValueError for arguments that are wrong.
    """

    def __init__(self, monitor: "Monitor", meter_provider: Any = None, *, limit: int = LIMIT) -> None:
        check_monitor(monitor)
        self._monitor = monitor
        self._families = Families(limit)
        self._lock = threading.Lock()
        self._taken = float("-inf")
        self._now: dict[str, Family] = {}
        self._delays: list[tuple[Mapping[str, str], Histogram]] = []
        self._shares: list[tuple[Mapping[str, str], float, float, float]] = []
        self._before: dict[tuple[str, str], tuple[Histogram, float, float]] = {}
        self._closed = False
        provider = meter_provider or _otel.get_meter_provider()
        meter = provider.get_meter("loopwatch", __version__)
        try:
            self._slow = meter.create_histogram(
                "asyncio.eventloop.delay.slow",
                unit="s",
                description="Busy spans of 10 ms and more.",
                explicit_bucket_boundaries_advisory=_BOUNDS,
            )
        except TypeError:  # an API before 1.30
            self._slow = meter.create_histogram("asyncio.eventloop.delay.slow", unit="s", description="Busy spans.")
        self._create(meter)

    def close(self) -> None:
        """Give nothing any more.  The API knows no way to take instruments back."""
        self._closed = True

    def _create(self, meter: Any) -> None:
        for name, kind, unit, text, family in _FROM_FAMILIES:
            self._observe(meter, kind, name, unit, text, partial(self._family, f"loopwatch_{family}"))
        for what, text in _DELAYS.items():
            text = f"{text} since the collection before."
            self._observe(meter, "gauge", f"asyncio.eventloop.delay.{what}", "s", text, partial(self._delay, what))
        text = "Share of time a loop was busy since the collection before."
        self._observe(meter, "gauge", "asyncio.eventloop.utilization", "1", text, self._utilizations)
        self._observe(meter, "counter", "asyncio.eventloop.time", "s", "Time a loop was active or idle.", self._times)

    def _observe(
        self, meter: Any, kind: str, name: str, unit: str, text: str, values: Callable[[], Iterable[_Value]]
    ) -> None:
        def callback(options: Any) -> Iterator[Any]:
            with self._lock:
                if self._refresh():
                    for labels, value in values():
                        yield _otel.Observation(value, labels)

        make = meter.create_observable_counter if kind == "counter" else meter.create_observable_gauge
        make(name, callbacks=[callback], unit=unit, description=text)

    def _refresh(self) -> bool:
        """Take one reading for all instruments of a collection; whether there is any."""
        if self._closed or not self._monitor.running:
            return False
        if time.monotonic() - self._taken < _FRESH:
            return True
        try:
            reading = self._monitor.read(examples=0)
        except RuntimeError:  # stopped meanwhile
            return False
        self._now = {family.name: family for family in self._families.of(reading)}
        self._take_loops(reading)
        self._taken = time.monotonic()
        return True

    def _take_loops(self, reading: "Reading") -> None:
        self._delays, self._shares = [], []
        before, self._before = self._before, {}
        for key, loops in self._families.loop_groups(reading).items():
            labels = {"asyncio.eventloop.type": key[0], "thread.name": key[1]}
            lag = loops[0].lag
            for loop in loops[1:]:
                lag = lag.plus(loop.lag)
            active = lag.sum + sum(loop.busy for loop in loops)
            passed = sum(reading.monotonic - loop.since for loop in loops)
            earlier, earlier_active, earlier_passed = before.get(key, (None, 0.0, 0.0))
            new = lag if earlier is None or earlier.count > lag.count else lag.since(earlier)
            spent = passed - earlier_passed
            share = (active - earlier_active) / spent if spent > 0 else 0.0
            self._before[key] = (lag, active, passed)
            if new.count:
                self._delays.append((labels, new))
                self._record(new, labels)
            self._shares.append((labels, min(1.0, max(0.0, share)), active, max(0.0, passed - active)))

    def _record(self, lag: "Histogram", labels: Mapping[str, str]) -> None:
        left = _MOST
        for upper, count in reversed(lag.buckets):
            if upper <= SLOW or left <= 0:
                break
            for _ in range(min(count, left)):
                self._slow.record(min(upper, lag.max), labels)
            left -= count

    def _family(self, name: str) -> Iterator[_Value]:
        family = self._now.get(name)
        if family is not None:
            names = [_ATTRIBUTES.get(label, label) for label in family.labels]
            for key, value in family.values:
                yield dict(zip(names, key, strict=True)), value

    def _delay(self, what: str) -> Iterator[_Value]:
        for labels, lag in self._delays:
            yield labels, _of(lag, what)

    def _utilizations(self) -> Iterator[_Value]:
        for labels, share, _, _ in self._shares:
            yield labels, share

    def _times(self) -> Iterator[_Value]:
        for labels, _, active, idle in self._shares:
            yield {**labels, "asyncio.eventloop.state": "active"}, active
            yield {**labels, "asyncio.eventloop.state": "idle"}, idle


def _of(lag: "Histogram", what: str) -> float:
    if what == "mean":
        return lag.mean
    if what == "max":
        return lag.max
    if what == "min":
        return lag.buckets[0][0] * 8 / 9 if lag.buckets else 0.0
    return lag.quantile(int(what[1:]) / 100)
