"""examples/observability under load: four real workers, a real Prometheus, the queries of dashboard and alerts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "observability"
WORKERS = 4


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def until(what: str, check: Callable[[], Any], seconds: float = 40) -> Any:
    """What check() gives as soon as it is true; an error of the network counts as false."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = check()
            if last:
                return last
        except OSError as error:
            last = error
        time.sleep(0.2)
    pytest.fail(f"{what} did not come within {seconds} s; last: {last!r}")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where prometheus and promtool are: installed, or unpacked from Debian's package, which starts no service then."""
    found = {name: shutil.which(name) for name in ("prometheus", "promtool")}
    if all(found.values()):
        return {name: str(path) for name, path in found.items()}
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        pytest.skip("neither prometheus nor apt-get to get it with is installed")
    folder = tmp_path_factory.mktemp("prometheus")
    try:
        # apt's own user may not write into pytest's folder
        command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "prometheus"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("Debian's package of prometheus could not be had within 100 s")
    packages = list(folder.glob("prometheus_*.deb"))
    if done.returncode or not packages:
        pytest.skip(f"Debian's package of prometheus cannot be had here: {done.stderr.strip()[-300:]}")
    subprocess.run(["dpkg-deb", "-x", packages[0], folder / "root"], check=True, timeout=60)
    packages[0].unlink()
    unpacked = {name: str(folder / "root" / "usr" / "bin" / name) for name in ("prometheus", "promtool")}
    for program in unpacked.values():
        try:
            subprocess.run([program, "--version"], capture_output=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"Debian's prometheus does not run here: {error}")
    return unpacked


@contextlib.contextmanager
def process(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with open(log, "wb") as file:
        started = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **options)
    try:
        yield started
    except BaseException:
        print(log.read_text(errors="replace")[-3000:])
        raise
    finally:
        started.terminate()
        try:
            started.wait(15)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait(10)


@contextlib.contextmanager
def service(tmp_path: Path) -> Iterator[str]:
    """The example, as its README says to start it, on a free port; its address."""
    for library in ("gunicorn", "uvicorn_worker", "starlette", "prometheus_client"):
        pytest.importorskip(library)
    address = f"127.0.0.1:{free_port()}"
    paths = [str(path) for path in (FOLDER, os.environ.get("PYTHONPATH")) if path]
    environment = os.environ | {
        "BIND": address,
        "HOME": str(tmp_path),
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "shared"),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "service:app"]
    with process(command, tmp_path / "service.log", cwd=FOLDER, env=environment):
        until("the service", lambda: fetch(f"http://{address}/items/1"))
        until("all workers", lambda: len(pids(address)) == WORKERS)
        yield address


def pids(address: str) -> set[str]:
    return set(re.findall(r'^loopwatch_up\{pid="(\d+)"\} 1', fetch(f"http://{address}/metrics"), re.MULTILINE))


