"""Gathers the findings of a run, where its reports are: in the only process, or on xdist's controller.

What people and tools get of them: the section at the end, GitHub's annotations, the JSON file, the baseline.
"""

import os
import sys
import time
from typing import Any

import pytest

from loopwatch.outfile import why_not_writable, write_atomically
from loopwatch.pytest_plugin import options
from loopwatch.pytest_plugin.baseline import KnownFindings
from loopwatch.pytest_plugin.conductor import Conductor
from loopwatch.pytest_plugin.plan import Planner
from loopwatch.pytest_plugin.records import Group, Record, grouped, relative
from loopwatch.settings import SettingError

__all__ = ["SCHEMA", "Reporter"]

SCHEMA = "loopwatch.pytest/1"
_OWNERS_SHOWN = 3
_OUTPUT = "loopwatch_baseline"
_NOUNS = {
    "task": ("task", "tasks"),
    "destroyed_task": ("task destroyed while pending", "tasks destroyed while pending"),
    "task_exception": ("task exception nobody retrieved", "task exceptions nobody retrieved"),
    "coroutine": ("coroutine never awaited", "coroutines never awaited"),
    "thread": ("thread", "threads"),
    "async_generator": ("async generator left open", "async generators left open"),
    "timer": ("timer left scheduled", "timers left scheduled"),
    "descriptor": ("file descriptor left open", "file descriptors left open"),
    "process": ("child process not reaped", "child processes not reaped"),
    "loop": ("event loop not closed", "event loops not closed"),
    "executor": ("executor not shut down", "executors not shut down"),
    "block": ("block of the event loop", "blocks of the event loop"),
}


