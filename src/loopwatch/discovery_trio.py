"""Sees trio runs begin and end.

``trio.run`` and ``start_guest_run`` look up two names as they run: ``setup_runner``, where an instrument is added, and
``Runner.close``.  They stay the very objects they were, for programs compare them; and the runs of all who call
``trio._core.run`` are seen too.  Where trio is not imported yet, a finder waits for it.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

__all__ = ["TrioHook"]

Told = Callable[[int, Any], None]


class TrioHook:
    """``started`` and ``stopped`` get a thread's ident and a run's token; ``running`` is what runs by ident."""

    def __init__(self, started: Told, stopped: Told, unseen: Callable[[str], None], running: Mapping[int, Any]) -> None:
        self._started = started
        self._stopped = stopped
        self._unseen = unseen
        self._running = running
        self._finder: _Finder | None = None
        self._places: list[tuple[Any, str, Any, Any]] = []

    def install(self) -> None:
        """Begin, now or when trio is imported."""
        if "trio" in sys.modules:
            self.wrap(sys.modules["trio"])
        else:
            self._finder = _Finder(self.wrap)
            sys.meta_path.insert(0, self._finder)

    def remove(self) -> None:
        """Put everything back that is still ours."""
        if self._finder is not None and self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        for holder, name, original, ours in self._places:
            if getattr(holder, name, None) is ours:
                setattr(holder, name, original)
        self._places.clear()

    def wrap(self, trio: ModuleType) -> None:
        """See each run begin and end."""
        internals: Any = sys.modules.get("trio._core._run")
        if not hasattr(internals, "setup_runner") or not hasattr(getattr(internals, "Runner", None), "close"):
            self._unseen("trio: this release begins its runs in a way that is not known here")
            return
        setup, close = internals.setup_runner, internals.Runner.close

        @functools.wraps(setup)
        def setup_runner(clock: Any, instruments: Any, *args: Any, **kwargs: Any) -> Any:
            return setup(clock, [*instruments, _Run(self._begun)], *args, **kwargs)

        @functools.wraps(close)
        def close_runner(runner: Any) -> None:
            ident = threading.get_ident()
            if self._running.get(ident) is runner.trio_token and runner.trio_token is not None:
                self._stopped(ident, runner.trio_token)
            close(runner)

        internals.setup_runner, internals.Runner.close = setup_runner, close_runner
        self._places = [
            (internals, "setup_runner", setup, setup_runner),
            (internals.Runner, "close", close, close_runner),
        ]

    def _begun(self) -> None:
        ident = threading.get_ident()
        if ident not in self._running:  # a guest run: the host's loop is watched already
            self._started(ident, sys.modules["trio.lowlevel"].current_trio_token())


class _Run:
    """A trio instrument: the run begins.  No ``after_run``: a program may ask that the run has no such hook."""

    def __init__(self, begun: Callable[[], None]) -> None:
        self._begun = begun

    def before_run(self) -> None:
        self._begun()


class _Finder(importlib.abc.MetaPathFinder):
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
