"""linetable_crosscheck: our line tables against the interpreter's own.

CPython decodes its location tables in code.co_positions(). csrc/core/linetable.c
decodes the same bytes without CPython, so the two must agree on every
instruction of every code object, on every version. Three sources of tables:

- the standard library: every .py file of it is compiled (not imported), the
  tests excepted, and every code object, nested ones too, is compared;
- sources with odd shapes: columns beyond 127, huge line gaps, lines that go
  back, one expression over many lines, non-ASCII text;
- random tables: each entry encoded here in any of the sixteen ways and put into
  a real code object with code.replace, for the encodings compilers rarely emit.

None there is line 0 or column -1 here. One "passed" is one position that is
equal, or one index past the end that is refused. Run by hand or by run.sh, on
the interpreter that is to be checked; needs cc (or $CC).
"""

import ctypes
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import types
import warnings

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SOURCE = os.path.join(ROOT, "csrc", "core", "linetable.c")
SKIPPED_DIRS = {"test", "tests", "idle_test", "lib2to3", "site-packages", "__pycache__"}
MINIMUM_MODULES = 40
RANDOM_TABLES = 3000


class Pos(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("line", "end_line", "col", "end_col")]


def load(directory):
    """Build linetable.c as a shared library and return its find function."""
    library = os.path.join(directory, "linetable.so")
    compiler = os.environ.get("CC", "cc")
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", library, SOURCE], check=True)
    find = ctypes.CDLL(library).lw_linetable_find
    find.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.POINTER(Pos)]
    find.restype = ctypes.c_int
    return find


class Comparison:
    """Counts positions that agree and shows the first few that do not."""

    def __init__(self, find):
        self.find = find
        self.passed = self.failed = self.codes = 0

    def code(self, code, where):
        self.codes += 1
        find, pos = self.find, Pos()
        ref = ctypes.byref(pos)
        table, size, first = code.co_linetable, len(code.co_linetable), code.co_firstlineno
        count = 0
        for index, (line, end_line, col, end_col) in enumerate(code.co_positions()):
            count += 1
            want = (
                0 if line is None else line,
                0 if end_line is None else end_line,
                -1 if col is None else col,
                -1 if end_col is None else end_col,
            )
            found = find(table, size, first, index, ref)
            got = (pos.line, pos.end_line, pos.col, pos.end_col)
            self.count(found == 0 and got == want, f"{where}: {code.co_name}[{index}]: {got}, not {want}")
        self.count(count == len(code.co_code) // 2, f"{where}: {code.co_name}: {count} positions")
        self.count(find(table, size, first, count, ref) == -1, f"{where}: {code.co_name}: found beyond the end")

    def tree(self, code, where):
        self.code(code, where)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.tree(constant, where)

    def count(self, equal, message):
        if equal:
            self.passed += 1
        else:
            self.failed += 1
            if self.failed <= 20:
                print("FAILED", message)


def stdlib_files():
    for directory, names, files in os.walk(sysconfig.get_path("stdlib")):
        names[:] = sorted(name for name in names if name not in SKIPPED_DIRS)
        for name in sorted(files):
            if name.endswith(".py"):
                yield os.path.join(directory, name)


def odd_sources():
    yield "long columns", "x = " + " + ".join(f"f{i}(a, b={i})" for i in range(400))
    yield "line gap", "def f():\n    a = 1\n" + "\n" * 100_000 + "    return g(\na)\n"
    yield "many lines", "x = [\n" + "  f(1,\n    2),\n" * 300 + "]\n"
    yield "back", "def f(a):\n  for i in (\n    a\n   ):\n    with a as b, \\\n     i as c: yield\n"
    yield "try", ("def f():\n try:\n  g()\n except (A,\n   B) as e:\n  raise X from e\n finally:\n  h()\n")
    yield "text", "é = 'ü' * 100; ñ = f'{é!r:>{len(é)}}' + '" + "漢" * 90 + "' + é.upper()\n"
    yield "match", ("match a:\n case {'x': [1, *b]} | [b]: c = b\n case _ if (\n  d): pass\n")
    yield "async", ("async def f(a):\n async with a as b:\n  return [x async for x in b if await x]\n")
    yield "empty", ""


def varint(value):
    out = bytearray()
    while value >= 64:
        out.append(0x40 | value & 63)
        value >>= 6
    out.append(value)
    return bytes(out)


def svarint(value):
    return varint(-value << 1 | 1 if value < 0 else value << 1)


def random_entry(rng, units):
    code = rng.randrange(16)
    head = bytes([0x80 | code << 3 | units - 1])
    if code < 10:
        return head + bytes([rng.randrange(128)])
    if code < 13:
        return head + bytes([rng.randrange(128), rng.randrange(128)])
    if code == 13:
        delta = rng.randrange(1 << rng.randrange(1, 14))
        return head + svarint(rng.choice((1, -1)) * delta)
    if code == 14:
        return (
            head
            + svarint(rng.randrange(-5000, 5000))
            + varint(rng.randrange(1000))
            + varint(rng.randrange(1 << rng.randrange(1, 20)))
            + varint(rng.randrange(1 << rng.randrange(1, 20)))
        )
    return head


def random_codes(rng):
    base = compile("x = 1\n" * 30, "random", "exec")
    units = len(base.co_code) // 2
    for _ in range(RANDOM_TABLES):
        table, left = b"", units
        while left:
            size = rng.randint(1, min(8, left))
            table += random_entry(rng, size)
            left -= size
        first = rng.randrange(1 << 21, 1 << 22)  # no sum of deltas gets below 1
        yield base.replace(co_linetable=table, co_firstlineno=first)


def main():
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir=os.environ.get("LW_BUILD")) as directory:
        comparison = Comparison(load(directory))
    modules = unreadable = 0
    for path in stdlib_files():
        with open(path, "rb") as file:
            source = file.read()
        try:
            code = compile(source, path, "exec", dont_inherit=True)
        except SyntaxError:  # templates that only end in .py
            unreadable += 1
            continue
        modules += 1
        comparison.tree(code, os.path.basename(path))
    comparison.count(modules >= MINIMUM_MODULES, f"only {modules} modules")
    for where, source in odd_sources():
        comparison.tree(compile(source, where, "exec"), where)
    for code in random_codes(random.Random(1)):
        comparison.code(code, "random table")
    print(f"{sys.version.split()[0]}: {modules} modules ({unreadable} do not compile), {comparison.codes} code objects")
    print(f"{comparison.passed} passed, {comparison.failed} failed")
    return 1 if comparison.failed else 0


if __name__ == "__main__":
    sys.exit(main())
