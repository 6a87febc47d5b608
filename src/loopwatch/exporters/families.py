"""A reading of the monitor as metric families, named by Prometheus's conventions: base units, ``_total``, ``_ratio``.

Plain data, so that it can go to ``prometheus_client`` or through a file to another process.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from loopwatch.exporters.fold import (
    BOUNDS,
    LIMIT,
    OTHER,
    AlarmTally,
    Slots,
    check_limit,
    culprit,
    cumulative,
    label,
    largest,
    loop_labels,
    site,
    task_labels,
)

if TYPE_CHECKING:
    from loopwatch.monitor.histogram import Histogram
    from loopwatch.monitor.readings import CoroutineReading, LoopReading, Reading

__all__ = ["Families", "Family"]

_Labels = tuple[str, ...]


@dataclass
class Family:
    """One metric.  ``values`` pairs label values with a number, or with (bucket counts, sum) of a histogram."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: _Labels = ()
    values: list[tuple[_Labels, Any]] = field(default_factory=list)

    def add(self, labels: Sequence[str], value: Any) -> "Family":
        self.values.append((tuple(labels), value))
        return self


class Families:
    """Turns readings into families; remembers which counters have names of their own."""

    def __init__(self, limit: int = LIMIT, bounds: Sequence[float] = BOUNDS) -> None:
        self.limit = check_limit(limit)
        self.bounds = tuple(bounds)
        if not self.bounds or list(self.bounds) != sorted(set(self.bounds)) or self.bounds[0] <= 0:
            raise ValueError(f"bounds must be seconds above 0 in rising order, got {bounds!r}")
        self._tasks: Slots[tuple[str, str]] = Slots(limit)
        self._blocks: Slots[tuple[str, str]] = Slots(limit)
        self._loops: Slots[tuple[str, str]] = Slots(limit)
        self._alarms = AlarmTally()

    def of(self, reading: "Reading | None") -> list[Family]:
        """All families; of a monitor that does not run only that it does not."""
        up = Family("loopwatch_up", "gauge", "Whether the monitor runs in this process.")
        if reading is None:
            return [up.add((), 0)]
        found = [up.add((), 1)]
        found += self._loop_families(reading)
        found += self._task_gauges(reading)
        found += self._task_counters(reading)
        found += self._block_families(reading)
        found += self._process_families(reading)
        found += self._monitor_families(reading)
        return found

    def _histogram(self, histogram: "Histogram") -> tuple[list[int], float]:
        return cumulative(histogram, self.bounds), histogram.sum

    def loop_groups(self, reading: "Reading") -> "dict[tuple[str, str], list[LoopReading]]":
        """The loops by their labels."""
        own, others = self._loops.split(reading.loops, loop_labels)
        groups: dict[tuple[str, str], list[LoopReading]] = {}
        for loop in own:
            groups.setdefault(loop_labels(loop), []).append(loop)
        if others:
            groups[OTHER, OTHER] = others
        return groups

    def _loop_families(self, reading: "Reading") -> Iterator[Family]:
        groups = self.loop_groups(reading)
        names = ("loop", "thread")

        def family(
            name: str, kind: Literal["gauge", "histogram"], text: str, value: Callable[[list["LoopReading"]], Any]
        ) -> Family:
            made = Family(f"loopwatch_loop_{name}", kind, text, names)
            for key, loops in groups.items():
                made.add(key, value(loops))
            return made

        yield family(
            "lag_seconds",
            "histogram",
            "Busy spans of an event loop, from one wait for I/O to the next: how late a callback can come.",
            lambda loops: self._histogram(_together([loop.lag for loop in loops])),
        )
        yield family(
            "callback_seconds",
            "histogram",
            "Single callbacks of an event loop; empty where the loop runs them itself (uvloop, trio).",
            lambda loops: self._histogram(_together([loop.callbacks for loop in loops])),
        )
        gauges: list[tuple[str, str, Callable[[list[LoopReading]], float]]] = [
            (
                "utilization_ratio",
                "Share of time an event loop was busy since the sample before, from 0 to 1.",
                lambda loops: max(loop.utilization for loop in loops),
            ),
            (
                "lag_longest_seconds",
                "The longest busy span ever.",
                lambda loops: max(loop.lag.max for loop in loops),
            ),
            (
                "busy_seconds",
                "For how long an event loop has been busy without a break now; grows while it hangs.",
                lambda loops: max(loop.busy for loop in loops),
            ),
            (
                "ready_callbacks",
                "Callbacks that wait to be run now.",
                lambda loops: sum(loop.ready or 0 for loop in loops),
            ),
            (
                "timers",
                "Timers that wait.",
                lambda loops: sum(loop.timers or 0 for loop in loops),
            ),
        ]
        for name, text, value in gauges:
            yield family(name, "gauge", text, value)
        loops = Family("loopwatch_loops", "gauge", "Event loops that are not closed.")
        yield loops.add((), len(reading.loops))
        yield Family("loopwatch_loops_ended", "counter", "Event loops that were closed.").add((), reading.ended_loops)
        unwatched = Family("loopwatch_loops_unwatched", "gauge", "Event loops that cannot be watched.")
        yield unwatched.add((), len(reading.unwatched))
        timers = [timer for loop in reading.loops for timer in loop.timers_by_callback]
        by_callback = Family(
            "loopwatch_timers", "gauge", "Timers that wait, by the callback they run.", ("callback", "site")
        )
        first, rest = largest(timers, lambda timer: timer.count, self.limit)
        counts: dict[tuple[str, str], int] = {}
        for timer in first:
            pair = (label(timer.callback), site(timer.place))
            counts[pair] = counts.get(pair, 0) + timer.count
        if rest:
            counts[OTHER, OTHER] = sum(timer.count for timer in rest)
        for pair, count in counts.items():
            by_callback.add(pair, count)
        yield by_callback

    def _task_gauges(self, reading: "Reading") -> Iterator[Family]:
        first, rest = largest(_merged(reading.coroutines), lambda one: one.alive + one.retained, self.limit)
        groups = [(task_labels(one), [one]) for one in first] + ([((OTHER, OTHER), rest)] if rest else [])
        tasks = Family(
            "loopwatch_tasks",
            "gauge",
            "Tasks: alive, or done and retained by a reference that something still holds.",
            ("coroutine", "site", "state"),
        )
        oldest = Family(
            "loopwatch_task_oldest_seconds", "gauge", "Age of the oldest task that is alive.", ("coroutine", "site")
        )
        for key, group in groups:
            tasks.add((*key, "alive"), sum(one.alive for one in group))
            tasks.add((*key, "retained"), sum(one.retained for one in group))
            oldest.add(key, max(one.oldest for one in group))
        yield from (tasks, oldest)

    def _task_counters(self, reading: "Reading") -> Iterator[Family]:
        ordered = sorted(_merged(reading.coroutines), key=lambda one: -(one.alive + one.retained))
        own, others = self._tasks.split(ordered, task_labels)
        groups = [(task_labels(one), [one]) for one in own] + ([((OTHER, OTHER), others)] if others else [])
        labels = ("coroutine", "site")
        counters: list[tuple[str, str, Callable[[CoroutineReading], float]]] = [
            ("created", "Tasks created.", lambda one: one.born),
            ("destroyed_pending", "Tasks that were freed while pending.", lambda one: one.destroyed),
            (
                "exceptions_never_retrieved",
                "Tasks that failed, and nobody asked for the exception.",
                lambda one: one.never_retrieved,
            ),
            ("steps", "Runs of coroutines between two awaits.", lambda one: one.steps),
            ("busy_seconds", "Time spent in these.", lambda one: one.busy),
        ]
        for name, text, value in counters:
            family = Family(f"loopwatch_tasks_{name}", "counter", text, labels)
            for key, group in groups:
                family.add(key, sum(value(one) for one in group))
            yield family
        unseen = Family(
            "loopwatch_process_exceptions_never_retrieved",
            "counter",
            "Tasks of any coroutine that failed, and nobody asked for the exception; there from the first, with 0.",
        )
        yield unseen.add((), sum(one.never_retrieved for one in reading.coroutines))
        ended = Family("loopwatch_tasks_ended", "counter", "Tasks that ended, by how.", (*labels, "outcome"))
        for key, group in groups:
            ended.add((*key, "returned"), sum(one.returned for one in group))
            ended.add((*key, "failed"), sum(one.failed for one in group))
            ended.add((*key, "cancelled"), sum(one.cancelled for one in group))
        yield ended

    def _block_families(self, reading: "Reading") -> Iterator[Family]:
        own, others = self._blocks.split(reading.blocks, lambda block: (culprit(block.place), block.cause))
        labels = ("culprit", "cause")
        count = Family("loopwatch_blocks", "counter", "Blocks: busy spans above the monitor's lag.", labels)
        total = Family("loopwatch_block_seconds", "counter", "Time that blocks took.", labels)
        longest = Family("loopwatch_block_longest_seconds", "gauge", "The longest block.", labels)
        groups: dict[_Labels, list[Any]] = {}
        for block in own:
            groups.setdefault((culprit(block.place), block.cause), []).append(block)
        if others:
            groups[OTHER, OTHER] = others
        for key, group in groups.items():
            count.add(key, sum(block.count for block in group))
            total.add(key, sum(block.total for block in group))
            longest.add(key, max(block.longest for block in group))
        yield from (count, total, longest)
        # those with labels begin with their first block, which rate() does not see
        every = Family("loopwatch_process_blocks", "counter", "Blocks of any culprit; there from the first, with 0.")
        yield every.add((), sum(block.count for block in reading.blocks))
        blocked = Family("loopwatch_process_blocked_seconds", "counter", "Time that these took.")
        yield blocked.add((), sum(block.total for block in reading.blocks))

    def _process_families(self, reading: "Reading") -> Iterator[Family]:
        process = reading.process
        yield Family("loopwatch_process_resident_memory_bytes", "gauge", "Memory resident.").add((), process.rss)
        if process.uss is not None:
            unique = Family("loopwatch_process_unique_memory_bytes", "gauge", "Memory resident that is its own alone.")
            yield unique.add((), process.uss)
        threads = Family("loopwatch_process_threads", "gauge", "Threads, as known to Python and the kernel.", ("of",))
        yield threads.add(("python",), process.threads).add(("kernel",), process.native_threads)
        open_fds = Family("loopwatch_process_open_fds", "gauge", "Open file descriptors.")
        yield open_fds.add((), process.descriptors)
        pauses = Family("loopwatch_gc_pause_seconds", "histogram", "Collections of the garbage collector.")
        yield pauses.add((), self._histogram(process.gc_pauses))

    def _monitor_families(self, reading: "Reading") -> Iterator[Family]:
        alarms = Family("loopwatch_alarms", "counter", "Alarms given, by kind.", ("kind",))
        for kind, count in self._alarms.add(reading).items():
            alarms.add((kind,), count)
        yield alarms
        overhead = reading.overhead
        samples = Family("loopwatch_monitor_samples", "counter", "Samples taken for the alarms; a scrape is none.")
        yield samples.add((), overhead.samples)
        seconds = Family("loopwatch_monitor_cpu_seconds", "counter", "CPU time that these took.")
        yield seconds.add((), overhead.seconds)
        yield Family("loopwatch_monitor_errors", "counter", "Samples that failed.").add((), overhead.errors)
        dropped = Family("loopwatch_monitor_dropped", "counter", "What found no room, by what it was.", ("what",))
        dropped.add(("tasks_unplaced",), overhead.tasks_unplaced)
        dropped.add(("blocks",), overhead.blocks_dropped)
        yield dropped.add(("series",), overhead.series_dropped)
        cut = Family("loopwatch_series_cut", "gauge", 'Label sets that are told together as "other".', ("of",))
        cut.add(("loops",), self._loops.cut).add(("tasks",), self._tasks.cut)
        yield cut.add(("blocks",), self._blocks.cut)


def _together(histograms: "Sequence[Histogram]") -> "Histogram":
    total = histograms[0]
    for histogram in histograms[1:]:
        total = total.plus(histogram)
    return total


def _merged(coroutines: "Sequence[CoroutineReading]") -> "list[CoroutineReading]":
    """One reading for each set of labels: two places may have the same once they are short."""
    found: dict[tuple[str, str], CoroutineReading] = {}
    for one in coroutines:
        key = task_labels(one)
        other = found.get(key)
        if other is not None:
            summed = {name: getattr(one, name) + getattr(other, name) for name in _SUMMED}
            one = replace(one, oldest=max(one.oldest, other.oldest), busy=one.busy + other.busy, **summed)
        found[key] = one
    return list(found.values())


_SUMMED = ("alive", "born", "returned", "failed", "cancelled", "retained", "destroyed", "never_retrieved", "steps")
