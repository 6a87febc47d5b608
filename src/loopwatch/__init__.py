"""Finds what blocks an asyncio, uvloop or trio event loop: for how long, since when, at which line, and why."""

try:
    from loopwatch import _core as _core
except ImportError as _error:  # pragma: no cover - depends on how the package was installed
    raise ImportError(
        "the C core of loopwatch (loopwatch._core) could not be imported. It is built when the package is installed, "
        f"once for each version of Python: type `python -m pip install .` with the Python in use. ({_error})"
    ) from _error

from loopwatch.actions import LeakAction
from loopwatch.blocking import no_event_loop_blocking
from loopwatch.errors import EventLoopBlockError, LeakError
from loopwatch.findings import CallerContext, Cause, EventLoopBlock, Segment

__version__ = "0.1.0"

__all__ = [
    "CallerContext",
    "Cause",
    "EventLoopBlock",
    "EventLoopBlockError",
    "LeakAction",
    "LeakError",
    "Segment",
    "__version__",
    "no_event_loop_blocking",
]
