"""Runs a program inside this process exactly as ``python`` would.

The program gets a ``__main__`` module of its own, ``sys.argv`` and ``sys.path`` as it expects them, and all that it
raises goes on to the interpreter, which so ends the process as ever (exit codes, death by SIGINT).  Only our own frames
are taken out of a traceback before it is printed.
"""

import builtins
import contextlib
import importlib.machinery
import io
import linecache
import os
import pkgutil
import runpy
import sys
from collections.abc import Callable, Sequence
from types import CodeType, ModuleType, TracebackType
from typing import Any

_run_as_main: Callable[..., object] = getattr(runpy, "_run_module_as_main")  # noqa: B009 - what `python -m` itself calls


def run_module(name: str, arguments: Sequence[str]) -> None:
    """Run a module as ``python -m`` does."""
    sys.argv[:] = ["-m", *arguments]
    _set_first_path(os.getcwd())
    _new_main()
    _run_as_main(name)


def run_code(source: str, arguments: Sequence[str]) -> None:
    """Run a piece of code as ``python -c`` does."""
    sys.argv[:] = ["-c", *arguments]
    _set_first_path("")
    main = _new_main()
    vars(main)["__loader__"] = importlib.machinery.BuiltinImporter
    code = _compile(source.encode("utf-8", "surrogateescape"), "<string>")
    _offer_lines(code, source)
    _execute(code, vars(main))


def _offer_lines(code: CodeType, source: str) -> None:
    """From 3.13 on tracebacks show the lines of ``-c``, too: 3.13 finds them by the file's name, later ones by code."""
    register = getattr(linecache, "_register_code", None)
    if register is not None:
        with contextlib.suppress(Exception):  # it is not documented
            register("<string>" if sys.version_info < (3, 14) else code, source, "<string>")


def run_script(path: str, arguments: Sequence[str]) -> None:
    """Run a script, or a folder or archive that holds a ``__main__.py``, as ``python`` does; ``-`` is stdin.

    Ends the process with exit code 2, as ``python`` does, if the file cannot be opened.
    """
    sys.argv[:] = [path, *arguments]
    if path == "-":
        source = sys.stdin.buffer.read() if sys.stdin is not None else b""
        _set_first_path("")
        main = _new_main()
        vars(main).update(__file__="<stdin>", __loader__=importlib.machinery.BuiltinImporter)
        if sys.version_info < (3, 15):
            vars(main)["__cached__"] = None
        _execute(_compile(source, "<stdin>"), vars(main))
        return
    if _is_archive(path):
        # python itself puts it first even with -P: it is what is run
        _set_first_path(os.path.abspath(path), always=True)
        _new_main()
        _run_as_main("__main__", False)
        return
    full = os.path.join(os.getcwd(), path)  # as python has it: absolute, but not normalized
    try:
        with io.open_code(full) as file:
            code = pkgutil.read_code(file) if full.endswith(".pyc") else None
            source = b"" if code else file.read()
    except OSError as error:
        print(f"{sys.executable}: can't open file {full!r}: [Errno {error.errno}] {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    main = _new_main()
    loader = importlib.machinery.SourcelessFileLoader if code else importlib.machinery.SourceFileLoader
    names: dict[str, Any] = vars(main)
    names.update(__file__=full, __loader__=loader("__main__", full))
    if sys.version_info < (3, 15):
        names["__cached__"] = None
    _execute(code or _compile(source, full), names)


def _compile(source: bytes, path: str) -> CodeType:
    return compile(source, path, "exec", dont_inherit=True)


def _execute(code: CodeType, names: dict[str, Any]) -> None:
    exec(code, names)


def _is_archive(path: str) -> bool:
    """Whether ``python`` would import ``__main__`` from this path: a folder, or a zip archive."""
    if os.path.isdir(path):
        return True
    try:
        import zipimport

        zipimport.zipimporter(path)
    except (ImportError, OSError):
        return False
    return True


def _set_first_path(entry: str, always: bool = False) -> None:
    """Replace what the interpreter put first on the path for our own command (nothing, with ``python -P``)."""
    if not sys.flags.safe_path:
        sys.path[:1] = [entry]
    elif always:
        sys.path.insert(0, entry)


_launchers_main: list[ModuleType] = []  # CPython uses its dict, unheld, once more when the command's script is over


def _new_main() -> ModuleType:
    _launchers_main.append(sys.modules["__main__"])
    main = ModuleType("__main__")
    names = vars(main)
    names["__builtins__"] = builtins
    if sys.version_info < (3, 14):
        names["__annotations__"] = {}
    sys.modules["__main__"] = main
    return main


def hide_own_frames(error: BaseException) -> None:
    """Have the traceback of an uncaught exception printed without the frames that belong to ``loopwatch run``."""
    hook = getattr(sys, "excepthook", None)
    if hook is None:
        return

    def show(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        sys.excepthook = hook
        if value is error:
            trace = own_frames_removed(trace)
            value.__traceback__ = trace
            sys.last_traceback = trace
        hook(kind, value, trace)

    sys.excepthook = show


_LAUNCHERS = {function.__code__ for function in (run_module, run_code, run_script, _execute, _compile)}


def own_frames_removed(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the program's first frame on."""
    step, start = trace, trace
    while step is not None:
        if step.tb_frame.f_code in _LAUNCHERS:
            start = step.tb_next
        step = step.tb_next
    return start
