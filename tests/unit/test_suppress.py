"""What is overlooked and why: Ignore, strings, regular expressions, the entries for known libraries."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from loopwatch import Ignore
from loopwatch.leaks.kinds import Leak
from loopwatch.leaks.known_good import KNOWN_GOOD
from loopwatch.leaks.suppress import first_match, ignores_from


@dataclasses.dataclass(frozen=True)
class Found(Leak):
    name: str = "worker-1"
    kind: str = "task"  # type: ignore[misc]
    creation_stack: list[Any] | None = None
    given: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def headline(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name

    def labels(self) -> Mapping[str, Sequence[str]]:
        return {
            "name": [self.name],
            "qualname": ["Pool.work"],
            "stack": ["Pool.work", "sleep"],
            "creator": ["main", "Pool.start"],
            "module": ["app.pool"],
        } | self.given


def overlooks(ignore: Any, found: Leak | None = None) -> bool:
    return first_match(ignores_from(ignore), found or Found()) is not None


@pytest.mark.parametrize(
    ("entry", "covers"),
    [
        ({"name": "worker-1"}, True),
        ({"name": "worker"}, False),
        ({"name": re.compile("work")}, True),
        ({"qualname": "Pool.work"}, True),
        ({"qualname": "work"}, False),
        ({"stack": "sleep"}, True),
        ({"stack": "Pool.start"}, False),
        ({"creator": "Pool.start"}, True),
        ({"module": re.compile(r"^app\.")}, True),
        ({"module": "app"}, False),
        ({"kind": "task"}, True),
        ({"kind": "thread"}, False),
        ({"name": "worker-1", "kind": "thread"}, False),
        ({"name": "worker-1", "creator": "main"}, True),
        ({"name": "worker-1", "creator": "other"}, False),
    ],
)
def test_an_entry_covers_what_all_of_it_matches(entry: dict[str, Any], covers: bool) -> None:
    assert overlooks(Ignore(**entry, reason="because")) is covers


def test_bare_strings_and_patterns_are_names_or_qualified_names() -> None:
    assert overlooks("worker-1")
    assert overlooks("Pool.work")
    assert overlooks(["other", re.compile(r"-\d$")])
    assert not overlooks(["sleep"])
    assert not overlooks([])


@pytest.mark.parametrize("text", [r"worker-\d+", "worker-.*", "^worker", "worker$", "(?i)worker", "[a-z]+x", "(a|b)+"])
def test_a_string_full_of_regex_signs_warns_and_says_what_to_write(text: str) -> None:
    with pytest.warns(UserWarning, match="write re.compile") as caught:
        ignores_from(text)
    assert re.escape(text) in re.escape(str(caught[0].message))
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="write re.compile") as caught:
        Ignore(name=text)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "text", ["Thread-1 (target)", "ThreadPoolExecutor-0_0", "asyncio_0", "worker-1", "a.b.c", "a|b", "C:\\", "[pool] 1"]
)
def test_ordinary_names_do_not_warn(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Ignore(name=text)


@pytest.mark.parametrize(
    ("entry", "kind", "text"),
    [
        ({}, ValueError, "would overlook every leak"),
        ({"reason": "no"}, ValueError, "would overlook every leak"),
        ({"kind": "tasks"}, ValueError, "did you mean 'task'"),
        ({"kind": "zzz"}, ValueError, "there are: task"),
        ({"name": 3}, TypeError, r"Ignore\(name=...\) must be a string"),
        ({"name": ""}, ValueError, "is an empty string"),
        ({"stack": re.compile(b"x")}, TypeError, "one of bytes"),
        ({"name": "x", "reason": 3}, TypeError, "reason"),
    ],
)
def test_entries_are_checked(entry: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        Ignore(**entry)


@pytest.mark.parametrize("value", [3, b"x", {"name": "x"}, [3], [None]])
def test_what_is_no_entry_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="ignore must be"):
        ignores_from(value)


def test_every_known_entry_has_a_reason_and_a_kind() -> None:
    assert all(entry.reason and entry.kind for entry in KNOWN_GOOD)


BOOT = ["Thread._bootstrap", "Thread._bootstrap_inner"]


@pytest.mark.parametrize(
    ("found", "covered"),
    [
        (Found("AnyIO worker thread", "thread", given={"stack": [*BOOT, "WorkerThread.run", "Queue.get"]}), True),
        (
            Found(
                "AnyIO worker thread",
                "thread",
                given={"stack": [*BOOT, "WorkerThread.run", "Queue.get", "Condition.wait"]},
            ),
            True,
        ),
        (Found("AnyIO worker thread", "thread", given={"stack": [*BOOT, "WorkerThread.run", "handler"]}), False),
        (Found("AnyIO worker thread", "thread", given={"stack": [*BOOT, "WorkerThread.run"]}), False),
        (Found("AnyIO worker thread", "thread", given={"stack": []}), False),
        (Found("AnyIO worker thread", "task", given={"stack": ["WorkerThread.run", "Queue.get"]}), False),
        (Found("Trio thread 12", "thread", given={"stack": [*BOOT, "Thread.run", "WorkerThread._work"]}), True),
        (Found("Trio thread 12", "thread", given={"stack": [*BOOT, "WorkerThread._work", "read"]}), False),
        (Found("asyncio-waitpid-3", "thread"), True),
        (Found("Task-3", given={"qualname": ["TestRunner._run_tests_and_fixtures"]}), True),
        (Found("OtelBatchSpanRecordProcessor", "thread"), True),
        (Found("Thread-1 (work)", "thread"), False),
        (Found("Task-1"), False),
    ],
)
def test_known_background_work_is_covered_and_nothing_else(found: Leak, covered: bool) -> None:
    assert (first_match(KNOWN_GOOD, found) is not None) is covered
