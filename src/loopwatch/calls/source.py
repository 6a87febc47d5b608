"""What a line's source tells about the call that stands on it: the function's name, and whether a loop repeats it.

Only the expression itself, or the one function around it, is parsed: this runs in the loop's thread, after a block.
Where there is no source, or it is too odd, the answers are None: not known.
"""

import ast
import builtins
import functools
import inspect
import linecache
import re
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from loopwatch.stacks import module_of, offer_source

if TYPE_CHECKING:
    from loopwatch._core import RawFrame

_LONGEST = 60  # characters of an expression shown as it is
_MOST_LINES = 3000  # of one function
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def call_name(frame: "RawFrame") -> str | None:
    """The dotted name of what the expression at a frame's position calls; None where it is not known."""
    text = _text(frame)
    if not text:
        return None
    try:
        node = ast.parse(f"(\n{text}\n)", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if isinstance(node, ast.Call):
        return _resolved(node.func, frame)
    statement = linecache.getline(frame[0], frame[2]).strip()
    if statement.startswith(("with ", "async with ")):
        return f"{_short(text)}.__enter__"
    return None if isinstance(node, ast.Name | ast.Constant) else _short(text)  # `del name`: no expression, no call


def calls_by_name(frame: "RawFrame", name: str) -> bool:
    """Whether the expression at a frame's position calls a function of that name, by that name."""
    text = _text(frame)
    try:
        node: Any = ast.parse(f"(\n{text}\n)", mode="eval").body if text else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    function = getattr(node, "func", None)
    return name in (getattr(function, "attr", None), getattr(function, "id", None))


def in_loop(frame: "RawFrame") -> bool | None:
    """Whether a loop or a comprehension of the function around it repeats a frame's line; None: not known."""
    found = _function(frame[0], frame[2], frame[1])
    return None if found is None else any(first <= frame[2] <= last for first, last in found.loops)


def _text(frame: "RawFrame") -> str | None:
    filename, _name, line, end_line, column, end_column = frame
    if line <= 0 or column < 0 or end_column < 0 or end_line < line or end_line - line > 200:
        return None
    offer_source(filename)
    lines = [linecache.getline(filename, number).encode() for number in range(line, end_line + 1)]
    lines[-1] = lines[-1][:end_column]
    lines[0] = lines[0][column:]
    return b"".join(lines).decode(errors="replace").strip() or None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _resolved(function: ast.expr, frame: "RawFrame") -> str:
    """The name that the called object has of its own, where it can be found without running anything."""
    parts: list[str] = []
    node = function
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    parts.reverse()
    if not isinstance(node, ast.Name):
        return ".".join([_stem(node), *parts])
    written = ".".join([node.id, *parts])
    if _is_local(frame, node.id):
        return written
    module = sys.modules.get(module_of(frame[0]))
    space = {} if module is None else vars(module)
    if node.id not in space and not hasattr(builtins, node.id):
        return written
    found: Any = space[node.id] if node.id in space else getattr(builtins, node.id)
    for number, part in enumerate(parts):
        if isinstance(found, ModuleType):
            below = vars(found).get(part)
        elif isinstance(found, type):
            below = inspect.getattr_static(found, part, None)
        else:
            owner = type(found)
            return ".".join([owner.__module__, owner.__qualname__, *parts[number:]])
        if below is None:
            return written
        if isinstance(found, type) and not isinstance(below, type):
            return ".".join([found.__module__, found.__qualname__, *parts[number:]])
        found = below
    own = getattr(found, "__qualname__", None) or getattr(found, "__name__", None)
    home = getattr(found, "__module__", None)
    return f"{home}.{own}" if isinstance(own, str) and isinstance(home, str) else written


def _stem(node: ast.expr) -> str:
    """An expression that a method is called on, without what stands between its parentheses."""
    if isinstance(node, ast.Call):
        return f"{_stem(node.func)}(…)"
    if isinstance(node, ast.Attribute):
        return f"{_stem(node.value)}.{node.attr}"
    if isinstance(node, ast.Subscript):
        return f"{_stem(node.value)}[…]"
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Constant):
        return type(node.value).__name__
    if isinstance(node, ast.JoinedStr):
        return "str"
    return "(…)"


def _is_local(frame: "RawFrame", name: str) -> bool:
    found = _function(frame[0], frame[2], frame[1])
    return found is not None and name in found.names


def _locals(tree: ast.AST) -> frozenset[str]:
    names = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            names -= set(node.names)
    return frozenset(names)


def _loops(tree: ast.AST, offset: int) -> tuple[tuple[int, int], ...]:
    """First and last lines of what is repeated in a function's own body, OFFSET lines further down."""
    found: list[tuple[int, int]] = []
    left: list[ast.AST] = list(ast.iter_child_nodes(tree))
    while left:
        node = left.pop()
        if isinstance(node, ast.For | ast.AsyncFor | ast.While):
            first = node.test if isinstance(node, ast.While) else node.target  # what `for` goes over is found once …
            last = node.body[-1]
            found.append((first.lineno, last.end_lineno or last.lineno))  # … but may stand on the same line: repeated
        elif isinstance(node, _COMPREHENSIONS):
            found.append((node.lineno, node.end_lineno or node.lineno))
        if not isinstance(node, _SCOPES):
            left += ast.iter_child_nodes(node)
    return tuple((first + offset, last + offset) for first, last in found)


@dataclass(frozen=True)
class _Function:
    """What is kept of a function's source: its local names, and the lines that its loops repeat."""

    names: frozenset[str]
    loops: tuple[tuple[int, int], ...]


@functools.lru_cache(maxsize=512)
def _function(filename: str, line: int, qualname: str) -> _Function | None:
    """The function around a line, parsed on its own."""
    offer_source(filename)
    lines = linecache.getlines(filename)
    name = qualname.rpartition(".")[2]
    if not 0 < line <= len(lines) or not name.isidentifier():
        return None
    head = re.compile(rf"(\s*)(?:async\s+)?def\s+{re.escape(name)}\b")
    for first in range(line - 1, max(-1, line - _MOST_LINES), -1):
        match = head.match(lines[first])
        if match is not None:
            break
    else:
        return None
    indent = len(match[1].expandtabs())
    body = [lines[first]]
    for text in lines[first + 1 : first + _MOST_LINES]:
        bare = text.strip()
        if bare and not bare.startswith(("#", ")", "]", "}")) and _indent(text) <= indent:
            break
        body.append(text)
    if first + len(body) < line:
        return None
    try:
        tree = ast.parse("if True:\n" + "".join(body) if indent else "\n" + "".join(body)).body[0]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    function = tree.body[0] if isinstance(tree, ast.If) else tree
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    return _Function(_locals(function), _loops(function, first - 1))


def _indent(text: str) -> int:
    wide = text.expandtabs()
    return len(wide) - len(wide.lstrip())
