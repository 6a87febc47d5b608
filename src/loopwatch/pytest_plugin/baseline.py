"""The baseline of a run: findings that are known, so that only new ones are told.

The file is read by each process that runs tests, and written by the one that reports.  With xdist each worker tells the
controller at its end what it met.
"""

import os
from collections.abc import Sequence
from typing import Any

from loopwatch.leaks.baseline import Baseline

__all__ = ["KnownFindings"]


class KnownFindings:
    """The baseline file of a run.  Where it is missing, or to be written anew, all that is found becomes known.

    Raises BaselineError where the file is none.
    """

    def __init__(self, path: str, *, update: bool) -> None:
        self.writes = update or not os.path.exists(path)
        self._path = path
        self._baseline = Baseline(path) if self.writes else Baseline.load(path)

    def new(self, findings: Sequence[Any], owner: tuple[str, int, str] | None) -> list[Any]:
        """Those of one test or fixture, whose function is at that place, that are not known."""
        self._baseline.note(findings, owner)
        return [] if self.writes else self._baseline.new(findings, owner)

    def seen(self) -> list[tuple[str, str, str, int]]:
        """What this process met, for ``absorb`` in another."""
        return self._baseline.seen()

    def absorb(self, seen: Sequence[Sequence[Any]]) -> None:
        """What a worker met."""
        self._baseline.absorb(seen)

    def finish(self) -> list[str]:
        """Write the file if it is to be written; returns what people should know.  Raises OSError."""
        if self.writes:
            self._baseline.save()
            count = len(self._baseline.seen())
            places = "1 place that leaks" if count == 1 else f"{count} places that leak"
            return [f"The baseline {self._path} holds {places}."]
        stale = self._baseline.stale()
        lines = [f"In the baseline {self._path}, and not met in this run:"] if stale else []
        return lines + [f"    {entry}" for entry in stale]
