"""Under pytest-asyncio in strict mode: what tests and fixtures leave behind.  Every name says who leaks."""

import asyncio
import time

import pytest
import pytest_asyncio

pytestmark = [pytest.mark.asyncio, pytest.mark.no_leaks("tasks", "blocking", "threads")]


async def forever():
    await asyncio.Event().wait()


async def slow_to_end():
    try:
        await forever()
    finally:
        await asyncio.sleep(0.03)


@pytest_asyncio.fixture
async def tidy():
    task = asyncio.create_task(forever(), name="by-tidy")
    yield task
    task.cancel()


@pytest_asyncio.fixture
async def untidy():
    yield asyncio.create_task(forever(), name="by-untidy")


@pytest_asyncio.fixture
async def untidy_without_teardown():
    return asyncio.create_task(forever(), name="by-untidy-without-teardown")


@pytest_asyncio.fixture
async def spawn():
    tasks = []
    yield lambda name: tasks.append(asyncio.create_task(slow_to_end(), name=name))
    for task in tasks:
        task.cancel()


@pytest_asyncio.fixture
async def untidy_at_end():
    yield
    asyncio.create_task(forever(), name="by-teardown")


@pytest_asyncio.fixture
async def blocks_at_end():
    yield
    time.sleep(0.3)


@pytest_asyncio.fixture
async def tidy_at_end():
    yield
    await asyncio.create_task(asyncio.sleep(0), name="by-tidy-teardown")
    asyncio.create_task(slow_to_end(), name="by-tidy-teardown-cancelled").cancel()


@pytest_asyncio.fixture
async def breaks_at_end():
    yield
    asyncio.create_task(forever(), name="by-broken-teardown")
    raise ValueError("of the teardown")


@pytest.fixture
def untouched():
    yield


class Held:
    @pytest_asyncio.fixture
    async def of_class(self):
        self.mark = "set by the fixture"
        yield self
        self.task.cancel()


async def test_nothing():
    await asyncio.sleep(0)


async def test_tidy_fixture(tidy):
    assert not tidy.done()


async def test_untidy_teardown(untidy_at_end, tidy_at_end):
    pass


async def test_blocking_teardown(blocks_at_end):
    pass


async def test_tidy_teardown(tidy_at_end):
    pass


async def test_broken_teardown(breaks_at_end):
    pass


async def test_task_left():
    asyncio.create_task(forever(), name="by-body")  # line 72


async def test_task_left_beside_fixture(untouched):
    asyncio.create_task(forever(), name="by-body-beside-fixture")


async def test_fixture_cleans_what_the_body_began(spawn):
    spawn("by-body-for-fixture")


async def test_fixture_cleans_only_its_own(spawn):
    spawn("by-body-for-fixture")
    asyncio.create_task(forever(), name="by-body-not-for-fixture")


async def test_untidy_fixture(untidy):
    assert not untidy.done()


async def test_untidy_fixture_without_teardown(untidy_without_teardown):
    assert not untidy_without_teardown.done()


async def test_cancelled_ends_late():
    task = asyncio.create_task(slow_to_end())
    await asyncio.sleep(0)
    task.cancel()


async def test_ends_soon():
    asyncio.create_task(asyncio.sleep(0.02))


async def test_block():
    time.sleep(0.25)


@pytest.mark.no_leaks("tasks", "blocking", blocking_threshold=0.05)
async def test_block_below_default():
    time.sleep(0.08)


@pytest.mark.no_leaks("tasks")
async def test_block_not_asked_for():
    time.sleep(0.25)


@pytest.mark.no_leaks("tasks", task_action="warn")
@pytest.mark.parametrize("count", [1, 2])
async def test_warns(count):
    for _ in range(count):
        asyncio.create_task(forever(), name="warned-of")


@pytest.mark.no_leaks("tasks", task_action="cancel")
async def test_cancels():
    asyncio.create_task(forever(), name="cancelled")


@pytest.mark.no_leaks("tasks", task_name_filter="another")
async def test_name_filter():
    asyncio.create_task(forever(), name="filtered")


async def test_fails():
    asyncio.create_task(forever(), name="by-failed")
    raise ValueError("of the test")


async def test_fails_beside_fixture(untouched):
    asyncio.create_task(forever(), name="by-failed-beside-fixture")
    raise ValueError("of the test")


async def test_skips():
    asyncio.create_task(forever(), name="by-skipped")
    pytest.skip("of the test")


@pytest.mark.xfail(strict=True, raises=ValueError)
async def test_xfails():
    asyncio.create_task(forever(), name="by-xfailed")
    raise ValueError("of the test")


@pytest.mark.xfail(strict=True)
async def test_xfails_for_its_leak():
    asyncio.create_task(forever(), name="expected")


class TestInClass(Held):
    async def test_method(self, of_class):
        assert self.mark == "set by the fixture"
        self.task = asyncio.create_task(forever(), name="by-method-for-fixture")

    async def test_method_leaks(self):
        asyncio.create_task(forever(), name="by-method")


@pytest.mark.no_leaks(tasks=False, threads=False)
async def test_kinds_switched_off():
    asyncio.create_task(forever(), name="not-looked-for")


seen = []


@pytest.mark.flaky(reruns=1)
async def test_leaks_the_first_time():
    seen.append(1)
    if len(seen) == 1:
        asyncio.create_task(forever(), name="rerun")


@pytest.mark.timeout(0.3)
async def test_takes_too_long():
    task = asyncio.create_task(forever(), name="by-timed-out")
    await task
