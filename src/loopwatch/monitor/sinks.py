"""Where alarms go.  A sink that raises is counted and said, and never stops the monitor nor the other sinks."""

import contextlib
import io
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

from loopwatch.monitor.alarms import Alarm, stamp
from loopwatch.outfile import why_not_writable

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
        # the program may go to another folder before the first alarm
        self._json = os.path.abspath(json) if isinstance(json, str | os.PathLike) else json
        self._torn = False
        self._stderr = stderr
        self._sinks: dict[str, Callable[[Alarm], object]] = {}
        if on_alarm is not None:
            self._sinks["on_alarm"] = on_alarm
        if logger is not None:
            self._sinks["logger"] = partial(_log, logger)
        if json is not None:
            self._sinks["json"] = self._write_json
        if stderr:
            self._sinks["stderr"] = lambda alarm: _write_stderr(alarm.stamped())

    def check(self) -> None:
        """Raise ValueError where alarms could not be written to the path of ``json``."""
        if isinstance(self._json, str):
            trouble = why_not_writable(self._json, append=True)
            if trouble is not None:
                raise ValueError(f"json={self._json!r}: {trouble}")

    def send(self, alarm: Alarm) -> None:
        """Hand an alarm to all of them.  One that finds no way is written to stderr, and why."""
        for name, sink in self._sinks.items():
            try:
                sink(alarm)
            except BaseException as error:  # a callback that calls sys.exit() ends nothing either
                self.errors += 1
                self.last_error = f"{type(error).__name__}: {error}"
                with contextlib.suppress(Exception):
                    _write_stderr(self._failure(name, alarm, error))

    def _failure(self, name: str, alarm: Alarm, error: BaseException) -> str:
        target = f"json={self._json!r}" if name == "json" and isinstance(self._json, str) else name
        said = f"{stamp(time.time(), alarm.pid)}an alarm could not be handed to {target}: {self.last_error}"
        own = error.__traceback__.tb_next if error.__traceback__ is not None else None
        if name == "on_alarm" and own is not None and self.errors == 1:  # the callback's frames, without ours
            said += "\n" + "".join(traceback.format_exception(type(error), error, own)).rstrip()
        return said if self._stderr else f"{said}\n{alarm.stamped()}"

    def _write_json(self, alarm: Alarm) -> None:
        line = alarm.as_json() + "\n"
        if isinstance(self._json, str):
            data = line.encode()
            # one write to a file opened for appending: lines of several processes do not mix
            target = os.open(self._json, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                _write_all(target, b"\n" + data if self._torn else data)
                self._torn = False
            except OSError:
                self._torn = True  # a part of the line may be there: the next one is not to join it
                raise
            finally:
                os.close(target)
        elif self._json is not None:
            self._json.write(line)
            self._json.flush()


def _log(logger: logging.Logger, alarm: Alarm) -> None:
    # handlers add time and process as they are told to; where there is none, logging writes the bare text to stderr
    logger.warning("%s", alarm if logger.hasHandlers() else alarm.stamped())


def _write_stderr(text: str) -> None:
    _write_all(2, f"{text}\n".encode("utf-8", "backslashreplace"))


def _write_all(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]


def check_sinks(on_alarm: Any, logger: Any, json: Any, stderr: Any) -> None:
    """Raise TypeError or ValueError for what cannot take an alarm."""
    if not isinstance(stderr, bool):
        raise TypeError(f"stderr must be True or False, got {stderr!r} of type {type(stderr).__name__}")
    if on_alarm is not None and not callable(on_alarm):
        raise TypeError(f"on_alarm must be a callable that takes an Alarm, got {on_alarm!r}")
    if logger is not None and not isinstance(logger, logging.Logger | logging.LoggerAdapter):
        raise TypeError(f"logger must be a logging.Logger, got {logger!r}")
    if json is None:
        return
    if isinstance(json, str | os.PathLike):
        if not os.fspath(json):
            raise ValueError("json must be the path of a file, got '': name one, such as json='alarms.jsonl'")
        return
    if not hasattr(json, "write") or isinstance(json, io.RawIOBase | io.BufferedIOBase):
        raise TypeError(f"json must be a path or a file open for writing text, got {json!r}")
    writable = getattr(json, "writable", None)
    if callable(writable) and not writable():
        raise ValueError(f"json must be a file open for writing text, got {json!r}: open it with 'a', or give its path")


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
