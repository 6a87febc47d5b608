"""Helpers that keep a program from leaking: built on the standard library's own tools, with what those leave open.

Where the standard library alone is enough, use it: ``asyncio.TaskGroup`` for tasks that all end before the block that
started them, ``asyncio.timeout`` around a few lines, ``contextlib.aclosing`` around one generator.
"""

from loopwatch.prevention.generators import managed_generator
from loopwatch.prevention.managers import TaskManager
from loopwatch.prevention.shutdown import GracefulShutdown
from loopwatch.prevention.timeouts import timeout_task

__all__ = ["GracefulShutdown", "TaskManager", "managed_generator", "timeout_task"]
