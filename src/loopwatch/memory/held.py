"""What keeps an object alive: the shortest chain of references from a module, a running function or C code."""

import asyncio
import os
import threading
from collections.abc import Iterable
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from loopwatch import _core
from loopwatch.printable import printable

__all__ = ["Chain", "Link", "describe", "held_by", "type_name"]

_CONTAINERS = (dict, list, tuple, set, frozenset)
_TEXT = 60
_Raw = tuple[str, Any, tuple[Any, ...] | None, Any]


@dataclass(frozen=True)
class Link:
    """One step of a chain: how what comes before refers to ``to``.

    ``how``: "attribute", "key" (of a dict), "as key", "index", "element" (of a set), "local" (a function's variable),
    "await", "cell" (a variable that inner functions share), "closure", "context variable", "callback", "class",
    "function", "globals", "value in use", "held" or "C" (only C code knows).  ``name``: the attribute, variable, key or
    index, as text.  ``to`` says what is referred to, ``type`` of which type it is.  ``place``: file, line and qualified
    name, where a suspended coroutine or generator is what refers to it.
    """

    how: str
    name: str | None
    to: str
    type: str
    place: tuple[str, int, str] | None = None


@dataclass(frozen=True)
class Chain:
    """A chain of references, from a root to the object that it keeps alive.

    ``kind`` is "module", "frame" (a running function) or "C" (C code, or something that the garbage collector does not
    track); ``root`` says which.  ``place`` is file, line and qualified name of a running function, ``thread`` the name
    of its thread.  The last link leads to the object.  Holds no reference to any of it.
    """

    kind: str
    root: str
    place: tuple[str, int, str] | None
    thread: str | None
    links: tuple[Link, ...]

    @property
    def target(self) -> str:
        """The object that is kept alive, as text."""
        return self.links[-1].to

    def __str__(self) -> str:
        parts = [self.root]
        for number, link in enumerate(self.links):
            last = number == len(self.links) - 1
            parts.append(_step(link, last))
            if last and parts[-1] != link.to:
                parts.append(link.to)
        return " -> ".join(parts)


def held_by(target: object, /) -> Chain | None:
    """Find the shortest chain of references that keeps an object alive.

    None means that nothing holds it but the calling function's own variables, or garbage that waits for the collector.
    Modules and running functions are tried as roots first; then what the calling function's other variables hold; then
    what C code holds.  Weak references, and so asyncio's own registries of tasks, are no holders.

    Takes some 30 ms for 100,000 objects, with the GIL held.  Runs no code of the program's.  Raises RuntimeError where
    the stacks of this interpreter cannot be read.
    """
    box = [target]
    del target
    return find_chain(box, 2)


def find_chain(box: list[Any], own_frames: int, skip: tuple[Any, ...] = ()) -> Chain | None:
    """The chain of the one object in ``box``; ``own_frames``: how many frames are loopwatch's, this one
    included."""
    raw = _core.held_by(box, own_frames, skip)
    if raw is None:
        return None
    kind, detail, ident, root, raw_links = raw
    place = thread = None
    if kind == "module":
        text = "sys.modules" if raw_links[0][0][0] == "entry" else f"module {detail}"
    elif kind == "frame":
        place = detail[0], detail[2], detail[1]
        thread = next((each.name for each in threading.enumerate() if each.ident == ident), f"thread {ident}")
        text = f"{place[2]} (running, {_short(place)}, thread {thread!r})"
    else:
        kind = "C"
        text = "C code, or a value in use"
    steps: list[_Raw] = [(link[0], link[1], link[2], each) for link, each in raw_links]
    return Chain(kind, text, place, thread, tuple(_links(root, steps)))


def _links(holder: Any, steps: list[_Raw]) -> Iterable[Link]:
    """Steps that are one in the program's words become one: an attribute by way of __dict__, a variable's cell."""
    number = 0
    while number < len(steps):
        how, name, place, to = steps[number]
        rest = steps[number + 1 :]
        if how == "attribute" and name == "__dict__" and rest and rest[0][0] == "key" and type(to) is dict:
            how, name, to, number = "attribute", rest[0][1], rest[0][3], number + 1
        elif how == "attribute" and name == "__closure__" and len(rest) > 1 and rest[1][0] == "cell":
            variables = holder.__code__.co_freevars
            how, name, to, number = "closure", variables[rest[0][1]], rest[1][3], number + 2
        elif how == "local" and rest and rest[0][0] == "cell":
            to, number = rest[0][3], number + 1
        elif how == "c" and type(holder) is Context:
            while rest and rest[0][0] == "c" and type(to).__name__.startswith("hamt"):
                to, rest, number = rest[0][3], rest[1:], number + 1
            variable = next((each.name for each, value in holder.items() if value is to), None)
            how, name = "context variable", variable
        where = None if place is None else (place[0], place[2], place[1])
        text = None if name is None else _key(name) if how in ("key", "index") else str(name)
        yield Link(_WORDS.get(how, how), text, describe(to), type_name(type(to)), where)
        holder = to
        number += 1


