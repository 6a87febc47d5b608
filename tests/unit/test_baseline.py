"""A baseline is written once, knows leaks again after edits, and tells what is new and what is gone."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import pytest

from loopwatch import Baseline, BaselineError
from loopwatch.leaks.baseline import BaselineEntry
from loopwatch.leaks.descriptors import LeakedDescriptor
from loopwatch.leaks.kinds import Leak


@dataclasses.dataclass(frozen=True)
class Found(Leak):
    kind = "task"
    name: str
    creation_stack: list[Any] | None = None

    def headline(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name


def leak(file: Any, function: str, line: int = 1, name: str = "Task-1") -> Found:
    return Found(name, [FrameSummary(str(file), line, function)])


def test_written_once_and_known_again_after_the_lines_moved(tmp_path: Path) -> None:
    first = Baseline(tmp_path / "leaks.json")
    first.note([leak(tmp_path / "app" / "db.py", "start", 10), leak(tmp_path / "app" / "db.py", "start", 12)])
    first.note([leak(tmp_path / "app" / "db.py", "start", 10), leak("/x/site-packages/lib/pool.py", "grow")])
    first.note([Found("nobody")])
    first.save()
    assert json.loads((tmp_path / "leaks.json").read_text()) == {
        "version": 1,
        "leaks": [
            {"kind": "task", "file": "", "qualname": "nobody", "count": 1},
            {"kind": "task", "file": "app/db.py", "qualname": "start", "count": 2},
            {"kind": "task", "file": "site-packages/lib/pool.py", "qualname": "grow", "count": 1},
        ],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["leaks.json"]

    again = Baseline.load(tmp_path / "leaks.json")
    moved = [leak(tmp_path / "app" / "db.py", "start", 99) for _ in range(3)]
    assert again.new(moved) == moved[2:]  # one scope may leave two behind
    assert again.new(moved[:2]) == []
    assert again.new([leak("/y/dist-packages/lib/pool.py", "grow", 7)]) == []
    other = leak(tmp_path / "app" / "db.py", "stop")
    assert again.new([other]) == [other]


def test_saved_text_does_not_depend_on_the_order_of_events(tmp_path: Path) -> None:
    leaks = [leak(f"/app/{name}.py", name) for name in "cab"]
    texts = []
    for order in (leaks, leaks[::-1]):
        baseline = Baseline(tmp_path / "leaks.json")
        for one in order:
            baseline.note([one])
        baseline.save()
        texts.append((tmp_path / "leaks.json").read_text())
    assert texts[0] == texts[1]


def test_entries_that_no_longer_match_are_told(tmp_path: Path) -> None:
    first = Baseline(tmp_path / "leaks.json")
    first.note([leak("/app/a.py", "a"), leak("/app/b.py", "b")])
    first.save()
    again = Baseline.load(first.path)
    again.note([leak("/app/a.py", "a")])
    assert again.stale() == [BaselineEntry("/app/b.py", "b", "task", 1)]
    assert str(again.stale()[0]) == "1 task created by b in /app/b.py"


OWNER = ("/app/tests/test_db.py", 3, "test_rows")


def test_what_has_no_place_of_the_programs_is_known_by_its_owner(tmp_path: Path) -> None:
    """Its name is another in every run, and Python's own functions are named otherwise by another version."""
    asyncios = str(Path(asyncio.__file__).parent / "tasks.py")
    first, again = (
        Baseline(tmp_path / "leaks.json"),
        [
            Found("/tmp/run-2/a.db"),
            leak(asyncios, "_ensure_future", 680),
            leak("/app/db.py", "start"),
        ],
    )
    first.note([Found("/tmp/run-1/a.db"), leak(asyncios, "ensure_future", 731), leak("/app/db.py", "start")], OWNER)
    first.save()
    assert first.seen() == [
        ("/app/db.py", "start", "task", 1),
        ("/app/tests/test_db.py", "test_rows (made elsewhere)", "task", 2),
    ]
    assert Baseline.load(first.path).new(again, OWNER) == []
    assert Baseline.load(first.path).new(again, ("/app/tests/test_db.py", 9, "test_other")) == again[:2]


def test_what_has_no_owner_either_is_known_by_what_it_is(tmp_path: Path) -> None:
    asyncios = str(Path(asyncio.__file__).parent / "tasks.py")
    baseline = Baseline(tmp_path / "leaks.json")
    baseline.note([LeakedDescriptor("/tmp/run-1/a.db", None, 7), leak(asyncios, "ensure_future", name="Task")])
    assert baseline.seen() == [("", "file", "descriptor", 1), ("stdlib/asyncio/tasks.py", "Task", "task", 1)]
    baseline.save()
    assert [str(entry) for entry in Baseline.load(baseline.path).stale()] == [
        "1 descriptor created at an unknown place: file",
        "1 task created by Task in stdlib/asyncio/tasks.py",
    ]


def test_what_workers_saw_comes_together(tmp_path: Path) -> None:
    worker, controller = Baseline(tmp_path / "x"), Baseline(tmp_path / "x")
    worker.note([leak("/a.py", "f"), leak("/a.py", "f")])
    controller.note([leak("/a.py", "f")])
    controller.absorb(json.loads(json.dumps(worker.seen())))
    assert controller.seen() == [("/a.py", "f", "task", 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("[]", "holds no baseline"),
        ('{"version": 2, "leaks": []}', "has version 2, this loopwatch reads version 1"),
        (
            '{"version": 1, "leaks": [{"kind": "tusk", "file": "a", "qualname": "b", "count": 1}]}',
            "entry 1 has the kind 'tusk', which no finding has: there are task,",
        ),
        ('{"version": 1, "leaks": [{"kind": "task"}]}', "entry 1 must have the strings kind, file and qualname"),
        (
            '{"version": 1, "leaks": [{"kind": "task", "file": "a", "qualname": "b", "count": 0}]}',
            "and a count above 0",
        ),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "leaks.json"
    path.write_text(text)
    with pytest.raises(BaselineError, match=re.escape(message)) as caught:
        Baseline.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_says_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="writes it"):
        Baseline.of(str(tmp_path / "none.json"))
    with pytest.raises(TypeError, match="baseline must be a path"):
        Baseline.of(3)  # type: ignore[arg-type]


def test_one_path_is_one_baseline_in_a_process(tmp_path: Path) -> None:
    Baseline(tmp_path / "leaks.json").save()
    first = Baseline.of(tmp_path / "leaks.json")
    assert first is Baseline.of(str(tmp_path / "leaks.json"))
    assert Baseline.of(first) is first
    assert Baseline.of(None) is None
