"""What a monitor knows, as Prometheus and OpenTelemetry see it: real client libraries, real HTTP."""

import asyncio
import contextlib
import gc
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from loopwatch import Monitor
from loopwatch.exporters.fold import AlarmTally, Slots, cumulative, loop_labels, site
from loopwatch.monitor.histogram import Histogram

HERE = os.path.abspath(__file__)
kept: list[Any] = []


async def fetch_rates() -> None:
    await asyncio.Event().wait()


async def busy_service(tasks: int = 5) -> None:
    for _ in range(tasks):
        kept.append(asyncio.create_task(fetch_rates()))
    for _ in range(20):
        await asyncio.sleep(0.001)
    time.sleep(0.25)
    await asyncio.sleep(0.01)


@contextlib.contextmanager
def running_service(**options: Any) -> Iterator[Monitor]:
    """A monitor, and a loop in another thread that has run busy_service()."""
    kept.clear()
    done, over = threading.Event(), threading.Event()

    async def main() -> None:
        await busy_service(**options)
        done.set()
        while not over.is_set():
            await asyncio.sleep(0.02)
        for task in kept:
            task.cancel()

    with Monitor(lag=0.1, on_alarm=lambda alarm: None) as monitor:
        thread = threading.Thread(target=lambda: asyncio.run(main()), name="service")
        thread.start()
        try:
            assert done.wait(20)
            yield monitor
        finally:
            over.set()
            thread.join(20)
    kept.clear()


# --- Prometheus ---


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    parser = pytest.importorskip("prometheus_client.parser")
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_a_real_scrape_over_http() -> None:
    client = pytest.importorskip("prometheus_client")
    from loopwatch.exporters.prometheus import LoopwatchCollector

    registry = client.CollectorRegistry()
    with running_service() as monitor:
        registry.register(LoopwatchCollector(monitor))
        server, thread = client.start_http_server(0, addr="127.0.0.1", registry=registry)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=10) as answer:
                found = samples(answer.read().decode())
        finally:
            server.shutdown()
            server.server_close()
            thread.join(10)
    line = fetch_line()
    alive = {labels["site"].rpartition(":")[2]: value for labels, value in found["loopwatch_tasks"]
             if labels["coroutine"] == "fetch_rates" and labels["state"] == "alive"}  # fmt: skip
    assert alive == {str(line): 5}
    ((labels, count),) = [pair for pair in found["loopwatch_blocks_total"] if "busy_service" in pair[0]["culprit"]]
    assert (labels["cause"], count) == ("syscall", 1)
    (took,) = [value for labels, value in found["loopwatch_block_seconds_total"] if "busy_service" in labels["culprit"]]
    assert 0.25 <= took < 2
    assert found["loopwatch_process_blocks_total"] == [({}, sum(n for _, n in found["loopwatch_blocks_total"]))]
    assert found["loopwatch_process_blocked_seconds_total"] == [
        ({}, pytest.approx(sum(value for _, value in found["loopwatch_block_seconds_total"])))
    ]
    lag = [(labels["le"], value) for labels, value in found["loopwatch_loop_lag_seconds_bucket"]
           if labels["thread"] == "service"]  # fmt: skip
    counts = [value for _, value in lag]
    assert counts == sorted(counts)
    assert lag[-1][0] == "+Inf"
    assert dict(lag)["0.1"] == counts[-1] - 1 >= 20
    assert found["loopwatch_up"] == [({}, 1.0)]
    assert ({"kind": "lag"}, 1.0) in found["loopwatch_alarms_total"]
    assert found["loopwatch_process_resident_memory_bytes"][0][1] > 5e6


def test_totals_are_there_before_anything_happened() -> None:
    pytest.importorskip("prometheus_client")
    from loopwatch.exporters.prometheus import LoopwatchCollector

    async def fails() -> None:
        raise ValueError

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        assert totals() == {"blocks": 0, "blocked_seconds": 0, "exceptions_never_retrieved": 0}
        await asyncio.wait([asyncio.create_task(fails())])
        gc.collect()
        assert totals()["exceptions_never_retrieved"] == 1
        (samples,) = [one.values for one in collector.families() if one.name == "loopwatch_monitor_samples"]
        assert samples == [((), 0)]  # a scrape reads, and feeds no alarms

    def totals() -> dict[str, float]:
        prefix = "loopwatch_process_"
        return {one.name.removeprefix(prefix): one.values[0][1] for one in collector.families()
                if one.name.startswith(prefix) and one.kind == "counter" and not one.labels}  # fmt: skip

    with Monitor(lag=60, on_alarm=lambda alarm: None) as monitor:
        collector = LoopwatchCollector(monitor)
        asyncio.run(main())


