"""The command line of ``loopwatch run``.

All that follows the program belongs to the program, so the line is cut there before argparse sees it.
"""

import argparse
import difflib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from loopwatch.outfile import why_not_writable
from loopwatch.summary import Patterns

EXIT_BLOCKED = 86

_TAKE_VALUE = {
    "--threshold",
    "--hang-after",
    "--json",
    "--include",
    "--exclude",
    "--monitor-interval",
    "--monitor-json",
}
_USAGE = "\n       ".join(f"loopwatch run [options] {what} [ARG ...]" for what in ("SCRIPT", "-m MODULE", "-c CODE"))
_PYTHON_OPTIONS = "bBdEiIOPqsSuvWxX"


@dataclass(frozen=True)
class RunOptions:
    """What ``loopwatch run`` was asked to do.  ``threshold`` and ``hang_after`` are seconds; 0 switches the latter off.

    ``program`` is the script, with ``is_module`` the module, with ``is_code`` the code; ``arguments`` are its own.
    """

    program: str
    is_module: bool
    arguments: tuple[str, ...]
    threshold: float = 0.2
    hang_after: float = 10.0
    json: str | None = None
    fail_on_block: bool = False
    patterns: Patterns = field(default_factory=Patterns)
    quiet: bool = False
    is_code: bool = False
    monitor: bool = False
    monitor_interval: float = 10.0
    monitor_json: str | None = None


def parse_run_options(argv: Sequence[str]) -> RunOptions:
    """Parse the arguments that follow ``loopwatch run``.  A mistake ends the process with exit code 2."""
    parser = _parser()
    ours, switch, rest = _cut(argv)
    found, unknown = parser.parse_known_args(ours)
    if unknown:
        parser.error(_unknown_option(parser, unknown[0]))
    if not rest and switch:
        example = {"-m": "the name of a module, as in -m pytest", "-c": "code, as in -c 'import app; app.main()'"}
        parser.error(f"{switch} needs {example[switch]}")
    if not rest:
        parser.error("name the program to run: a script (app.py), -m and a module (-m pytest), or -c and code")
    if found.json is not None:
        _check_writable(parser, found.json)
    if found.monitor_json is not None:
        _check_writable(parser, found.monitor_json, "--monitor-json")
    return RunOptions(
        program=rest[0],
        is_module=switch == "-m",
        is_code=switch == "-c",
        arguments=tuple(rest[1:]),
        threshold=found.threshold,
        hang_after=found.hang_after,
        json=None if found.json is None else os.path.abspath(found.json),
        fail_on_block=found.fail_on_block,
        patterns=Patterns(found.include, found.exclude),
        quiet=found.quiet,
        monitor=found.monitor or found.monitor_interval is not None or found.monitor_json is not None,
        monitor_interval=10.0 if found.monitor_interval is None else found.monitor_interval,
        monitor_json=None if found.monitor_json is None else os.path.abspath(found.monitor_json),
    )


def seconds_above_zero(text: str) -> float:
    """Parse a duration in seconds.  Raises argparse.ArgumentTypeError for one that is not above zero and finite."""
    value = _seconds(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, such as 0.2; got {text!r}")
    return value


def seconds_of_interval(text: str) -> float:
    """Parse the monitor's interval.  Raises argparse.ArgumentTypeError for one that is too short."""
    value = _seconds(text)
    if value < 0.01:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, at least 0.01; got {text!r}")
    return value


def seconds_or_zero(text: str) -> float:
    """Parse a duration in seconds, or 0 for "off".  Raises argparse.ArgumentTypeError for anything else."""
    value = _seconds(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, or 0 for never; got {text!r}")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, such as 0.2; got {text!r}") from None
    if not math.isfinite(value) or value > 1e9:
        raise argparse.ArgumentTypeError(f"must be a finite number of seconds; got {text!r}")
    return value


def _unknown_option(parser: argparse.ArgumentParser, option: str) -> str:
    """Say what to write instead."""
    name = option.partition("=")[0]
    if name[1:2] in _PYTHON_OPTIONS and not name.startswith("--"):
        return f"{option} is an option of Python itself: write `python {name[:2]} ... -m loopwatch run ...`"
    known = [word for action in parser._actions for word in action.option_strings if word.startswith("--")]
    close = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"no such option: {option}.{hint} There are {', '.join(known)}"


def _cut(argv: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """Cut the arguments into our own, ``-m`` or ``-c`` (None: a script), and the program with its own."""
    ours: list[str] = []
    position = 0
    while position < len(argv):
        word = argv[position]
        if word == "--":
            return ours, None, list(argv[position + 1 :])
        if word.startswith(("-m", "-c")):
            attached = [word[2:]] if len(word) > 2 else []
            return ours, word[:2], attached + list(argv[position + 1 :])
        if not word.startswith("-") or word == "-":
            return ours, None, list(argv[position:])
        ours.append(word)
        position += 1
        if word in _TAKE_VALUE and position < len(argv):
            ours.append(argv[position])
            position += 1
    return ours, None, []


def _check_writable(parser: argparse.ArgumentParser, path: str, option: str = "--json") -> None:
    if not path:
        parser.error(f"{option}: name the file to write")
    if path == "-":
        parser.error(f"{option}: name the file to write, not '-': stdout is the program's; /dev/stderr is possible")
    trouble = why_not_writable(path)
    if trouble is not None:
        parser.error(f"{option}: {trouble}")


def _pattern(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("an empty pattern matches nothing; write one such as '*/app/*'")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="loopwatch run",
        usage=_USAGE,
        allow_abbrev=False,
        description=(
            "Run a Python program as `python` would, watch every event loop in it, and report to stderr what blocks "
            "them: each block as it ends, and a summary at exit."
        ),
        epilog=f"The exit code is the program's own, or {EXIT_BLOCKED} with --fail-on-block.",
    )
    parser.add_argument(
        "--threshold",
        type=seconds_above_zero,
        default=0.2,
        metavar="SEC",
        help="report a loop that is busy without a break for longer than this, in seconds (default: 0.2)",
    )
    parser.add_argument(
        "--hang-after",
        type=seconds_or_zero,
        default=10.0,
        metavar="SEC",
        help="report a loop that has not come back for this long while it still hangs, with the stacks of all threads, "
        "then again at doubling intervals; in seconds, 0: never (default: 10)",
    )
    parser.add_argument("--json", metavar="FILE", help="at exit, write all that was found to FILE as JSON")
    parser.add_argument(
        "--fail-on-block",
        action="store_true",
        help=f"exit with {EXIT_BLOCKED} if there was a block and the program itself ended with 0",
    )
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        type=_pattern,
        metavar="PATTERN",
        help="report only blocks whose file, function or module.function matches this shell pattern, such as "
        "'*/app/*' or 'app.db.*'; may be given several times",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        type=_pattern,
        metavar="PATTERN",
        help="do not report those that match; wins over --include",
    )
    parser.add_argument(
        "--monitor",
        action="store_true",
        help="watch tasks, timers and memory too: report what grows, when it is seen, and at the end all that grew",
    )
    parser.add_argument(
        "--monitor-interval",
        type=seconds_of_interval,
        metavar="SEC",
        help="seconds between two samples of --monitor, at least 0.01 (default: 10)",
    )
    parser.add_argument("--monitor-json", metavar="FILE", help="add a line of JSON to FILE for each alarm of --monitor")
    parser.add_argument(
        "--quiet", action="store_true", help="print no blocks and no summary (a loop that hangs is still reported)"
    )
    return parser
