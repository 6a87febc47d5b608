"""What the tests of the monitor watch: small coroutines, on the loops there are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import uvloop

LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio"), pytest.param(uvloop.new_event_loop, id="uvloop")]


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def quick() -> None:
    await asyncio.sleep(0)


async def cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def marked_line(file: str, text: str) -> int:
    """The number of the line that ends with a comment."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if f"# {text}" in line]
    return number
