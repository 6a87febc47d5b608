"""The guards for what a scope forgets besides tasks and threads: one function a kind.

All take the same arguments and are used in the same way, so they are made from one description.
"""

import logging

from loopwatch.actions import Action, LeakAction
from loopwatch.leaks.asyncgens import AsyncGeneratorKind, LeakedAsyncGenerator
from loopwatch.leaks.descriptors import DescriptorKind, LeakedDescriptor
from loopwatch.leaks.executors import ExecutorKind, LeakedExecutor
from loopwatch.leaks.guard import LeakGuard
from loopwatch.leaks.loops import LeakedLoop, LoopKind
from loopwatch.leaks.processes import LeakedProcess, ProcessKind
from loopwatch.leaks.suppress import Ignores, NameFilter
from loopwatch.leaks.timers import LeakedTimer, TimerKind
from loopwatch.visits import decorate_bare, decorated_function

__all__ = [
    "AsyncGeneratorKind",
    "DescriptorKind",
    "ExecutorKind",
    "LeakedAsyncGenerator",
    "LeakedDescriptor",
    "LeakedExecutor",
    "LeakedLoop",
    "LeakedProcess",
    "LeakedTimer",
    "LoopKind",
    "ProcessKind",
    "TimerKind",
    "no_async_generator_leaks",
    "no_descriptor_leaks",
    "no_executor_leaks",
    "no_loop_leaks",
    "no_process_leaks",
    "no_timer_leaks",
]


def no_async_generator_leaks(
    action: Action = LeakAction.WARN,
    logger: logging.Logger | None = None,
    *,
    name_filter: NameFilter = None,
    ignore: Ignores = (),
    grace_period: float | None = None,
) -> LeakGuard:
    """Find async generators that the guarded code began and neither exhausted nor closed.

    Use it as ``with``, as ``async with``, or as a decorator of a function, async or not, with or without parentheses.

    action: "warn" (default), "log", "cancel", "raise", a callable that takes the list of findings, or a sequence of
        several.  "cancel" closes those that still can be.
    logger: where "log" writes; default ``logging.getLogger("loopwatch")``.
    name_filter: a name or a compiled regular expression; only findings whose name (their qualified name)
        matches are reported.
    ignore: findings to overlook: ``Ignore`` entries, names, compiled regular expressions.
    grace_period: seconds to wait at most for them to end; default None: 0.1.  It returns as soon as all is clean.

    Raises TypeError and ValueError for options that are wrong; at the exit, with the action "raise",
    AsyncGeneratorLeakError.
    An exception of the guarded code is never replaced: it carries the findings as a note.
    """
    if decorated_function(action):
        return decorate_bare(no_async_generator_leaks(), action)
    return LeakGuard(
        "no_async_generator_leaks",
        [AsyncGeneratorKind()],
        action,
        name_filter=name_filter,
        logger=logger,
        grace_period=grace_period,
        ignore=ignore,
    )


def no_timer_leaks(
    action: Action = LeakAction.WARN,
    logger: logging.Logger | None = None,
    *,
    name_filter: NameFilter = None,
    ignore: Ignores = (),
    grace_period: float | None = None,
) -> LeakGuard:
    """Find timers (``call_later``, ``call_at``) that the guarded code scheduled and left.

    Use it as ``with`` or ``async with`` inside a coroutine, or as a decorator of an async function, with or without
    parentheses.

    action: "warn" (default), "log", "cancel", "raise", a callable that takes the list of findings, or a sequence of
        several.  "cancel" cancels them.
    logger: where "log" writes; default ``logging.getLogger("loopwatch")``.
    name_filter: a name or a compiled regular expression; only findings whose name (the callback's qualified name)
        matches are reported.
    ignore: findings to overlook: ``Ignore`` entries, names, compiled regular expressions.
    grace_period: seconds to wait at most for them to end; default None: 0.1.  It returns as soon as all is clean.

    Raises TypeError and ValueError for options that are wrong; RuntimeError where no event loop runs;
    at the exit, with the action "raise", TimerLeakError.
    An exception of the guarded code is never replaced: it carries the findings as a note.
    """
    if decorated_function(action):
        return decorate_bare(no_timer_leaks(), action)
    return LeakGuard(
        "no_timer_leaks",
        [TimerKind()],
        action,
        name_filter=name_filter,
        logger=logger,
        grace_period=grace_period,
        ignore=ignore,
    )


