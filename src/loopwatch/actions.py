"""What happens to findings: warn, log, cancel, raise, or a callable of the user's.

``dispatch`` never masks: where the guarded body ended with an exception, that one goes on unchanged, carries the
findings as a note, and they are warned of as well.
"""

import difflib
import enum
import functools
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from loopwatch.errors import LeakError, add_note

__all__ = ["LeakAction", "parse_action"]

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class LeakAction(str, enum.Enum):  # noqa: UP042 - its members print as before enum.StrEnum: LeakAction.WARN
    """What to do with findings.

    ``warn`` issues a ResourceWarning (which Python hides by default outside of test runners: ``-W default`` shows it),
    ``log`` writes to the logger, ``cancel`` cancels what leaked where that can be done and warns where it cannot,
    ``raise`` raises a LeakError.
    """

    WARN = "warn"
    LOG = "log"
    CANCEL = "cancel"
    RAISE = "raise"


Handler = Callable[[list[Any]], object]
OneAction = LeakAction | str | Handler
Action = OneAction | Sequence[OneAction]


def parse_action(value: Action) -> tuple[LeakAction | Handler, ...]:
    """Turn an action as users write it (enum, string, callable, or a sequence of these) into a tuple of actions.

    Raises ValueError for a misspelt name or an empty sequence, TypeError for anything that is no action.
    """
    if isinstance(value, str):
        return (_named(value),)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        if not value:
            raise ValueError(f"action is an empty sequence, so findings would go nowhere; {_expected()}")
        return tuple(action for item in value for action in parse_action(item))
    if inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(getattr(value, "__call__", None)):  # noqa: B004
        raise TypeError(f"action must be a plain callable, got the async function {value!r}: nothing would await it")
    if callable(value) and not isinstance(value, type):
        return (value,)
    raise TypeError(f"{_expected()}; got {value!r} of type {type(value).__name__}")


def _named(value: str) -> LeakAction:
    try:
        return LeakAction(value)
    except ValueError:
        close = difflib.get_close_matches(value.lower(), [action.value for action in LeakAction], n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"{_expected()}; got {value!r}{hint}") from None


def _expected() -> str:
    names = ", ".join(repr(action.value) for action in LeakAction)
    return f"action must be one of {names}, a callable that takes the list of findings, or a sequence of these"


@dataclass(frozen=True)
class Site:
    """The line of the user's code that a warning points to."""

    filename: str
    lineno: int
    module: str
    registry: dict[Any, Any]
    module_globals: dict[str, Any]

    @classmethod
    def of_caller(cls) -> "Site":
        """The innermost frame on this thread's stack that is not loopwatch's or contextlib's own."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_back is not None and _is_plumbing(frame.f_code.co_filename):
            frame = frame.f_back
        assert frame is not None
        return cls._at(frame.f_code.co_filename, frame.f_lineno, frame.f_globals)

    @classmethod
    def of_function(cls, function: Callable[..., object]) -> "Site":
        """The line at which a decorated function begins; the caller's where it is no plain function."""
        plain = inspect.unwrap(function)
        code = getattr(plain, "__code__", None)
        if code is None:
            return cls.of_caller()
        return cls._at(code.co_filename, code.co_firstlineno, getattr(plain, "__globals__", {}))

    @classmethod
    def _at(cls, filename: str, lineno: int, module_globals: dict[str, Any]) -> "Site":
        registry = module_globals.setdefault("__warningregistry__", {})
        return cls(filename, lineno, str(module_globals.get("__name__") or "<string>"), registry, module_globals)

    def warn(self, text: str) -> None:
        """Issue a ResourceWarning at this line."""
        # for its source, which a __main__ without a loader has none of: Python would warn of that
        names = self.module_globals if self.module_globals.get("__spec__") is not None else None
        warnings.warn_explicit(text, ResourceWarning, self.filename, self.lineno, self.module, self.registry, names)


def _is_plumbing(filename: str) -> bool:
    return filename.startswith(_PACKAGE) or filename.endswith(f"{os.sep}contextlib.py")


@dataclass(frozen=True)
class Report:
    """The findings of one guard, ready for its actions.

    ``cancel`` cancels what was found and returns what could not be cancelled, as a sentence for a warning, or None.
    ``text`` is what warnings and logs say, by default the error's own text.
    """

    findings: Sequence[Any]
    error: LeakError
    cancel: Callable[[], str | None]
    logger: logging.Logger | None = None
    text: str | None = None


def dispatch(
    actions: Sequence[LeakAction | Handler], report: Report, site: Callable[[], Site], body: BaseException | None = None
) -> None:
    """Run all actions on the findings; what they raise comes last.

    ``body`` is the exception with which the guarded code ended.  With one nothing is raised: it gets a note.
    """
    text = functools.cache(lambda: str(report.error) if report.text is None else report.text)  # costs milliseconds
    if body is not None:
        add_note(body, text())
    failures: list[BaseException] = []
    warned = False
    for action in actions:
        try:
            if action is LeakAction.WARN:
                warned = True
                site().warn(text())
            elif action is LeakAction.LOG:
                (report.logger or logging.getLogger("loopwatch")).warning("%s", text())
            elif action is LeakAction.CANCEL:
                refusal = report.cancel()
                if refusal is not None:
                    warned = True
                    site().warn(f"{refusal}\n{text()}")
            elif callable(action):
                action(list(report.findings))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # pytest.fail() and sys.exit() too
            failures.append(error)
    if body is None:
        raise_first(report.error if LeakAction.RAISE in actions else None, failures)
        return
    if not warned:
        try:
            site().warn(text())
        except Exception as error:
            failures.append(error)
    for failure in failures:
        if not isinstance(failure, ResourceWarning):  # as an error it says only what the note says already
            add_note(body, f"an action of loopwatch failed: {failure!r}")


def raise_first(error: BaseException | None, failures: list[BaseException]) -> None:
    """Raise what counts most: what ends the program or the test, the findings' error, then what an action raised.

    The others go along as notes.
    """
    raised: BaseException
    others: list[BaseException]
    ends = [failure for failure in failures if not isinstance(failure, Exception)]
    if ends:  # sys.exit(), pytest.fail()
        raised, others = ends[0], []
    elif error is not None:
        raised = error
        others = [failure for failure in failures if not isinstance(failure, ResourceWarning)]
    elif failures:
        raised, others = failures[0], failures[1:]
    else:
        return
    for other in others:
        add_note(raised, f"an action of loopwatch failed as well: {other!r}")
    raise raised
