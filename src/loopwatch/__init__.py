"""Finds what blocks an event loop, and what a scope leaves behind: tasks, threads and other resources.

Names are imported when they are first asked for: a tool that only has loopwatch beside it, such as a run of pytest that
puts no test under guard, pays nothing.

PYTEST_DONT_REWRITE: else pytest warns where ``loopwatch run -m pytest`` has imported it first.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopwatch.actions import LeakAction
    from loopwatch.blocking import no_event_loop_blocking
    from loopwatch.calls.info import BlockingCallInfo
    from loopwatch.calls.monitor import EventLoopMonitor, event_loop_monitor_ctx
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
    from loopwatch.leaks.baseline import Baseline, BaselineError
    from loopwatch.leaks.coroutines import UnawaitedCoroutine
    from loopwatch.leaks.current import ignore_current
    from loopwatch.leaks.everything import no_leaks
    from loopwatch.leaks.resources import (
        LeakedAsyncGenerator,
        LeakedDescriptor,
        LeakedExecutor,
        LeakedLoop,
        LeakedProcess,
        LeakedTimer,
        no_async_generator_leaks,
        no_descriptor_leaks,
        no_executor_leaks,
        no_loop_leaks,
        no_process_leaks,
        no_timer_leaks,
    )
    from loopwatch.leaks.suppress import Ignore
    from loopwatch.leaks.task_ends import DestroyedTask, TaskException
    from loopwatch.leaks.tasks import LeakedTask, TaskState, no_task_leaks
    from loopwatch.leaks.threads import LeakedThread, LeakedThreadPool, no_thread_leaks
    from loopwatch.memory import AllocationTrace, MemoryLeakDetector, held_by, retained
    from loopwatch.monitor.alarms import Alarm
    from loopwatch.monitor.monitor import Monitor
    from loopwatch.prevention import GracefulShutdown, TaskManager, managed_generator, timeout_task
    from loopwatch.settings import DEFAULT_THREAD_NAME_FILTER, SettingError

    PyleakExceptionGroup = LeakErrorGroup

__version__ = "0.1.0"

_NO_CORE = (
    "the C core of loopwatch (loopwatch._core) could not be imported. It is built when the package is installed, once "
    "for each version of Python: type `python -m pip install .` with the Python in use."
)

_LATER = {
    "Baseline": "leaks.baseline",
    "BaselineError": "leaks.baseline",
    "Ignore": "leaks.suppress",
    "ignore_current": "leaks.current",
    "no_leaks": "leaks.everything",
    "LeakedTask": "leaks.tasks",
    "TaskState": "leaks.tasks",
    "DestroyedTask": "leaks.task_ends",
    "TaskException": "leaks.task_ends",
    "UnawaitedCoroutine": "leaks.coroutines",
    "no_task_leaks": "leaks.tasks",
    "LeakedThread": "leaks.threads",
    "LeakedThreadPool": "leaks.threads",
    "no_thread_leaks": "leaks.threads",
    "LeakedAsyncGenerator": "leaks.resources",
    "LeakedDescriptor": "leaks.resources",
    "LeakedExecutor": "leaks.resources",
    "LeakedLoop": "leaks.resources",
    "LeakedProcess": "leaks.resources",
    "LeakedTimer": "leaks.resources",
    "no_async_generator_leaks": "leaks.resources",
    "no_descriptor_leaks": "leaks.resources",
    "no_executor_leaks": "leaks.resources",
    "no_loop_leaks": "leaks.resources",
    "no_process_leaks": "leaks.resources",
    "no_timer_leaks": "leaks.resources",
    "LeakAction": "actions",
    "no_event_loop_blocking": "blocking",
    "BlockingCallInfo": "calls.info",
    "EventLoopMonitor": "calls.monitor",
    "event_loop_monitor_ctx": "calls.monitor",
    "AsyncGeneratorLeakError": "errors",
    "DescriptorLeakError": "errors",
    "DestroyedTaskError": "errors",
    "EventLoopBlockError": "errors",
    "ExecutorLeakError": "errors",
    "LeakError": "errors",
    "LeakErrorGroup": "errors",
    "LoopLeakError": "errors",
    "ProcessLeakError": "errors",
    "ScopeLeakError": "errors",
    "TaskExceptionError": "errors",
    "TaskLeakError": "errors",
    "ThreadLeakError": "errors",
    "TimerLeakError": "errors",
    "UnawaitedCoroutineError": "errors",
    "CallerContext": "findings",
    "Cause": "findings",
    "EventLoopBlock": "findings",
    "Segment": "findings",
    "AllocationTrace": "memory",
    "MemoryLeakDetector": "memory",
    "held_by": "memory",
    "retained": "memory",
    "GracefulShutdown": "prevention",
    "TaskManager": "prevention",
    "managed_generator": "prevention",
    "timeout_task": "prevention",
    "Alarm": "monitor.alarms",
    "Monitor": "monitor.monitor",
    "DEFAULT_THREAD_NAME_FILTER": "settings",
    "SettingError": "settings",
}
_ALIASES = {"PyleakExceptionGroup": "LeakErrorGroup"}

__all__ = [
    "DEFAULT_THREAD_NAME_FILTER",
    "Alarm",
    "AllocationTrace",
    "AsyncGeneratorLeakError",
    "Baseline",
    "BaselineError",
    "BlockingCallInfo",
    "CallerContext",
    "Cause",
    "DescriptorLeakError",
    "DestroyedTask",
    "DestroyedTaskError",
    "EventLoopBlock",
    "EventLoopBlockError",
    "EventLoopMonitor",
    "ExecutorLeakError",
    "GracefulShutdown",
    "Ignore",
    "LeakAction",
    "LeakError",
    "LeakErrorGroup",
    "LeakedAsyncGenerator",
    "LeakedDescriptor",
    "LeakedExecutor",
    "LeakedLoop",
    "LeakedProcess",
    "LeakedTask",
    "LeakedThread",
    "LeakedThreadPool",
    "LeakedTimer",
    "LoopLeakError",
    "MemoryLeakDetector",
    "Monitor",
    "ProcessLeakError",
    "PyleakExceptionGroup",
    "ScopeLeakError",
    "Segment",
    "SettingError",
    "TaskException",
    "TaskExceptionError",
    "TaskLeakError",
    "TaskManager",
    "TaskState",
    "ThreadLeakError",
    "TimerLeakError",
    "UnawaitedCoroutine",
    "UnawaitedCoroutineError",
    "__version__",
    "event_loop_monitor_ctx",
    "held_by",
    "ignore_current",
    "managed_generator",
    "no_async_generator_leaks",
    "no_descriptor_leaks",
    "no_event_loop_blocking",
    "no_executor_leaks",
    "no_leaks",
    "no_loop_leaks",
    "no_process_leaks",
    "no_task_leaks",
    "no_thread_leaks",
    "no_timer_leaks",
    "retained",
    "timeout_task",
]


def __getattr__(name: str) -> Any:
    if name in _ALIASES:
        value = __getattr__(_ALIASES[name])
    elif name in _LATER:
        try:
            module = importlib.import_module(f"loopwatch.{_LATER[name]}")
        except ImportError as error:
            if "_core" in str(error):
                raise ImportError(f"{_NO_CORE} ({error})") from error
            raise
        value = getattr(module, name)
    else:
        raise AttributeError(f"module 'loopwatch' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_ALIASES})