def fetch_line() -> int:
    with open(HERE, encoding="utf-8") as file:
        return next(i for i, text in enumerate(file, 1) if "asyncio.create_task(fetch_rates())" in text)


def test_names_and_help_pass_the_parsers_and_promtools_rules() -> None:
    client = pytest.importorskip("prometheus_client")
    from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict

    from loopwatch.exporters.prometheus import LoopwatchCollector

    registry = client.CollectorRegistry()
    with running_service() as monitor:
        registry.register(LoopwatchCollector(monitor))
        families = list(strict(openmetrics(registry).decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names)) > 25
    for family in families:
        assert family.name.startswith("loopwatch_")
        assert family.documentation.endswith(".") or family.documentation.endswith('"other".')
        assert not family.name.endswith(("_total", "_count", "_bucket", "_ms", "_mb"))


def test_series_are_bounded_and_what_is_cut_is_counted() -> None:
    client = pytest.importorskip("prometheus_client")
    from loopwatch.exporters.prometheus import LoopwatchCollector

    names = [f"worker_{i}" for i in range(30)]
    source = "".join(f"async def {name}(): await asyncio.Event().wait()\n" for name in names)
    space: dict[str, Any] = {"asyncio": asyncio}
    exec(source, space)

    def spawn(name: str, count: int) -> None:
        for _ in range(count):
            kept.append(asyncio.create_task(space[name]()))

    async def main() -> dict[str, Any]:
        for i, name in enumerate(names):
            spawn(name, i + 1)
        await asyncio.sleep(0)
        first = samples(client.generate_latest(registry).decode())
        spawn("worker_0", 100)
        await asyncio.sleep(0)
        second = samples(client.generate_latest(registry).decode())
        return {"first": first, "second": second}

    with Monitor(on_alarm=lambda alarm: None) as monitor:
        registry = client.CollectorRegistry()
        registry.register(LoopwatchCollector(monitor, limit=10))
        found = asyncio.run(main())
    kept.clear()
    for scrape, total in ((found["first"], 465), (found["second"], 565)):
        created = {labels["coroutine"]: value for labels, value in scrape["loopwatch_tasks_created_total"]}
        assert len(created) == 11
        assert sum(created.values()) == total
        assert ({"of": "tasks"}, 21.0) in scrape["loopwatch_series_cut"]
    top = {labels["coroutine"]: value for labels, value in found["second"]["loopwatch_tasks"]
           if labels["state"] == "alive"}  # fmt: skip
    assert top["worker_0"] == 101  # what goes up and down is ranked anew
    assert len(top) == 11
    before = {labels["coroutine"]: value for labels, value in found["first"]["loopwatch_tasks_created_total"]}
    after = {labels["coroutine"]: value for labels, value in found["second"]["loopwatch_tasks_created_total"]}
    assert after.keys() == before.keys()
    assert all(after[name] >= before[name] for name in before)  # no counter ever goes back
    assert after["other"] == before["other"] + 100


def test_a_monitor_that_does_not_run_says_so() -> None:
    client = pytest.importorskip("prometheus_client")
    from loopwatch.exporters.prometheus import LoopwatchCollector

    registry = client.CollectorRegistry()
    registry.register(LoopwatchCollector(Monitor()))
    assert samples(client.generate_latest(registry).decode()) == {"loopwatch_up": [({}, 0.0)]}


WORKER = """
import asyncio, sys, time
from loopwatch import Monitor
from loopwatch.exporters.prometheus import LoopwatchWorker
import prometheus_client
REQUESTS = prometheus_client.Counter("app_requests", "requests")
async def work():
    await asyncio.Event().wait()
async def main():
    tasks = [asyncio.create_task(work()) for _ in range(int(sys.argv[1]))]
    await asyncio.sleep(0.01)
    REQUESTS.inc(int(sys.argv[1]))
    worker = LoopwatchWorker(monitor, interval=0.1).start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    worker.stop()
with Monitor(on_alarm=lambda alarm: None) as monitor:
    asyncio.run(main())
"""


