"""What the plugin must know about fixtures: whose they are, their names, whether they clean up, what they hold."""

import asyncio
import gc
import inspect
import types
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from loopwatch.pytest_plugin.region import Owner

__all__ = ["has_teardown", "held_by", "is_plugins_own", "owner_of_fixture", "place_of"]

_PLUGINS = ("_pytest.", "pytest_asyncio.", "anyio.", "pytest_trio.", "xdist.")
_XUNIT = ("xunit_", "unittest_")
_OBJECTS_LOOKED_AT = 20_000
_NOT_ENTERED = (
    types.ModuleType,
    type,
    types.CodeType,
    asyncio.Future,
    asyncio.AbstractEventLoop,
    asyncio.Handle,
    asyncio.Runner,
    pytest.Item,
    pytest.Collector,
    pytest.Config,
    str,
    bytes,
    int,
    float,
)


def is_plugins_own(fixturedef: Any) -> bool:
    """Whether a fixture belongs to pytest or to a plugin that runs loops, and not to the suite."""
    module = getattr(fixturedef.func, "__module__", None) or ""
    return module.startswith(_PLUGINS) and _name(fixturedef) == fixturedef.argname


def owner_of_fixture(fixturedef: Any, item: pytest.Item) -> Owner:
    """The fixture as an owner of what it leaves behind."""
    return Owner(item.nodeid, _name(fixturedef), fixturedef.scope, place_of(fixturedef.func))


def place_of(function: Callable[..., Any]) -> tuple[str, int, str] | None:
    """File, line and qualified name of a function; None for what is not written in Python."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return None if code is None else (code.co_filename, code.co_firstlineno, code.co_qualname)


def has_teardown(fixturedef: Any, function: Any, request: Any, added: bool) -> bool:
    """Whether a fixture may clean something up.  ``added``: its setup added finalizers."""
    name = _name(fixturedef)
    if name == fixturedef.argname:
        return added or inspect.isasyncgenfunction(function)
    teardown = name.replace("setup", "teardown").replace("setUp", "tearDown")
    owners = [getattr(request, owner, None) for owner in ("cls", "module")]  # a wider request has neither, and raises
    return any(hasattr(owner, teardown) for owner in owners)


def _name(fixturedef: Any) -> str:
    """The name of a fixture as the suite has it: pytest turns setup_function and its like into fixtures."""
    name: str = fixturedef.argname
    for prefix in _XUNIT:
        if name.lstrip("_").startswith(prefix):
            return name.lstrip("_").removeprefix(prefix).partition("_fixture")[0]
    return name


def held_by(value: object, wanted: Iterable[object]) -> set[int]:
    """The ids of those of some objects that hang on the value of a fixture.

    Such a fixture may clean them up, though a test's body made them: a client that connects when it is first used.
    Loops and futures are not entered: through these everything hangs together.
    """
    ids = {id(thing) for thing in wanted}
    found: set[int] = set()
    seen = {id(value)}
    front: list[Any] = [value]
    while front and found != ids and len(seen) < _OBJECTS_LOOKED_AT:
        following = []
        for thing in gc.get_referents(*front):
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            if id(thing) in ids:
                found.add(id(thing))
            if isinstance(thing, types.FunctionType):
                following += [cell for cell in thing.__closure__ or () if id(cell) not in seen]
            elif not isinstance(thing, _NOT_ENTERED):
                following.append(thing)
        front = following
    return found