_WORDS = {"c": "C", "as_key": "as key", "stack": "value in use"}


def _step(link: Link, last: bool) -> str:
    place = "" if link.place is None else f" ({_short(link.place)})"
    plain = link.type in ("dict", "list", "tuple", "set", "frozenset")
    if link.how in ("key", "index"):
        text = f"{link.how} {link.name}"
    elif link.how in ("held", "C", "entry"):
        return link.to
    elif link.name is not None:
        text = {"attribute": "", "local": "local ", "closure": "closure variable "}.get(link.how, f"{link.how} ")
        if link.how == "attribute" and (last or not plain):
            text = "."
        text = f"{link.type} {link.name}" if text == "" else f"{text}{link.name}"
    else:
        text = link.how
    if last or (plain and link.name is not None):
        return text + place
    return f"{text}{place} ({link.to})"


def describe(thing: object) -> str:
    """Say in a few words what an object is, without running any of its code."""
    if isinstance(thing, asyncio.Task) and type(thing).__module__ == "_asyncio":
        return f"Task {printable(thing.get_name())!r} ({coroutine_name(_core.task_coroutine(thing))}, {_state(thing)})"
    if type(thing) is asyncio.TimerHandle:
        seconds = thing.when() - thing._loop.time()  # type: ignore[attr-defined]
        return f"a timer due in {seconds:.1f} s" if seconds > 0 else "a timer that is due"
    if type(thing) is asyncio.Handle:
        return "a callback that is ready to run"
    kind = type(thing)
    if kind in (str, bytes, int, float, bool, type(None)):
        return f"{kind.__name__} {_key(thing)}"
    if kind in _CONTAINERS:
        return f"{kind.__name__} of {len(thing)}"  # type: ignore[arg-type]
    if kind.__module__ == "builtins" and kind.__name__ in ("coroutine", "generator", "async_generator", "function"):
        return f"{kind.__name__} {thing.__qualname__}"  # type: ignore[attr-defined]
    if kind.__name__ == "method" and kind.__module__ == "builtins":
        return f"method {getattr(thing.__func__, '__qualname__', '?')}"  # type: ignore[attr-defined]
    if kind is type(asyncio):
        return f"module {vars(thing).get('__name__')}"
    if issubclass(kind, type):
        return f"class {type_name(thing)}"  # type: ignore[arg-type]
    if issubclass(kind, BaseException):
        return f"exception {type_name(kind)}"
    return type_name(kind)


def type_name(kind: type) -> str:
    """``module.qualified`` name of a type; the builtins' without their module."""
    module = type.__getattribute__(kind, "__module__")
    name = str(type.__getattribute__(kind, "__qualname__"))
    return name if module in ("builtins", None) else f"{module}.{name}"


def coroutine_name(coroutine: object) -> str:
    if coroutine is None:  # of an eager task that ended in its first step
        return "its coroutine is gone"
    return str(getattr(coroutine, "__qualname__", None) or type(coroutine).__name__)


def _state(task: "asyncio.Task[Any]") -> str:
    return "pending" if not task.done() else "cancelled" if task.cancelled() else "done"


def _key(key: object) -> str:
    """A key as text: plain values as they are written, of anything else its type."""
    if type(key) in (str, bytes):
        text = repr(key[: _TEXT + 1])  # type: ignore[index]
        return text if len(key) <= _TEXT else text[: _TEXT - 3] + "..."  # type: ignore[arg-type]
    if type(key) in (int, float, bool, complex, type(None)):
        return repr(key) if type(key) is not int or key.bit_length() < 256 else "int"
    if type(key) is tuple and len(key) <= 5:
        return f"({', '.join(_key(part) for part in key)})"
    return f"of type {type_name(type(key))}"


def _short(place: tuple[str, int, str]) -> str:
    return f"{os.path.basename(place[0])}:{place[1]}"
