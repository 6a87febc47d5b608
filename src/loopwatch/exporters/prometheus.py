"""Prometheus, through ``prometheus_client``: in a checkout, ``pip install '.[prometheus]'``.

One process:

    monitor = loopwatch.Monitor().start()
    prometheus_client.REGISTRY.register(LoopwatchCollector(monitor))

Several workers behind one port (gunicorn), where prometheus_client runs in its multi-process mode: its
``MultiProcessCollector`` adds up files of its own metrics and asks no Collector.  So each worker leaves what its
monitor knows in a file beside these, and whichever is scraped gives those of all that live, told apart by ``pid``:

    LoopwatchWorker(monitor).start()                    # in each worker
    MultiProcessCollector(registry)                     # prometheus_client's, at the scrape
    LoopwatchMultiProcessCollector(registry)
"""

import contextlib
import glob
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from loopwatch.exporters.families import Families, Family
from loopwatch.exporters.fold import BOUNDS, LIMIT, check_monitor

if TYPE_CHECKING:
    from loopwatch.monitor.monitor import Monitor

try:
    import prometheus_client.core
    import prometheus_client.utils
except ImportError as error:
    raise ImportError(
        "loopwatch.exporters.prometheus needs prometheus_client, which could not be imported: type "
        f"`pip install 'loopwatch[prometheus]'` (or `pip install prometheus_client`) with the Python in use. ({error})"
    ) from error

_client: Any = prometheus_client.core
_text_of: Any = prometheus_client.utils.floatToGoString

__all__ = ["LoopwatchCollector", "LoopwatchMultiProcessCollector", "LoopwatchWorker"]

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_FORMAT = 1
_FRESH = 0.5


class LoopwatchCollector:
    """A Collector of all that a monitor knows: register it with a ``CollectorRegistry``.

    monitor: a ``loopwatch.Monitor``.  While it does not run, only ``loopwatch_up`` is given, with 0.
    limit: how many loops, tasks (coroutine and creation line) and blocks (line and cause) get series of their own;
        what is more is told together as ``other``, and counted in ``loopwatch_series_cut``.  Default 50 each.
    bounds: of histograms, seconds, in rising order.  Keep them the same in all processes.

    Each scrape reads the monitor anew, which is no sample of its alarms.  Raises TypeError or ValueError for arguments
    that are wrong.
    """

    def __init__(self, monitor: "Monitor", *, limit: int = LIMIT, bounds: Sequence[float] = BOUNDS) -> None:
        check_monitor(monitor)
        self._monitor = monitor
        self._families = Families(limit, bounds)
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Any]:
        """Metric families, for prometheus_client."""
        for family in self.families():
            yield _metric(family, self._families.bounds, "", ())

    def describe(self) -> list[Any]:
        """Nothing: registering reads nothing."""
        return []

    def families(self) -> list[Family]:
        """The same as plain data."""
        with self._lock:
            try:
                reading = self._monitor.read(examples=0) if self._monitor.running else None
            except RuntimeError:  # stopped meanwhile
                reading = None
            return self._families.of(reading)


