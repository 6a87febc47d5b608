"""Makes ``tests/targets`` importable as ``targets``; findings are explained however large this process has become."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = str(Path(__file__).resolve().parent.parent)
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)


@pytest.fixture(autouse=True)
def all_the_time_it_takes() -> Iterator[None]:
    from loopwatch.leaks.effort import Effort, allow

    with allow(Effort(holders=60.0, proofs=10.0)):
        yield
