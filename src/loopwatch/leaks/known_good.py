"""The background work of common libraries that is no leak, each entry with its reason.

An entry is as narrow as can be: a worker of a pool is overlooked only while it has nothing to do.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopwatch.leaks.anyio_workers import is_worker, serves_worker
from loopwatch.leaks.suppress import Ignore
from loopwatch.leaks.thread_roles import has_work

__all__ = ["KNOWN_GOOD"]


@dataclass(frozen=True)
class _Idle(Ignore):
    """A worker thread of a pool that has nothing to do: below its own ``run`` it only waits for work.

    ``waits``: the functions by which it does, ``run`` calls the first; none: ``run`` itself waits.
    """

    run: str = ""
    waits: tuple[str, ...] = ()

    def matches(self, leak: Any, labels: Mapping[str, Sequence[str]] | None = None) -> bool:
        labels = leak.labels() if labels is None else labels
        if not super().matches(leak, labels):
            return False
        stack = list(labels.get("stack", ()))
        if self.run not in stack or has_work(getattr(leak, "thread_ref", None)):
            return False
        inner = stack[stack.index(self.run) + 1 :]
        return inner[:1] == list(self.waits[:1]) and all(name in self.waits for name in inner)


@dataclass(frozen=True)
class _AnyioWorker(Ignore):
    """A worker process of anyio's, or a descriptor by which it is spoken to."""

    def matches(self, leak: Any, labels: Mapping[str, Sequence[str]] | None = None) -> bool:
        if leak.kind != self.kind:
            return False
        return is_worker(leak.argv) if self.kind == "process" else serves_worker(leak.fd)


KNOWN_GOOD: tuple[Ignore, ...] = (
    _Idle(
        name="AnyIO worker thread",
        kind="thread",
        run="WorkerThread.run",
        waits=("Queue.get", "Condition.wait"),
        reason="anyio (Starlette, FastAPI) keeps idle worker threads for the next call, until its root task ends",
    ),
    _Idle(
        name=re.compile(r"^Trio thread \d+$"),
        kind="thread",
        run="WorkerThread._work",
        reason="trio keeps an idle worker thread for 10 seconds for the next call",
    ),
    Ignore(
        name=re.compile(r"^asyncio-waitpid-\d+$"),
        kind="thread",
        reason="asyncio waits for a child process there and ends with it: the child itself is reported",
    ),
    Ignore(
        qualname="TestRunner._run_tests_and_fixtures",
        kind="task",
        reason="anyio's pytest plugin runs the tests and fixtures of a whole scope in this task",
    ),
    Ignore(
        qualname="_shutdown_process_pool_on_exit",
        kind="task",
        reason="anyio ends the worker processes of a loop in this task, when the loop is closed",
    ),
    _AnyioWorker(
        kind="process",
        reason="anyio keeps the worker processes of to_process for the next call, until the loop is closed",
    ),
    _AnyioWorker(
        kind="descriptor",
        reason="the pipes to anyio's worker processes, which are closed with these",
    ),
    Ignore(
        name=re.compile(r"^pytest_timeout "),
        kind="thread",
        reason="pytest-timeout's timer, cancelled when the test ends",
    ),
    Ignore(
        name=re.compile(r"^(OtelBatch\w+RecordProcessor|OtelPeriodicExportingMetricReader)$"),
        kind="thread",
        reason="OpenTelemetry exports in the background until its provider is shut down, at exit",
    ),
    Ignore(
        creator="_run_channel_spin_thread",
        kind="thread",
        reason="gRPC polls a channel's state there until the channel is closed or collected",
    ),
    Ignore(
        creator="TMonitor.__init__",
        kind="thread",
        reason="tqdm's monitor, one for all progress bars, lives until exit",
    ),
    Ignore(
        name=re.compile(r"^(raven-sentry|sentry-sdk)\.BackgroundWorker$"),
        kind="thread",
        reason="Sentry sends reports in the background until exit",
    ),
    Ignore(
        name=re.compile(r"^pydevd\."),
        kind="thread",
        reason="the debugger's own threads",
    ),
)
"""The known background work of common libraries, each with why it is no leak."""
