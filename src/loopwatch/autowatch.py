"""Watches every event loop that starts in any thread of the process.

asyncio's loops, uvloop's too, announce themselves through ``_set_running_loop``: it is replaced by a function that
calls it and then opens a scope, or closes it.  trio has no such place: when it is imported, its two entry points are
wrapped to add an instrument.  Nothing here may raise into the program: a loop that cannot be watched is reported.
"""

import asyncio
import asyncio.events
import contextlib
import functools
import importlib.abc
import importlib.machinery
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from loopwatch.loops import LoopScope, open_scope

if TYPE_CHECKING:
    from loopwatch._core import RawBlock

OnBlock = Callable[["RawBlock", str], object]
OnLoop = Callable[[str, bool], object]
OnFailure = Callable[[str], object]


class AutoWatch:
    """Opens a scope on each loop while it runs.

    ``on_block`` gets each block and the loop's repr, in the loop's thread; ``on_loop`` the kind of each new loop and
    whether it is watched exactly; ``on_failure`` the reason why a loop is not watched.
    """

    def __init__(
        self, threshold_ns: int, interval_ns: int, on_block: OnBlock, on_loop: OnLoop, on_failure: OnFailure
    ) -> None:
        self._threshold_ns = threshold_ns
        self._interval_ns = interval_ns
        self._on_block = on_block
        self._on_loop = on_loop
        self._on_failure = on_failure
        self._open: dict[int, tuple[Any, Any]] = {}
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self._finder: _TrioFinder | None = None
        self._original: Callable[[Any], None] | None = None
        self._replacement: Callable[[Any], None] | None = None
        self._uvloop: tuple[Any, Any] | None = None
        self._trio: tuple[Any, Any, Any, Any, Any] | None = None
        self._removed = False

    def install(self) -> None:
        """Begin to watch the loops that start from now on."""
        original = asyncio._set_running_loop

        @functools.wraps(original)
        def _set_running_loop(loop: Any) -> None:
            original(loop)
            if not self._removed or loop is None:  # somebody else's replacement may still call this one
                self._changed(loop)

        self._original, self._replacement = original, _set_running_loop
        self._replace(_set_running_loop)
        self._wrap_uvloop()
        if "trio" in sys.modules:
            self._wrap_trio(sys.modules["trio"])
        else:
            self._finder = _TrioFinder(self._wrap_trio)
            sys.meta_path.insert(0, self._finder)

    def remove(self) -> None:
        """Watch no loop that starts from now on.  Running ones are watched until they stop."""
        if self._original is not None and asyncio.events._set_running_loop is self._replacement:
            self._replace(self._original)
        self._removed = True
        if self._finder is not None and self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        if self._uvloop is not None and vars(self._uvloop[0]).get("run_forever") is self._uvloop[1]:
            del self._uvloop[0].run_forever
        if self._trio is not None:
            internals, setup, close, setup_runner, close_runner = self._trio
            if internals.setup_runner is setup_runner:
                internals.setup_runner = setup
            if internals.Runner.close is close_runner and not self._open:
                internals.Runner.close = close

    def _wrap_uvloop(self) -> None:
        """See uvloop's loops begin, if it was imported before: then it has kept the ``_set_running_loop`` of then."""
        base = getattr(sys.modules.get("uvloop"), "Loop", None)
        if base is None or "run_forever" in vars(base):
            return
        original = base.run_forever

        @functools.wraps(original)
        def run_forever(loop: Any) -> None:
            first = None if self._removed else loop.call_soon(self._changed, loop)
            try:
                original(loop)
            finally:
                if first is not None:
                    first.cancel()
                    self._changed(None)

        base.run_forever = run_forever
        self._uvloop = base, run_forever

    @staticmethod
    def _replace(function: Callable[[Any], None]) -> None:
        for module in (asyncio, asyncio.events):
            setattr(module, "_set_running_loop", function)  # noqa: B010 - unknown to the stubs of asyncio

    def _changed(self, loop: Any) -> None:
        """The loop that runs in this thread is now this one; None: none."""
        ident = threading.get_ident()
        current = self._open.get(ident)
        if current is not None and current[0] is loop:
            return
        if current is not None:
            self.close(ident)
        if loop is not None:
            self.open(ident, loop)

    def open(self, ident: int, loop: Any) -> None:
        """Open a scope on the loop that runs in this thread."""
        try:
            scope = self._scope(loop)
            self._open[ident] = (loop, scope)
            with contextlib.suppress(TypeError):  # a loop that takes no weak reference is counted each time it starts
                if loop in self._seen:
                    return
                self._seen.add(loop)
            self._on_loop(scope.kind, scope.exact)
        except Exception as error:
            self._failed(loop, error)

    def _scope(self, loop: Any) -> LoopScope:
        name = repr(loop)
        return open_scope(self._threshold_ns, self._interval_ns, lambda raw: self._on_block(raw, name))

    def close(self, ident: int) -> None:
        """Close the scope of this thread and report what it has not reported yet."""
        entry = self._open.pop(ident, None)
        if entry is None:
            return
        loop, scope = entry
        try:
            name = repr(loop)
            for raw in scope.close():
                self._on_block(raw, name)
        except Exception as error:
            self._failed(loop, error)

    def _failed(self, loop: Any, error: Exception) -> None:
        with contextlib.suppress(Exception):
            self._on_failure(f"{type(loop).__module__}.{type(loop).__qualname__}: {type(error).__name__}: {error}")

    def _wrap_trio(self, trio: ModuleType) -> None:
        """See each run begin and end.

        ``run`` and ``start_guest_run`` look up both names below as they run.  They stay the very objects they were, for
        programs compare them; and the runs of all who call ``trio._core.run`` are seen too.
        """
        internals: Any = sys.modules.get("trio._core._run")
        if not hasattr(internals, "setup_runner") or not hasattr(getattr(internals, "Runner", None), "close"):
            self._on_failure("trio: this release begins its runs in a way that is not known here")
            return
        setup, close = internals.setup_runner, internals.Runner.close

        @functools.wraps(setup)
        def setup_runner(clock: Any, instruments: Any, *args: Any, **kwargs: Any) -> Any:
            mine = () if self._removed else (_TrioRun(self),)
            return setup(clock, [*instruments, *mine], *args, **kwargs)

        @functools.wraps(close)
        def close_runner(runner: Any) -> None:
            ident = threading.get_ident()
            entry = self._open.get(ident)
            if entry is not None and entry[0] is runner.trio_token:
                self.close(ident)
            close(runner)

        internals.setup_runner, internals.Runner.close = setup_runner, close_runner
        self._trio = internals, setup, close, setup_runner, close_runner


class _TrioRun:
    """A trio instrument: the run begins.  No ``after_run``: a program may ask that the run has no such hook."""

    def __init__(self, watch: AutoWatch) -> None:
        self._watch = watch

    def before_run(self) -> None:
        ident = threading.get_ident()
        if (
            ident not in self._watch._open and not self._watch._removed
        ):  # a guest run: the host's loop is watched already
            self._watch.open(ident, sys.modules["trio.lowlevel"].current_trio_token())


class _TrioFinder(importlib.abc.MetaPathFinder):
    """Calls back once ``trio`` has been imported."""

    def __init__(self, imported: Callable[[ModuleType], None]) -> None:
        self._imported = imported

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "trio":
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec = None if finder is self or find is None else find(name, path, target)
            if spec is not None:
                self._hook(spec.loader)
                return spec  # type: ignore[no-any-return]
        return None

    def _hook(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with contextlib.suppress(AttributeError):
                del loader.exec_module
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            with contextlib.suppress(Exception):
                self._imported(module)

        with contextlib.suppress(AttributeError):
            loader.exec_module = exec_module