@contextlib.contextmanager
def load(address: str) -> Iterator[None]:
    """Requests from four threads, at most 3,000 in all, until the block ends."""
    over = threading.Event()

    def work(number: int) -> None:
        for i in range(750):
            if over.wait(0.02):
                return
            path = "/report" if i % 10 == 9 else "/subscribe" if i % 5 == 4 else f"/items/{i}"
            with contextlib.suppress(OSError):
                fetch(f"http://{address}{path}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(30)


def queries() -> dict[str, str]:
    """Every expression of the dashboard, with its variables filled in."""
    dashboard = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
    found = {}
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            text = target["expr"].replace("$job", ".*").replace("$instance", ".*").replace("$__rate_interval", "30s")
            found[f"{panel['title']} {target['refId']}"] = text
    return found


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["title"]
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval"}
    taken = set()
    for panel in panels:
        assert {"type", "title", "description", "datasource", "gridPos", "fieldConfig", "options", "targets"} <= set(
            panel
        )
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables
            assert set(re.findall(r"\$\{(\w+)\}", json.dumps(target["datasource"]))) <= variables
    text = json.dumps(panels).lower()
    for wanted in ("p50", "p99", "utilization", "tasks by coroutine", "blocks by culprit", "alarms", "memory"):
        assert wanted in text


def test_the_dashboard_is_what_grafana_reads() -> None:
    """By Grafana's own model: every field is known to it and comes back as it was."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

    def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
        if isinstance(ours, dict) and isinstance(theirs, dict):
            return [text for key in ours for text in differences(ours[key], theirs.get(key), f"{path}/{key}")]
        if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
            pairs = enumerate(zip(ours, theirs, strict=True))
            return [text for at, pair in pairs for text in differences(*pair, f"{path}/{at}")]
        return [] if ours == theirs else [path]

    dashboard = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
    read = Dashboard.from_json(dashboard)
    assert read.panels and all(isinstance(panel, Panel) and panel.targets for panel in read.panels)
    lost = differences(dashboard, json.loads(JSONEncoder(sort_keys=True).encode(read)))
    assert [path for path in lost if not path.endswith("/definition")] == []  # of a variable: newer than the model


@pytest.mark.slow
def test_alerts_fire_for_what_is_rare(programs: dict[str, str], tmp_path: Path) -> None:
    """By promtool, on series as they come every 15 s for ten minutes."""

    def fires(alert: str, series: dict[str, str]) -> bool:
        worker = 'job="shop", instance="a", pid="1"'
        given = [{"series": f"loopwatch_{name[:-1]}{',' if '=' in name else ''}{worker}}}", "values": values}
                 for name, values in series.items()]  # fmt: skip
        query = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'
        samples = [{"labels": "{}", "value": 1}]
        asked = [{"expr": query, "eval_time": "8m", "exp_samples": samples}]
        test = {"interval": "15s", "input_series": given, "promql_expr_test": asked}
        file = tmp_path / "test.yml"
        file.write_text(
            json.dumps({"rule_files": [str(FOLDER / "alerts.yml")], "evaluation_interval": "15s", "tests": [test]})
        )
        done = subprocess.run([programs["promtool"], "test", "rules", file], capture_output=True, text=True, timeout=60)
        assert done.returncode in (0, 1) and ("SUCCESS" in done.stdout or "got: nil" in done.stdout + done.stderr), done
        return done.returncode == 0

    def spans(count: str, short: str) -> dict[str, str]:
        return {"loop_lag_seconds_count{}": count, 'loop_lag_seconds_bucket{le="0.25"}': short}

    assert fires("EventLoopLag", spans("0+287x40", "0+286x40"))  # 20 long spans of 5,740 in five minutes
    assert not fires("EventLoopLag", spans("0+287x40", "0+287x40"))
    for alert, name in (
        ("EventLoopBlocked", "process_blocked_seconds_total{}"),
        ("ExceptionsNeverRetrieved", "process_exceptions_never_retrieved_total{}"),
    ):
        assert fires(alert, {name: "0x20 1x20"})
        assert not fires(alert, {name: "0x40"})


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_four_workers_seen_by_a_real_prometheus(programs: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    with service(tmp_path) as address:
        text = (FOLDER / "prometheus.yml").read_text(encoding="utf-8")
        config = tmp_path / "prometheus.yml"
        config.write_text(text.replace("127.0.0.1:8000", address).replace("15s", "1s"), encoding="utf-8")
        shutil.copy(FOLDER / "alerts.yml", tmp_path)
        for what in (["config", str(config)], ["rules", str(FOLDER / "alerts.yml")]):
            done = subprocess.run([programs["promtool"], "check", *what], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stdout + done.stderr
        command = [
            programs["prometheus"],
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            f"--web.console.libraries={tmp_path}",
            f"--web.console.templates={tmp_path}",
        ]

        def ask(query: str) -> list[dict[str, Any]]:
            answer = json.loads(
                fetch(f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(query, safe='')}")
            )
            assert answer["status"] == "success", answer
            return list(answer["data"]["result"])

        def rules() -> dict[str, dict[str, Any]]:
            answer = json.loads(fetch(f"http://127.0.0.1:{port}/api/v1/rules"))
            return {rule["name"]: rule for rule in answer["data"]["groups"][0]["rules"]}

        with contextlib.ExitStack() as running:
            running.enter_context(process(command, tmp_path / "prometheus.log"))
            workers = until(
                "the series of all four workers",
                lambda: (
                    len(found := {one["metric"]["pid"] for one in ask("loopwatch_process_blocks_total == 0")})
                    == WORKERS
                    and found
                ),
            )
            assert workers == pids(address)
            assert fetch(f"http://{address}/report") == "report\n"
            # one block in all is seen, though its culprit's series begins with it
            until("the alert of a block", lambda: rules()["EventLoopBlocked"]["state"] == "firing")
            panel = queries()["Blocks by culprit A"]
            shown = until(
                "the first block in the dashboard",
                lambda: [one for one in ask(f"({panel}) > 0") if one["metric"]["culprit"].endswith(" in report")],
            )
            (took,) = ask('sum(loopwatch_block_seconds_total{culprit=~".* in report"})')
            assert [one["value"][1] for one in shown] == [took["value"][1]]
            running.enter_context(load(address))
            blocks = until(
                "the block", lambda: ask('sum by (culprit, cause) (rate(loopwatch_block_seconds_total[30s])) > 0')
            )  # fmt: skip
            assert {one["metric"]["culprit"].partition(" in ")[2] for one in blocks} == {"report"}
            assert all(re.match(r"service\.py:\d+ in ", one["metric"]["culprit"]) for one in blocks)
            leaked = until(
                "the leak", lambda: ask('sum by (coroutine) (loopwatch_tasks{coroutine="wait_for_news"}) > 5')
            )
            assert float(leaked[0]["value"][1]) > 5
            for name, query in queries().items():
                until(f"an answer to {name!r}", lambda query=query: ask(query))
            lag = until(
                "lag of each worker", lambda: ask("sum by (pid) (rate(loopwatch_loop_lag_seconds_sum[30s])) > 0")
            )
            assert {one["metric"]["pid"] for one in lag} <= workers
            until("the alert of lag", lambda: rules()["EventLoopLag"]["state"] == "firing")
            assert len(rules()) == 8
            until("the rules' evaluation", lambda: all(rule["health"] == "ok" for rule in rules().values()))
            for name in ("MonitorDown", "EventLoopHangs", "ExceptionsNeverRetrieved"):
                assert rules()[name]["state"] == "inactive"
    assert list((tmp_path / "shared").glob("loopwatch_*.json")) == []  # workers that stop take their files away
    assert "Traceback" not in (tmp_path / "service.log").read_text(errors="replace")
