"""Under pytest-trio: blocks and threads."""

import threading
import time

import pytest
import trio
from conftest import held

pytestmark = [pytest.mark.trio, pytest.mark.no_leaks("threads", "blocking")]


@pytest.fixture
async def fixture():
    await trio.sleep(0)
    yield 1
    await trio.sleep(0)


async def test_nothing(fixture):
    assert fixture == 1


async def test_thread_of_trio():
    await trio.to_thread.run_sync(time.sleep, 0.01)


async def test_block():
    time.sleep(0.25)


async def test_thread_left():
    threading.Thread(target=held.wait, name="by-trio-body").start()


async def test_mock_clock_stands_still(mock_clock):
    threading.Thread(target=held.wait, name="by-mock-clock").start()


@pytest.mark.xfail(strict=True)
async def test_xfails():
    time.sleep(0.25)
