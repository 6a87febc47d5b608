"""``loopwatch run``: run a program and report what blocks its event loops.

The reports go to a copy of the stderr that the command was started with, so that a program (or pytest) that redirects
its own sees none of them.  The summary is printed by an exit handler registered before the program's own, so that it
comes last, and covers loops in threads that outlive the main one.  A forked child begins with nothing, and writes no
file.
"""

import atexit
import contextlib
import fcntl
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from loopwatch import _core
from loopwatch.autowatch import AutoWatch
from loopwatch.blocking import nanoseconds
from loopwatch.blocks import block_from_raw
from loopwatch.commands.options import EXIT_BLOCKED, RunOptions, parse_run_options
from loopwatch.commands.program import hide_own_frames, run_code, run_module, run_script
from loopwatch.json_report import document
from loopwatch.outfile import write_atomically
from loopwatch.printable import printable
from loopwatch.report import Terminal, block_text, summary_text
from loopwatch.summary import Summary

if TYPE_CHECKING:
    from loopwatch._core import RawBlock
    from loopwatch.commands.growthwatch import GrowthWatch

HELP = "run a program and report what blocks its event loops"

_CHECK_INTERVAL_NS = 50_000_000
_SHORTEST_INTERVAL_NS = 1_000_000
_ENDINGS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
_FRESH_STARTS = {"multiprocessing.popen_spawn_posix", "multiprocessing.popen_forkserver"}
_FIRST_DESCRIPTOR = 100  # out of the way: a program must find the low numbers as free as ever
_LONGEST_FINISH = 10.0


def command(argv: Sequence[str]) -> int:
    """Run ``loopwatch run`` with these arguments; returns the exit code of a program that ran to its end."""
    options = parse_run_options(argv)
    recorder = Recorder(options)
    recorder.start()
    try:
        if options.is_module:
            run_module(options.program, options.arguments)
        elif options.is_code:
            run_code(options.program, options.arguments)
        else:
            run_script(options.program, options.arguments)
    except SystemExit as end:
        good = end.code is None or (isinstance(end.code, int) and end.code == 0)  # sys.exit(0.0) ends with 1
        if options.fail_on_block and good and recorder.blocked_at_the_end():
            raise SystemExit(EXIT_BLOCKED) from None
        raise
    except BaseException as error:
        hide_own_frames(error)
        raise
    return EXIT_BLOCKED if options.fail_on_block and recorder.blocked_at_the_end() else 0


