"""Where alarms go.  A sink that raises is counted, and never stops the monitor nor the other sinks."""

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, TextIO

from loopwatch.monitor.alarms import Alarm

__all__ = ["Sinks"]

Destination = str | os.PathLike[str] | TextIO


class Sinks:
    """A logger, a callback, JSON lines in a file, stderr; each where it was asked for."""

    def __init__(
        self,
        on_alarm: Callable[[Alarm], object] | None,
        logger: logging.Logger | None,
        json: Destination | None,
        stderr: bool,
    ) -> None:
        self.errors = 0
        self.last_error: str | None = None
        self._json = json
        self._sinks: list[Callable[[Alarm], object]] = []
        if on_alarm is not None:
            self._sinks.append(on_alarm)
        if logger is not None:
            self._sinks.append(lambda alarm: logger.warning("%s", alarm))
        if json is not None:
            self._sinks.append(self._write_json)
        if stderr:
            self._sinks.append(_write_stderr)

    def send(self, alarm: Alarm) -> None:
        """Hand an alarm to all of them."""
        for sink in self._sinks:
            try:
                sink(alarm)
            except BaseException as error:  # a callback that calls sys.exit() ends nothing either
                self.errors += 1
                self.last_error = f"{type(error).__name__}: {error}"
                if self.errors == 1:
                    with contextlib.suppress(Exception):
                        logging.getLogger("loopwatch").warning(
                            "an alarm could not be handed on: %s", self.last_error, exc_info=error
                        )

    def _write_json(self, alarm: Alarm) -> None:
        line = alarm.as_json() + "\n"
        if isinstance(self._json, str | os.PathLike):
            # one write to a file opened for appending: lines of several processes do not mix
            target = os.open(self._json, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                os.write(target, line.encode())
            finally:
                os.close(target)
        elif self._json is not None:
            self._json.write(line)
            self._json.flush()


def _write_stderr(alarm: Alarm) -> None:
    os.write(2, f"{alarm}\n".encode("utf-8", "backslashreplace"))


def check_sinks(on_alarm: Any, logger: Any, json: Any) -> None:
    """Raise TypeError for what cannot take an alarm."""
    if on_alarm is not None and not callable(on_alarm):
        raise TypeError(f"on_alarm must be a callable that takes an Alarm, got {on_alarm!r}")
    if logger is not None and not isinstance(logger, logging.Logger | logging.LoggerAdapter):
        raise TypeError(f"logger must be a logging.Logger, got {logger!r}")
    if json is not None and not isinstance(json, str | os.PathLike) and not hasattr(json, "write"):
        raise TypeError(f"json must be a path or a file open for writing text, got {json!r}")


def in_loop(
    post: Callable[[Callable[[], object]], bool], function: Callable[[], Any], timeout: float = 0.5
) -> Any | None:
    """What a function gives that is called in a loop's thread; None where the loop does not come to it in time."""
    done = threading.Event()
    result: list[Any] = []

    def call() -> None:
        with contextlib.suppress(Exception):
            result.append(function())
        done.set()

    if not post(call) or not done.wait(timeout) or not result:
        return None
    return result[0]
