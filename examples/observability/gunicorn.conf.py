"""Four uvicorn workers behind one port."""

import os
import pathlib
import shutil
import tempfile

from prometheus_client import multiprocess

bind = os.environ.get("BIND", "127.0.0.1:8000")
workers = 4
worker_class = "uvicorn_worker.UvicornWorker"
graceful_timeout = 5

_shared = os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(pathlib.Path(tempfile.gettempdir(), "shop-metrics")))


def on_starting(server):
    """Begin with an empty folder: what an earlier run left there would be counted again."""
    shutil.rmtree(_shared, ignore_errors=True)
    pathlib.Path(_shared).mkdir(parents=True)


def child_exit(server, worker):
    """For prometheus_client's own gauges.  Loopwatch's files of dead workers are taken away at the next scrape."""
    multiprocess.mark_process_dead(worker.pid)