class Recorder:
    """Ties the watch, the summary and the outputs of one run together."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self.summary = Summary(options.threshold, options.patterns)
        self.terminal = Terminal(_copy_of_stderr())
        self.pid = os.getpid()
        self._born_ns = 0
        self._process = self.pid  # whose blocks these are: a forked child's own, once it has begun anew
        self._finished = False
        self._finishing = threading.RLock()
        self._fresh_starts = _FRESH_STARTS
        threshold_ns = nanoseconds("threshold", options.threshold)
        interval_ns = max(min(_CHECK_INTERVAL_NS, threshold_ns // 10), _SHORTEST_INTERVAL_NS)
        self.growth: GrowthWatch | None = None
        if options.monitor:
            from loopwatch.commands import growthwatch

            self.growth = growthwatch.GrowthWatch(options, self.terminal)
        self.watch = AutoWatch(threshold_ns, interval_ns, self.on_block, self.summary.add_loop, self.on_failure)

    def start(self) -> None:
        """Watch from now on, and report at exit."""
        atexit.register(self.finish)
        self._report_before_raised_signals()
        self._report_before_exit_at_once()
        os.register_at_fork(after_in_child=self._begin_anew)
        if self.options.hang_after:
            _core.set_hang_report(nanoseconds("hang-after", self.options.hang_after), self.terminal.descriptor)
        self.watch.install()
        if self.growth is not None:
            self.growth.start()

    def on_block(self, raw: "RawBlock", loop: str) -> None:
        """Take in a block that has just ended.  Runs in the loop's thread; never raises."""
        if raw["start_ns"] < self._born_ns or self._process != os.getpid():
            return  # it began before the fork, or is cut off by it before we begin anew: the parent reports it
        try:
            block = block_from_raw(raw, self.summary.next_id(), loop=loop)
            if self.summary.add(block, raw["dropped"]) and not self.options.quiet:
                child = None if os.getpid() == self.pid else os.getpid()
                self.terminal.write(block_text(block, self.terminal.paint, child))
        except Exception as error:
            self.on_failure(f"a block could not be reported: {type(error).__name__}: {error}")

    def on_failure(self, reason: str) -> None:
        """Say at once that something is not watched, but each reason only once."""
        if self.summary.add_unwatched(reason) and not self.options.quiet:
            self.terminal.write(f"loopwatch: NOT WATCHED: {printable(reason)}\n")

    def _report_before_raised_signals(self) -> None:
        """Report first where the program ends itself by a signal, as uvicorn does once it has shut down."""
        original = signal.raise_signal

        @functools.wraps(original)
        def raise_signal(signalnum: int, /) -> None:
            if signalnum in _ENDINGS and signal.getsignal(signalnum) is signal.SIG_DFL:
                self.finish()
            original(signalnum)

        signal.raise_signal = raise_signal

    def _report_before_exit_at_once(self) -> None:
        """Report first where the program ends itself by ``os._exit()``."""
        original = os._exit

        @functools.wraps(original)
        def exit_at_once(status: int) -> NoReturn:
            try:
                self.watch.cut()
                if os.getpid() == self.pid:  # forked children end so, too
                    self.finish()
                    if status == 0 and self.options.fail_on_block and self.summary.count > 0:
                        status = EXIT_BLOCKED
            finally:
                original(status)

        os._exit = exit_at_once

    def _begin_anew(self) -> None:
        """This process is a forked child: what happened before belongs to the parent."""
        self._born_ns = time.monotonic_ns()
        self._process = os.getpid()
        self._finished = False
        self._finishing = threading.RLock()
        self._fresh_starts = _FRESH_STARTS - sys.modules.keys()
        self.summary.clear()
        util: Any = sys.modules.get("multiprocessing.util")
        if util is not None:  # its children end without exit handlers
            util.register_after_fork(self, lambda self: util.Finalize(None, self.finish, exitpriority=-1000))

    def blocked_at_the_end(self) -> bool:
        """Wait for the program's threads, as the interpreter is about to, and tell whether any loop was blocked."""
        if os.getpid() != self.pid:
            return False
        with contextlib.suppress(AttributeError):
            threading._shutdown()  # type: ignore[attr-defined]
        self.watch.cut()
        return self.summary.count > 0

    def finish(self) -> None:
        """Print the summary and write the file, once.  In a forked child: its own blocks only, and no file.

        Another thread that ends the process meanwhile waits until all is written, for a while.
        """
        waited = self._finishing.acquire(timeout=_LONGEST_FINISH)
        try:
            self._finish()
        finally:
            if waited:
                self._finishing.release()

    def _finish(self) -> None:
        if self._finished:
            return
        self.watch.cut()
        self._finished = True
        _core.set_hang_report(0, -1)
        child = os.getpid() != self.pid
        if self.growth is not None and not child:
            self.growth.finish()
        if not sys.modules.keys().isdisjoint(self._fresh_starts):
            self.summary.add_unwatched(
                "processes that multiprocessing started afresh (spawn, forkserver); "
                "LOOPWATCH=monitor in the environment watches those too"
            )
        if not self.options.quiet and (self.summary.count or not child):
            self.terminal.write(summary_text(self.summary, self.terminal.paint, os.getpid() if child else None))
        if self.options.json is None or child:
            return
        from loopwatch import __version__

        try:
            program = "-c" if self.options.is_code else self.options.program
            arguments = [program, *self.options.arguments]
            content = document(self.summary, program=program, argv=arguments, version=__version__)
            write_atomically(self.options.json, content)
        except OSError as error:
            reason = printable(f"{self.options.json} could not be written: {error}")
            self.terminal.write(f"loopwatch: --json: {reason}\n")


def _copy_of_stderr() -> int:
    """A descriptor of the stderr we were started with, closed on exec; -1 if there is none."""
    try:
        return fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, _FIRST_DESCRIPTOR)
    except OSError:
        with contextlib.suppress(OSError):
            return os.dup(2)
    return -1
