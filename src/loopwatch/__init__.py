"""Finds what blocks an event loop, and what a scope leaves behind: tasks, threads and other resources.

What looks for leaks is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

try:
    from loopwatch import _core as _core
except ImportError as _error:  # pragma: no cover - depends on how the package was installed
    raise ImportError(
        "the C core of loopwatch (loopwatch._core) could not be imported. It is built when the package is installed, "
        f"once for each version of Python: type `python -m pip install .` with the Python in use. ({_error})"
    ) from _error

from loopwatch.actions import LeakAction
from loopwatch.blocking import no_event_loop_blocking
from loopwatch.errors import (
    AsyncGeneratorLeakError,
    DescriptorLeakError,
    DestroyedTaskError,
    EventLoopBlockError,
    ExecutorLeakError,
    LeakError,
    LeakErrorGroup,
    LoopLeakError,
    ProcessLeakError,
    ScopeLeakError,
    TaskExceptionError,
    TaskLeakError,
    ThreadLeakError,
    TimerLeakError,
    UnawaitedCoroutineError,
)
from loopwatch.findings import CallerContext, Cause, EventLoopBlock, Segment
from loopwatch.settings import DEFAULT_THREAD_NAME_FILTER, SettingError

if TYPE_CHECKING:
    from loopwatch.leaks.baseline import Baseline, BaselineError
    from loopwatch.leaks.everything import no_leaks
    from loopwatch.leaks.suppress import Ignore

__version__ = "0.1.0"

PyleakExceptionGroup = LeakErrorGroup

_LATER = {
    "Baseline": "leaks.baseline",
    "BaselineError": "leaks.baseline",
    "Ignore": "leaks.suppress",
    "no_leaks": "leaks.everything",
    "LeakedTask": "leaks.tasks",
    "TaskState": "leaks.tasks",
    "no_task_leaks": "leaks.tasks",
    "LeakedThread": "leaks.threads",
    "no_thread_leaks": "leaks.threads",
}

__all__ = [
    "DEFAULT_THREAD_NAME_FILTER",
    "AsyncGeneratorLeakError",
    "Baseline",
    "BaselineError",
    "CallerContext",
    "Cause",
    "DescriptorLeakError",
    "DestroyedTaskError",
    "EventLoopBlock",
    "EventLoopBlockError",
    "ExecutorLeakError",
    "Ignore",
    "LeakAction",
    "LeakError",
    "LeakErrorGroup",
    "LoopLeakError",
    "ProcessLeakError",
    "PyleakExceptionGroup",
    "ScopeLeakError",
    "Segment",
    "SettingError",
    "TaskExceptionError",
    "TaskLeakError",
    "ThreadLeakError",
    "TimerLeakError",
    "UnawaitedCoroutineError",
    "__version__",
    "no_event_loop_blocking",
    "no_leaks",
]


def __getattr__(name: str) -> Any:
    where = _LATER.get(name)
    if where is None:
        raise AttributeError(f"module 'loopwatch' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"loopwatch.{where}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