class Reporter:
    """See above.  Raises pytest.UsageError where a setting of the run is wrong."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._worker = hasattr(config, "workerinput")
        self._root = str(config.rootpath)
        self._started = time.time()
        self._records: list[Record] = []
        self._troubles: dict[str, str] = {}
        self._tests: set[str] = set()
        self._notes: list[str] = []
        try:
            layers = options.layers(config)
            self._planner = Planner(layers, options.watches_everything(config))
            path = next((layer["baseline"] for layer in layers if layer.get("baseline")), None)
            update = bool(config.getoption("loopwatch_update_baseline"))
            if update and not path:
                raise ValueError("--loopwatch-update-baseline needs --loopwatch-baseline FILE")
            self._baseline = KnownFindings(path, update=update) if path else None
            if self._baseline is not None and self._baseline.writes and not self._worker:
                _check_file("the baseline", str(path))
            if config.getoption("loopwatch_json") and not self._worker:
                _check_file("--loopwatch-json", config.getoption("loopwatch_json"))
        except (SettingError, TypeError, ValueError, OSError) as error:
            raise pytest.UsageError(f"loopwatch: {error}") from error

    def conductor(self) -> Conductor:
        """The hooks for this process' tests."""
        if self._config.pluginmanager.has_plugin("pyleak"):
            self._notes.append("pyleak's plugin takes the marker no_leaks too: uninstall it, or write -p no:pyleak")
        return Conductor(self._planner, self._baseline)

    def take(self, report: Any, sent: dict[str, Any]) -> None:
        """What came with a test's report."""
        if self._worker:
            return
        self._tests.add(report.nodeid)
        self._records += sent["findings"]
        for trouble in sent["troubles"]:
            self._troubles.setdefault(trouble, report.nodeid)

    def absorb(self, workeroutput: dict[str, Any]) -> None:
        """What an xdist worker tells at its end."""
        if self._baseline is not None:
            self._baseline.absorb(workeroutput.get(_OUTPUT, ()))

    def finish(self) -> bool:
        """Write the files; a worker hands over instead.  Returns whether all could be written."""
        if self._worker:
            if self._baseline is not None:
                self._config.workeroutput[_OUTPUT] = [list(seen) for seen in self._baseline.seen()]  # type: ignore[attr-defined]
            return True
        written = True
        if not self._tests:  # none ran, so nothing is known of what leaks
            if not options.watches_everything(self._config):
                self._notes.append("No test was under guard: add --loopwatch, or mark tests with @pytest.mark.no_leaks")
        elif self._baseline is not None:
            try:
                self._notes += self._baseline.finish()
            except OSError as error:
                written = False
                self._notes.append(f"loopwatch could not write the baseline, so nothing is known: {error}")
                for record in self._records:
                    record["known"] = False
        path = self._config.getoption("loopwatch_json")
        try:
            if path:
                write_atomically(path, self.document())
        except OSError as error:
            written = False
            self._notes.append(f"loopwatch could not write --loopwatch-json: {error}")
        return written

    def document(self) -> dict[str, Any]:
        """The JSON report."""
        from loopwatch import __version__

        return {
            "schema": SCHEMA,
            "version": __version__,
            "python": sys.version.split()[0],
            "pytest": pytest.__version__,
            "root": self._root,
            "started": self._started,
            "duration": time.time() - self._started,
            "test_count": len(self._tests),
            "finding_count": len(self._new()),
            "known_count": len(self._records) - len(self._new()),
            "groups": [_group(group) for group in grouped(self._new())],
            "findings": self._records,
            "troubles": [{"text": text, "test": test} for text, test in self._troubles.items()],
        }

    def _new(self) -> list[Record]:
        return [record for record in self._records if not record["known"]]

    def summarize(self, terminal: Any) -> None:
        """Write the section and the annotations, if there is something to say."""
        if self._worker:
            return
        groups = grouped(self._new())
        known = len(self._records) - len(self._new())
        if groups or self._notes or self._troubles:
            tests = len({record["test"] for record in self._new()})
            title = f"loopwatch: {_count(len(self._new()), 'finding', 'findings')} in {_count(tests, 'test', 'tests')}"
            terminal.section(f"{title} of {len(self._tests)} under guard", sep="=", yellow=True)
        elif self._tests and (known or options.watches_everything(self._config)):
            guarded = _count(len(self._tests), "test", "tests")
            told = f"0 new findings, {known} known" if known else "no findings"
            terminal.line(f"loopwatch: {told}, {guarded} under guard")
        for group in groups:
            self._write_group(terminal, group)
        for trouble, test in self._troubles.items():
            terminal.line(f"loopwatch itself: {trouble} (first in {test})")
        for note in self._notes:
            terminal.line(note)
        if options.annotations(self._config, dict(os.environ)):
            for group in groups:
                terminal.line(annotation(group, self._root))

    def _write_group(self, terminal: Any, group: Group) -> None:
        one, many = _NOUNS.get(group.kind, (group.kind, group.kind))
        seconds = f", {group.duration:.3f} s" if group.duration else ""
        terminal.line(f"{_count(group.count, one, many)}{seconds}: {group.where(self._root)}", bold=True)
        terminal.line(f"    {group.example['headline']}")
        everything = self._config.get_verbosity() > 0
        for index, (owner, count) in enumerate(group.owners.items()):
            if index == _OWNERS_SHOWN and not everything:
                terminal.line(f"    ... and {len(group.owners) - index} more (-v shows all)")
                break
            terminal.line(f"    {owner}" + (f" ({count} times)" if count > 1 else ""))
        if everything:
            for line in group.example["text"].splitlines():
                terminal.line(f"        {line}".rstrip())


def _check_file(what: str, path: str) -> None:
    """Raise OSError where it cannot be written, before a run for which it would be lost."""
    trouble = why_not_writable(path)
    if trouble is not None:
        raise OSError(f"{what} {path} cannot be written: {trouble}")


def _count(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _group(group: Group) -> dict[str, Any]:
    return {
        "kind": group.kind,
        "place": group.place,
        "count": group.count,
        "duration": group.duration,
        "headline": group.example["headline"],
        "owners": [{"owner": owner, "count": count} for owner, count in group.owners.items()],
    }


def annotation(group: Group, root: str) -> str:
    """A group as a workflow command of GitHub Actions, which shows it beside the line."""
    one, many = _NOUNS.get(group.kind, (group.kind, group.kind))
    level = "error" if group.example["raised"] else "warning"
    fields = {"title": f"loopwatch: {_count(group.count, one, many)}"}
    if group.place is not None:
        fields = {"file": relative(group.place["file"], root), "line": str(group.place["line"]), **fields}
    text = f"{group.example['headline']}\n" + "\n".join(list(group.owners)[:_OWNERS_SHOWN])
    written = ",".join(f"{key}={_escape(value, ':,')}" for key, value in fields.items())
    return f"::{level} {written}::{_escape(text)}"


def _escape(text: str, more: str = "") -> str:
    for sign in "%\r\n" + more:
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text
