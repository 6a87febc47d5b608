"""Findings are explained however large this process has become."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def all_the_time_it_takes() -> Iterator[None]:
    from loopwatch.leaks.effort import Effort, allow

    with allow(Effort(holders=60.0, proofs=10.0)):
        yield