def test_workers_of_a_real_multiprocess_registry(tmp_path: Any) -> None:
    client = pytest.importorskip("prometheus_client")
    from prometheus_client.multiprocess import MultiProcessCollector

    from loopwatch.exporters.prometheus import LoopwatchMultiProcessCollector

    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(count)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for count in (1, 2, 3)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        registry = client.CollectorRegistry()
        MultiProcessCollector(registry, path=str(tmp_path))
        LoopwatchMultiProcessCollector(registry, path=str(tmp_path))
        found = samples(client.generate_latest(registry).decode())
        assert found["app_requests_total"] == [({}, 6.0)]  # prometheus_client's own files are left in peace
        alive = {labels["pid"]: value for labels, value in found["loopwatch_tasks"]
                 if labels["coroutine"] == "work" and labels["state"] == "alive"}  # fmt: skip
        assert alive == {str(worker.pid): count for worker, count in zip(workers, (1, 2, 3), strict=True)}
        assert {labels["pid"] for labels, _ in found["loopwatch_loop_lag_seconds_count"]} == set(alive)
        assert all(time.time() - written < 30 for _, written in found["loopwatch_worker_written_timestamp_seconds"])

        workers[0].send_signal(signal.SIGKILL)  # it takes nothing away
        workers[0].wait(10)
        assert workers[1].stdin is not None
        workers[1].stdin.close()  # it stops as it should
        assert workers[1].wait(20) == 0
        found = samples(client.generate_latest(registry).decode())
        assert [labels["pid"] for labels, _ in found["loopwatch_up"]] == [str(workers[2].pid)]
        assert [path.name for path in tmp_path.glob("*.json")] == [f"loopwatch_{workers[2].pid}.json"]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(10)
            for pipe in (worker.stdin, worker.stdout):
                assert pipe is not None
                pipe.close()


def test_a_missing_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("prometheus_client")
    from loopwatch.exporters.prometheus import LoopwatchMultiProcessCollector, LoopwatchWorker

    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    with pytest.raises(ValueError, match=r"expected PROMETHEUS_MULTIPROC_DIR .* got None"):
        LoopwatchMultiProcessCollector()
    with pytest.raises(ValueError, match="got '/nowhere'"):
        LoopwatchWorker(Monitor(), "/nowhere")
    with pytest.raises(TypeError, match=r"expected a loopwatch\.Monitor, got 3"):
        LoopwatchWorker(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [("prometheus", "prometheus_client", "prometheus"), ("otel", "opentelemetry", "opentelemetry")],
)
def test_a_missing_library_says_what_to_type(module: str, library: str, extra: str) -> None:
    source = f"import sys; sys.modules[{library!r}] = None; import loopwatch.exporters.{module}"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=30, check=False)
    assert f"pip install 'loopwatch[{extra}]'" in done.stderr.splitlines()[-1]


# --- OpenTelemetry ---


