"""Under anyio's plugin, with both backends."""

import asyncio
import time

import pytest

pytestmark = [pytest.mark.anyio, pytest.mark.no_leaks("tasks", "blocking")]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


async def forever():
    await asyncio.Event().wait()


@pytest.fixture
async def tidy(anyio_backend):
    task = asyncio.create_task(forever(), name="by-tidy") if anyio_backend == "asyncio" else None
    yield
    if task is not None:
        task.cancel()


@pytest.fixture
async def untidy(anyio_backend):
    if anyio_backend == "asyncio":
        asyncio.create_task(forever(), name="by-untidy")
    yield


@pytest.fixture
async def value(anyio_backend):
    return anyio_backend


async def test_nothing(value, anyio_backend):
    assert value == anyio_backend


async def test_tidy_fixture(tidy):
    pass


async def test_untidy_fixture(untidy):
    pass


async def test_task_left(anyio_backend):
    if anyio_backend == "asyncio":
        asyncio.create_task(forever(), name="by-body")


async def test_block():
    time.sleep(0.25)
