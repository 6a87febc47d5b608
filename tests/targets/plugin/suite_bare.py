"""Tests that must end the same with and without the plugin; one of them leaks."""

import asyncio
import warnings

import pytest


@pytest.fixture
async def value():
    yield 1


async def test_leaks(value):
    asyncio.create_task(asyncio.Event().wait(), name="by-bare")


async def test_passes(value):
    assert value == 1


async def test_fails(value):
    assert value == 2


async def test_warns():
    warnings.warn("of the test", UserWarning, stacklevel=1)


async def test_exits():
    raise SystemExit(3)


async def test_skips():
    pytest.skip("of the test")


def test_sync(monkeypatch, tmp_path, capsys):
    print("captured")
    assert capsys.readouterr().out == "captured\n"


@pytest.mark.xfail(strict=True)
async def test_xpasses():
    pass
