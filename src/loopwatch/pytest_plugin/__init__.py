"""pytest's plugin: puts tests under guard, by the marker ``no_leaks`` or all of them with ``--loopwatch``.

pytest imports this module in every run, so it imports nothing until a test is under guard.
"""

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from loopwatch.pytest_plugin.reporter import Reporter

_ACTIVE = "loopwatch-conductor"
_MARKER = (
    "no_leaks(*kinds, **settings): fail this test for what it leaves behind: tasks, threads, blocked event loops and "
    "more. Kinds given by name ('tasks', 'threads', 'blocking', ..., 'all') select just these; settings are those of "
    "loopwatch.no_leaks, such as task_action, thread_name_filter, blocking_threshold."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    from loopwatch.pytest_plugin.options import add_options

    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    config.pluginmanager.register(_Collector(config), "loopwatch-collector")


class _Collector:
    """Waits for the first sign of use."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._reporter: Reporter | None = None
        from loopwatch.pytest_plugin.options import is_used

        if is_used(config):
            self._reporter = self._make_reporter()

    def _make_reporter(self) -> "Reporter":
        from loopwatch.pytest_plugin.reporter import Reporter

        return Reporter(self._config)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        manager = self._config.pluginmanager
        if manager.has_plugin(_ACTIVE) or self._config.option.collectonly:
            return
        if self._reporter is None and not any(item.get_closest_marker("no_leaks") for item in session.items):
            return
        if self._reporter is None:
            self._reporter = self._make_reporter()
        manager.register(self._reporter.conductor(), _ACTIVE)

    def pytest_runtest_logreport(self, report: Any) -> None:
        sent = getattr(report, "loopwatch", None)
        if sent is None:
            return
        if self._reporter is None:  # on xdist's controller, which collects nothing
            self._reporter = self._make_reporter()
        self._reporter.take(report, sent)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        if self._reporter is not None:
            self._reporter.absorb(getattr(node, "workeroutput", {}))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._reporter is not None and not self._reporter.finish() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._reporter is not None:
            self._reporter.summarize(terminalreporter)
