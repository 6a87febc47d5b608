"""Which files' calls are told by default: the program's own, whatever its folder is called."""

import asyncio
import functools
import threading

import pytest

from loopwatch.calls.paths import PathFilter


@pytest.mark.parametrize(
    "path",
    ["/srv/my-asyncio-app/main.py", "/srv/typing/extra.py", "/srv/threading.py", "/srv/concurrent/futures.py"],
)
def test_a_name_like_a_library_s_is_told(path: str) -> None:
    assert PathFilter(None, None).passes(path)


@pytest.mark.parametrize("module", [asyncio.tasks, functools, threading])
def test_the_library_is_left_out(module: object) -> None:
    path = str(getattr(module, "__file__", None))
    assert not PathFilter(None, None).passes(path)
    assert PathFilter(None, []).passes(path)