class Receiver(http.server.ThreadingHTTPServer):
    """Takes OTLP over HTTP and decodes it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ReceiverHandler)
        self.requests: list[Any] = []


class ReceiverHandler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service

        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        assert isinstance(self.server, Receiver)
        self.server.requests.append((self.path, service.ExportMetricsServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None: ...


def attributes(point: Any) -> dict[str, Any]:
    return {pair.key: pair.value.string_value for pair in point.attributes}


def test_a_real_otlp_export() -> None:
    pytest.importorskip("opentelemetry.sdk")
    otlp = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.metric_exporter")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource

    from loopwatch.exporters.otel import OpenTelemetryExporter

    receiver = Receiver()
    thread = threading.Thread(target=receiver.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{receiver.server_port}/v1/metrics"
    reader = PeriodicExportingMetricReader(otlp.OTLPMetricExporter(endpoint=endpoint), export_interval_millis=3_600_000)
    provider = MeterProvider([reader], resource=Resource.create({"service.name": "shop", "service.instance.id": "7"}))
    try:
        with running_service() as monitor:
            exporter = OpenTelemetryExporter(monitor, provider)
            provider.force_flush()
            time.sleep(0.6)
            provider.force_flush()
            exporter.close()
            provider.force_flush()
    finally:
        provider.shutdown()
        receiver.shutdown()
        receiver.server_close()
        thread.join(10)
    path, first = receiver.requests[0]
    assert path == "/v1/metrics"
    (resource,) = first.resource_metrics
    assert {"service.name": "shop", "service.instance.id": "7"}.items() <= attributes(resource.resource).items()
    metrics = {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}

    def points(name: str, kind: str, **wanted: str) -> list[Any]:
        found = getattr(metrics[name], kind).data_points
        return [point for point in found if wanted.items() <= attributes(point).items()]

    service = {"thread.name": "service"}
    delays = [points(f"asyncio.eventloop.delay.{what}", "gauge", **service)[0].as_double
              for what in ("min", "p50", "p90", "p99", "max")]  # fmt: skip
    assert delays == sorted(delays)
    assert 0 < delays[0] < 0.01
    assert delays[-1] >= 0.25
    assert metrics["asyncio.eventloop.delay.p99"].unit == "s"
    (share,) = points("asyncio.eventloop.utilization", "gauge", **service)
    assert 0.05 < share.as_double <= 1
    times = {attributes(point)["asyncio.eventloop.state"]: point.as_double
             for point in points("asyncio.eventloop.time", "sum", **service)}  # fmt: skip
    assert 0.25 < times["active"] < 5
    assert times.keys() == {"active", "idle"}
    assert metrics["asyncio.eventloop.time"].sum.is_monotonic
    (alive,) = points(
        "asyncio.task.count", "gauge", **{"asyncio.task.coroutine": "fetch_rates", "asyncio.task.state": "alive"}
    )
    assert (alive.as_int or alive.as_double) == 5
    (block,) = [point for point in points("asyncio.eventloop.block.count", "sum")
                if "busy_service" in attributes(point)["asyncio.eventloop.block.culprit"]]  # fmt: skip
    assert block.as_int == 1
    (every,) = points("loopwatch.process.block.count", "sum")
    assert every.as_int == sum(point.as_int for point in points("asyncio.eventloop.block.count", "sum"))
    (unseen,) = points("loopwatch.process.exception.unretrieved", "sum")
    assert unseen.as_int == 0 and not attributes(unseen)

    slow = [point for _, export in receiver.requests for resource in export.resource_metrics
            for scope in resource.scope_metrics for metric in scope.metrics
            if metric.name == "asyncio.eventloop.delay.slow" for point in metric.histogram.data_points
            if attributes(point) == {"asyncio.eventloop.type": point_type(point), **service}]  # fmt: skip
    assert slow
    assert slow[-1].count >= 1
    assert slow[-1].max >= 0.25
    last = receiver.requests[-1][1]
    names = {metric.name for resource in last.resource_metrics for scope in resource.scope_metrics
             for metric in scope.metrics}  # fmt: skip
    assert len(receiver.requests) == 2 or names <= {"asyncio.eventloop.delay.slow"}  # closed: nothing is observed


def point_type(point: Any) -> str:
    return str(attributes(point)["asyncio.eventloop.type"])


def test_delays_are_those_since_the_collection_before() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from loopwatch.exporters import otel

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])

    def longest() -> float:
        data = json.loads(reader.get_metrics_data().to_json())  # type: ignore[union-attr]
        return max(
            point["value"]
            for resource in data["resource_metrics"]
            for scope in resource["scope_metrics"]
            for metric in scope["metrics"]
            if metric["name"] == "asyncio.eventloop.delay.max"
            for point in metric["data"]["data_points"]
            if point["attributes"]["thread.name"] == "service"
        )

    with running_service() as monitor:
        exporter = otel.OpenTelemetryExporter(monitor, provider)
        assert longest() >= 0.25
        deadline = time.monotonic() + 20
        while (later := longest()) >= 0.25 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert later < 0.25
        exporter.close()
    provider.shutdown()


# --- folding ---


def test_histograms_are_folded_into_fixed_bounds() -> None:
    histogram = Histogram(10, 5.0, 3.0, ((0.0009, 1), (0.001, 2), (0.0011, 3), (0.9, 1), (3.2, 3)))
    assert cumulative(histogram, (0.001, 0.01, 1.0)) == [3, 6, 7, 10]
    assert cumulative(Histogram(), (0.001, 1.0)) == [0, 0, 0]


def test_slots_never_move() -> None:
    slots: Slots[str] = Slots(2)
    assert slots.split(["a", "b", "c"], str) == (["a", "b"], ["c"])
    assert slots.split(["c", "d", "b", "a"], str) == (["b", "a"], ["c", "d"])
    assert slots.cut == 2


def test_labels_are_short_and_printable(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert site((f"{tmp_path}/app/views.py", 7, "f")) == "app/views.py:7"
    assert site(("/elsewhere/views.py", 7, "f")) == "/elsewhere/views.py:7"
    assert site(None) == "unknown"
    assert site(("evil\n.py", 1, "f")) == r"evil\n.py:1"
    assert len(site(("x" * 9999, 1, "f"))) == 200
    loop = type("Loop", (), {"name": "<uvloop.Loop running=True closed=False debug=False>", "thread": "MainThread"})
    assert loop_labels(loop) == ("Loop", "MainThread")  # type: ignore[arg-type]


def test_alarms_are_counted_once() -> None:
    def alarm(kind: str, when: float) -> Any:
        return type("Alarm", (), {"kind": kind, "fingerprint": kind, "time": when})

    def reading(*alarms: Any) -> Any:
        return type("Reading", (), {"alarms": alarms})

    tally = AlarmTally()
    tally.add(reading(alarm("tasks", 1.0)))
    tally.add(reading(alarm("tasks", 1.0), alarm("lag", 2.0)))
    counts = tally.add(reading(alarm("lag", 2.0), alarm("tasks", 3.0)))
    assert counts == {"tasks": 2, "retained": 0, "timers": 0, "memory": 0, "lag": 1, "hang": 0}
