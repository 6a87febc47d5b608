"""Watches every event loop that starts in any thread of the process, for blocks.

Nothing here may raise into the program: a loop that cannot be watched is reported.
"""

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loopwatch.discovery import subscribe, unsubscribe
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
        self._cut_in = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def install(self, *, own: bool = False) -> None:
        """Begin to watch the loops that start from now on; with ``own``, the one that runs in this thread as well."""
        subscribe(self, existing="own" if own else False)

    def remove(self) -> None:
        """Watch no loop that starts from now on.  Running ones are watched until the process ends."""
        unsubscribe(self)

    def loop_started(self, loop: Any) -> None:
        """Open a scope on the loop that runs in this thread."""
        try:
            name = repr(loop)
            scope = self._scope(name)
            self._open[threading.get_ident()] = (loop, scope)
            with contextlib.suppress(TypeError):  # a loop that takes no weak reference is counted each time it starts
                if loop in self._seen:
                    return
                self._seen.add(loop)
            self._on_loop(scope.kind, scope.exact)
        except Exception as error:
            self._failed(loop, error)

    def _scope(self, name: str) -> LoopScope:
        return open_scope(self._threshold_ns, self._interval_ns, lambda raw: self._on_block(raw, name))

    def loop_stopped(self, loop: Any) -> None:
        """Close the scope of this thread and report what it has not reported yet."""
        entry = self._open.pop(threading.get_ident(), None)
        if entry is None:
            return
        loop, scope = entry
        try:
            name = repr(loop)
            for raw in scope.close():
                self._on_block(raw, name)
        except Exception as error:
            self._failed(loop, error)

    def cut(self) -> None:
        """Report what loops are busy with now as if it ended, once: the process is about to end."""
        if self._cut_in == os.getpid():
            return
        self._cut_in = os.getpid()
        for _, scope in list(self._open.values()):
            with contextlib.suppress(Exception):
                scope.cut()

    def loop_unseen(self, reason: str) -> None:
        """Some loops will not be told of."""
        self._on_failure(reason)

    def _failed(self, loop: Any, error: Exception) -> None:
        with contextlib.suppress(Exception):
            self._on_failure(f"{type(loop).__module__}.{type(loop).__qualname__}: {type(error).__name__}: {error}")
