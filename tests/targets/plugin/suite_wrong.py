"""Markers that are wrong."""

import pytest


@pytest.mark.no_leaks(taks=True)
def test_unknown_argument():
    pass


@pytest.mark.no_leaks("taks")
def test_unknown_kind():
    pass


@pytest.mark.no_leaks(task_action="rise")
def test_unknown_action():
    pass


@pytest.mark.no_leaks(blocking_threshold=-1)
def test_impossible_threshold():
    pass


@pytest.mark.no_leaks
def test_right():
    pass
