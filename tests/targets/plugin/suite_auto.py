"""Under pytest-asyncio in auto mode, without a marker."""

import asyncio
from pathlib import Path

import pytest


async def forever():
    await asyncio.Event().wait()


@pytest.fixture
async def untidy():
    asyncio.create_task(forever(), name="by-auto-fixture")
    yield


async def test_nothing():
    pass


async def test_leaks():
    asyncio.create_task(forever(), name="by-auto-body")


async def test_fixture_leaks(untidy):
    pass


async def test_fails():
    asyncio.create_task(forever(), name="by-auto-failed")
    raise ValueError


async def test_new():
    if Path("more").exists():
        asyncio.create_task(forever(), name="new")
