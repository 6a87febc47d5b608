"""unittest's test cases, async and plain."""

import asyncio
import threading
import unittest

import pytest
from conftest import held

pytestmark = pytest.mark.no_leaks("tasks", "threads")


async def forever():
    await asyncio.Event().wait()


class Tidy(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.task = asyncio.create_task(forever(), name="by-tidy-setup")
        self.began = []

    async def asyncTearDown(self):
        self.task.cancel()
        for task in self.began:
            task.cancel()

    async def test_nothing(self):
        assert not self.task.done()

    async def test_torn_down(self):
        self.began.append(asyncio.create_task(forever(), name="by-body-for-teardown"))

    async def test_cleaned_up(self):
        task = asyncio.create_task(forever(), name="by-body-for-cleanup")
        self.addCleanup(task.cancel)

    async def test_task_left(self):
        asyncio.create_task(forever(), name="by-case")

    async def test_fails(self):
        asyncio.create_task(forever(), name="by-failed-case")
        self.assertEqual(1, 2)

    @unittest.expectedFailure
    async def test_expected_failure(self):
        self.assertEqual(1, 2)

    @unittest.skip("of the test")
    async def test_skipped(self):
        raise AssertionError

    def test_sync(self):
        pass


class Untidy(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        asyncio.create_task(forever(), name="by-untidy-setup")

    async def test_nothing(self):
        pass


class UntidyAtEnd(unittest.IsolatedAsyncioTestCase):
    async def asyncTearDown(self):
        asyncio.create_task(forever(), name="by-untidy-teardown")

    async def test_nothing(self):
        pass


class UntidyCleanup(unittest.IsolatedAsyncioTestCase):
    async def test_nothing(self):
        self.addAsyncCleanup(self.begin)

    async def begin(self):
        asyncio.create_task(forever(), name="by-cleanup")


class PlainUntidyCleanup(unittest.TestCase):
    def setUp(self):
        self.addCleanup(threading.Thread(target=held.wait, name="by-plain-cleanup").start)

    def test_nothing(self):
        pass


class PlainUntidyAtEnd(unittest.TestCase):
    def tearDown(self):
        threading.Thread(target=held.wait, name="by-plain-teardown").start()

    def test_nothing(self):
        pass


class Plain(unittest.TestCase):
    def setUp(self):
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.done.wait, name="by-plain-setup")
        self.thread.start()

    def tearDown(self):
        self.done.set()
        self.thread.join()

    def test_nothing(self):
        pass

    def test_thread_left(self):
        threading.Thread(target=held.wait, name="by-plain-case").start()