class LoopwatchWorker:
    """Leaves what a monitor knows in a file, for the worker that is scraped.

    monitor, limit, bounds: as for ``LoopwatchCollector``.
    path: the folder; default the environment variable PROMETHEUS_MULTIPROC_DIR.
    interval: seconds between two writes.  Default 5.  A worker that hangs with the GIL held writes none:
        ``loopwatch_worker_written_timestamp_seconds`` then stands still.

    Start it in the worker, after the fork.  Raises ValueError where the folder is missing.
    """

    def __init__(
        self,
        monitor: "Monitor",
        path: str | None = None,
        *,
        interval: float = 5.0,
        limit: int = LIMIT,
        bounds: Sequence[float] = BOUNDS,
    ) -> None:
        if isinstance(interval, bool) or not 0 < interval < 1e6:
            raise ValueError(f"interval must be a number of seconds above 0, got {interval!r}")
        self._collector = LoopwatchCollector(monitor, limit=limit, bounds=bounds)
        self._bounds = tuple(bounds)
        self._folder = _folder(path)
        self._interval = interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._written = float("-inf")
        self._lock = threading.Lock()

    def start(self) -> Self:
        """Write now, and every ``interval`` seconds from now on.  Nothing happens if it does already."""
        if self._pid != os.getpid():  # the first time, or in a fork's child, which has no thread of its parent's
            self._pid, self._lock = os.getpid(), threading.Lock()
            self._stop = threading.Event()
            self.write()
            self._thread = threading.Thread(
                target=self._run, args=(self._stop,), name="loopwatch-prometheus", daemon=True
            )
            self._thread.start()
            _workers[self._folder] = self
        return self

    def stop(self) -> None:
        """Write no longer, and take the file away.  Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None and self._pid == os.getpid():
            self._pid = 0
            self._stop.set()
            thread.join(self._interval + 5)
            if _workers.get(self._folder) is self:
                del _workers[self._folder]
            with contextlib.suppress(OSError):
                os.unlink(self._file())

    def write(self) -> None:
        """Write now.  Raises OSError where the folder cannot be written."""
        with self._lock:
            self._written = time.monotonic()
            families = self._collector.families()
            content = {
                "format": _FORMAT,
                "pid": os.getpid(),
                "started": _started(os.getpid()),
                "written": time.time(),
                "bounds": self._bounds,
                "families": [[one.name, one.kind, one.help, one.labels, one.values] for one in families],
            }
            descriptor, name = tempfile.mkstemp(prefix=".loopwatch_", dir=self._folder)
            try:
                with open(descriptor, "w", encoding="utf-8") as file:
                    json.dump(content, file)
                os.replace(name, self._file())
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise

    def refresh(self) -> None:
        """Write now if it writes in this process, and the last time is more than a moment ago."""
        if self._pid == os.getpid() and time.monotonic() - self._written > _FRESH:
            with contextlib.suppress(OSError):
                self.write()

    def _file(self) -> str:
        return os.path.join(self._folder, f"loopwatch_{os.getpid()}.json")

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(self._interval):
            with contextlib.suppress(OSError):  # the folder is full or gone: the time written tells
                self.write()


_workers: dict[str, LoopwatchWorker] = {}


class LoopwatchMultiProcessCollector:
    """What the ``LoopwatchWorker`` of all workers left, with their process id as label ``pid``.

    registry: is registered there, if given.  path: the folder; default the environment variable
    PROMETHEUS_MULTIPROC_DIR.  Files of processes that are gone are taken away, and their series end, as those of an
    instance that is gone do: use ``rate()`` before ``sum()``.  Raises ValueError where the folder is missing.
    """

    def __init__(self, registry: Any = None, path: str | None = None) -> None:
        self._folder = _folder(path)
        if registry is not None:
            registry.register(self)

    def describe(self) -> list[Any]:
        """Nothing: registering reads no file."""
        return []

    def collect(self) -> Iterator[Any]:
        """Metric families, for prometheus_client."""
        own = _workers.get(self._folder)
        if own is not None:
            own.refresh()
        metrics: dict[str, Any] = {}
        written = _client.GaugeMetricFamily(
            "loopwatch_worker_written_timestamp_seconds", "When a worker last told what it knows.", labels=["pid"]
        )
        for content in self._contents():
            pid = str(content["pid"])
            written.add_metric([pid], content["written"])
            for name, kind, text, labels, values in content["families"]:
                family = Family(name, kind, text, tuple(labels), values)
                made = _metric(family, content["bounds"], "pid", (pid,))
                if name in metrics:
                    metrics[name].samples += made.samples
                else:
                    metrics[name] = made
        yield written
        yield from metrics.values()

    def _contents(self) -> Iterator[dict[str, Any]]:
        for path in sorted(glob.glob(os.path.join(glob.escape(self._folder), "loopwatch_*.json"))):
            try:
                with open(path, encoding="utf-8") as file:
                    content = json.load(file)
            except (OSError, ValueError):  # taken away meanwhile
                continue
            if content.get("format") != _FORMAT or _started(content["pid"]) != content["started"]:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                continue
            yield content


def _metric(family: Family, bounds: Sequence[float], label: str, value: tuple[str, ...]) -> Any:
    """A family as prometheus_client has them, with one label more where asked for."""
    labels = [*family.labels, *([label] if label else [])]
    if family.kind == "histogram":
        histogram = _client.HistogramMetricFamily(family.name, family.help, labels=labels)
        les = [*(_text_of(bound) for bound in bounds), "+Inf"]
        for key, (counts, total) in family.values:
            histogram.add_metric([*key, *value], list(zip(les, counts, strict=True)), total)
        return histogram
    made = _client.CounterMetricFamily if family.kind == "counter" else _client.GaugeMetricFamily
    metric = made(family.name, family.help, labels=labels)
    for key, number in family.values:
        metric.add_metric([*key, *value], number)
    return metric


def _folder(path: str | None) -> str:
    folder = path or os.environ.get(_FOLDER)
    if not folder or not os.path.isdir(folder):
        raise ValueError(
            f"the folder that the workers share is missing: expected {_FOLDER} (or path=) to name a folder that "
            f"exists, got {folder!r}"
        )
    return os.path.realpath(folder)


def _started(pid: int) -> str | None:
    """When a process of this host began, in the kernel's ticks; None where there is none, or only its corpse."""
    try:
        with open(f"/proc/{int(pid)}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else fields[19]