def no_descriptor_leaks(
    action: Action = LeakAction.WARN,
    logger: logging.Logger | None = None,
    *,
    name_filter: NameFilter = None,
    ignore: Ignores = (),
    grace_period: float | None = None,
) -> LeakGuard:
    """Find file descriptors and sockets that were opened and left open.

    Use it as ``with``, as ``async with``, or as a decorator of a function, async or not, with or without parentheses.

    action: "warn" (default), "log", "cancel", "raise", a callable that takes the list of findings, or a sequence of
        several.  "cancel" warns: a descriptor cannot be closed from outside.
    logger: where "log" writes; default ``logging.getLogger("loopwatch")``.
    name_filter: a name or a compiled regular expression; only findings whose name (the path, or a socket's addresses)
        matches are reported.
    ignore: findings to overlook: ``Ignore`` entries, names, compiled regular expressions.
    grace_period: seconds to wait at most for them to end; default None: 0.1.  It returns as soon as all is clean.

    Raises TypeError and ValueError for options that are wrong; at the exit, with the action "raise",
    DescriptorLeakError.
    An exception of the guarded code is never replaced: it carries the findings as a note.
    """
    if decorated_function(action):
        return decorate_bare(no_descriptor_leaks(), action)
    return LeakGuard(
        "no_descriptor_leaks",
        [DescriptorKind()],
        action,
        name_filter=name_filter,
        logger=logger,
        grace_period=grace_period,
        ignore=ignore,
    )


def no_process_leaks(
    action: Action = LeakAction.WARN,
    logger: logging.Logger | None = None,
    *,
    name_filter: NameFilter = None,
    ignore: Ignores = (),
    grace_period: float | None = None,
) -> LeakGuard:
    """Find child processes that were started and not reaped.

    Use it as ``with``, as ``async with``, or as a decorator of a function, async or not, with or without parentheses.

    action: "warn" (default), "log", "cancel", "raise", a callable that takes the list of findings, or a sequence of
        several.  "cancel" warns: no process is killed from outside.
    logger: where "log" writes; default ``logging.getLogger("loopwatch")``.
    name_filter: a name or a compiled regular expression; only findings whose name (what they run)
        matches are reported.
    ignore: findings to overlook: ``Ignore`` entries, names, compiled regular expressions.
    grace_period: seconds to wait at most for them to end; default None: 0.1.  It returns as soon as all is clean.

    Raises TypeError and ValueError for options that are wrong; at the exit, with the action "raise",
    ProcessLeakError.
    An exception of the guarded code is never replaced: it carries the findings as a note.
    """
    if decorated_function(action):
        return decorate_bare(no_process_leaks(), action)
    return LeakGuard(
        "no_process_leaks",
        [ProcessKind()],
        action,
        name_filter=name_filter,
        logger=logger,
        grace_period=grace_period,
        ignore=ignore,
    )


def no_loop_leaks(
    action: Action = LeakAction.WARN,
    logger: logging.Logger | None = None,
    *,
    name_filter: NameFilter = None,
    ignore: Ignores = (),
    grace_period: float | None = None,
) -> LeakGuard:
    """Find event loops that were made and not closed.

    Use it as ``with``, as ``async with``, or as a decorator of a function, async or not, with or without parentheses.

    action: "warn" (default), "log", "cancel", "raise", a callable that takes the list of findings, or a sequence of
        several.  "cancel" closes those that do not run.
    logger: where "log" writes; default ``logging.getLogger("loopwatch")``.
    name_filter: a name or a compiled regular expression; only findings whose name (their class)
        matches are reported.
    ignore: findings to overlook: ``Ignore`` entries, names, compiled regular expressions.
    grace_period: seconds to wait at most for them to end; default None: 0.1.  It returns as soon as all is clean.

    Raises TypeError and ValueError for options that are wrong; at the exit, with the action "raise",
    LoopLeakError.
    An exception of the guarded code is never replaced: it carries the findings as a note.
    """
    if decorated_function(action):
        return decorate_bare(no_loop_leaks(), action)
    return LeakGuard(
        "no_loop_leaks",
        [LoopKind()],
        action,
        name_filter=name_filter,
        logger=logger,
        grace_period=grace_period,
        ignore=ignore,
    )


def no_executor_leaks(
    action: Action = LeakAction.WARN,
    logger: logging.Logger | None = None,
    *,
    name_filter: NameFilter = None,
    ignore: Ignores = (),
    grace_period: float | None = None,
) -> LeakGuard:
    """Find executors that were made, used and not shut down.

    Use it as ``with``, as ``async with``, or as a decorator of a function, async or not, with or without parentheses.

    action: "warn" (default), "log", "cancel", "raise", a callable that takes the list of findings, or a sequence of
        several.  "cancel" shuts them down without waiting.
    logger: where "log" writes; default ``logging.getLogger("loopwatch")``.
    name_filter: a name or a compiled regular expression; only findings whose name (their class)
        matches are reported.
    ignore: findings to overlook: ``Ignore`` entries, names, compiled regular expressions.
    grace_period: seconds to wait at most for them to end; default None: 0.1.  It returns as soon as all is clean.

    Raises TypeError and ValueError for options that are wrong; at the exit, with the action "raise",
    ExecutorLeakError.
    An exception of the guarded code is never replaced: it carries the findings as a note.
    """
    if decorated_function(action):
        return decorate_bare(no_executor_leaks(), action)
    return LeakGuard(
        "no_executor_leaks",
        [ExecutorKind()],
        action,
        name_filter=name_filter,
        logger=logger,
        grace_period=grace_period,
        ignore=ignore,
    )
