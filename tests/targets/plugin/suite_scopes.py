"""Under pytest-asyncio, loops shared by several tests: each leak is charged to who made it."""

import asyncio

import pytest
import pytest_asyncio

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.no_leaks("tasks")]


async def forever():
    await asyncio.Event().wait()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def service():
    task = asyncio.create_task(forever(), name="by-tidy-service")
    yield
    task.cancel()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def untidy_service():
    asyncio.create_task(forever(), name="by-untidy-service")
    yield


class Pool:
    """Begins what it needs when it is first used."""

    def __init__(self):
        self._tasks = []

    def use(self, name):
        self._tasks.append(asyncio.create_task(forever(), name=name))

    def close(self):
        for task in self._tasks:
            task.cancel()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pool():
    pool = Pool()
    yield pool
    pool.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def untidy_pool():
    yield Pool()


async def test_first(service, untidy_service):
    asyncio.create_task(forever(), name="by-first")


async def test_second(service, untidy_service):
    assert "by-first" in {task.get_name() for task in asyncio.all_tasks()}


async def test_third(service):
    asyncio.create_task(forever(), name="by-third")


async def test_uses_pool(pool):
    pool.use("by-body-for-pool")


async def test_uses_untidy_pool(untidy_pool):
    untidy_pool.use("by-body-for-untidy-pool")


async def test_last(pool, untidy_pool):
    pass
