"""Findings of a test run as plain data, which goes from xdist's workers to the controller, and groups of these."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from traceback import FrameSummary
from typing import Any

from loopwatch.findings import EventLoopBlock
from loopwatch.pytest_plugin.region import Found, Owner
from loopwatch.stacks import qualified_name

__all__ = ["Group", "Record", "grouped", "record"]

Record = dict[str, Any]
"""The keys are those of a finding in ``docs/reference/pytest-json.md``."""

_TEXT = 20_000


def record(finding: Any, found: Found, owner: Owner, *, known: bool, raised: bool, failed: bool) -> Record:
    """One finding as plain data.  ``known``: it is in the baseline; ``raised``: it makes the test fail; ``failed``: its
    test failed anyway."""
    block = isinstance(finding, EventLoopBlock)
    stack = finding.blocking_stack if block else finding.creation_stack
    place = finding.place()
    return {
        "kind": "block" if block else finding.kind,
        "name": finding.task or "" if block else finding.name,
        "headline": _line(finding.headline()),
        "text": str(finding)[:_TEXT],
        "place": _place(place or owner.place),
        "duration": finding.duration if block else None,
        "test": owner.test,
        "fixture": owner.fixture,
        "fixture_scope": owner.scope,
        "known": known,
        "raised": raised,
        "failed": failed,
        "reason": found.reason,
        "cancelled": found.cancelled,
        "stack": None if stack is None else [_frame(frame) for frame in stack],
    }


def _place(place: Sequence[Any] | None) -> dict[str, Any] | None:
    return None if place is None else {"file": place[0], "line": place[1], "name": place[2]}


def _frame(frame: FrameSummary) -> dict[str, Any]:
    return {"file": frame.filename, "line": frame.lineno or 0, "name": qualified_name(frame), "source": frame.line}


def _line(text: str) -> str:
    return " ".join(text.split())


@dataclass
class Group:
    """All findings of one kind that were created at one line."""

    kind: str
    place: Mapping[str, Any] | None
    example: Record
    count: int = 0
    duration: float = 0.0
    owners: dict[str, int] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        self.count += 1
        self.duration += record["duration"] or 0.0
        owner = owner_of(record)
        self.owners[owner] = self.owners.get(owner, 0) + 1

    def where(self, root: str) -> str:
        """The line, with the file as seen from the folder that pytest runs in."""
        if self.place is None:
            return "at an unknown place"
        return f"{relative(self.place['file'], root)}:{self.place['line']} in {self.place['name']}"


def grouped(records: Iterable[Record]) -> list[Group]:
    """Group by kind and creating line, worst first: by how many, for blocks by how long."""
    groups: dict[object, Group] = {}
    for each in records:
        place = each["place"]
        key = (each["kind"], (place["file"], place["line"], place["name"]) if place else each["name"])
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(each["kind"], place, each)
        group.add(each)
    return sorted(groups.values(), key=lambda group: (-group.count, -group.duration))


def owner_of(record: Record) -> str:
    """Whose finding it is, for people."""
    if record["fixture"] is None:
        return str(record["test"])
    if record["fixture_scope"] == "function":
        return f"fixture {record['fixture']} of {record['test']}"
    return f"fixture {record['fixture']} of this {record['fixture_scope']}, first used by {record['test']}"


def relative(file: str, root: str) -> str:
    """A file below the folder as seen from there; any other as it is."""
    try:
        path = os.path.relpath(file, root)
    except ValueError:
        return file
    return file if path.startswith("..") else path
