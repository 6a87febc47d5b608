"""Plain sync tests: threads."""

import asyncio
import threading

import pytest
from conftest import held

pytestmark = pytest.mark.no_leaks("tasks", "threads", "blocking")


@pytest.fixture
def tidy():
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="by-tidy-sync")
    thread.start()
    yield
    done.set()
    thread.join()


@pytest.fixture
def untidy():
    threading.Thread(target=held.wait, name="by-untidy-sync").start()


@pytest.fixture
def starts():
    done = threading.Event()
    yield lambda: threading.Thread(target=done.wait, name="by-body-for-sync-fixture").start()
    done.set()


@pytest.fixture
def untidy_at_end():
    yield
    threading.Thread(target=held.wait, name="by-sync-teardown").start()


@pytest.fixture
def untidy_finalizer(request):
    request.addfinalizer(threading.Thread(target=held.wait, name="by-sync-finalizer").start)  # noqa: PT021


def begin(crew, name):
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name=name)
    thread.start()
    crew.append((done, thread))


def assemble():
    members = []
    yield members
    for done, thread in members:
        done.set()
        thread.join()


@pytest.fixture
def crew():
    yield from assemble()


@pytest.fixture
def member(crew):
    begin(crew, "by-setup-for-crew")
    yield
    begin(crew, "by-teardown-for-crew")


@pytest.fixture(scope="module")
def wide_crew():
    yield from assemble()


@pytest.fixture
def wide_member(wide_crew):
    begin(wide_crew, "by-setup-for-wide-crew")
    yield
    begin(wide_crew, "by-teardown-for-wide-crew")


def setup_module():
    pass


def teardown_module():
    pass


def setup_function():
    pass


def test_nothing(tidy):
    pass


def test_thread_left():
    threading.Thread(target=held.wait, name="by-sync-body").start()


def test_fixture_cleans_what_the_body_began(starts):
    starts()


def test_untidy_fixture(untidy):
    pass


def test_untidy_teardown(untidy_at_end, tidy):
    pass


def test_untidy_finalizer(untidy_finalizer):
    pass


def test_fixture_cleans_what_another_began(member):
    pass


def test_wide_fixture_cleans_what_another_began(wide_member):
    pass


def test_runs_a_loop():
    async def main():
        asyncio.create_task(asyncio.sleep(10))

    asyncio.run(main())


@pytest.mark.no_leaks("all")
def test_all_of_nothing():
    pass


@pytest.mark.no_leaks("none")
def test_opts_out():
    threading.Thread(target=held.wait, name="not-looked-for").start()
