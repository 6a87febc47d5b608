"""The command line of ``loopwatch run``.

All that follows the program belongs to the program, so the line is cut there before argparse sees it.
"""

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from loopwatch.json_report import is_special
from loopwatch.summary import Patterns

EXIT_BLOCKED = 86

_TAKE_VALUE = {"--threshold", "--hang-after", "--json", "--include", "--exclude"}
_USAGE = "loopwatch run [options] SCRIPT [ARG ...]\n       loopwatch run [options] -m MODULE [ARG ...]"


@dataclass(frozen=True)
class RunOptions:
    """What ``loopwatch run`` was asked to do.  ``threshold`` and ``hang_after`` are seconds; 0 switches the latter off.

    ``program`` is the script, or with ``is_module`` the module; ``arguments`` are the program's own.
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


def parse_run_options(argv: Sequence[str]) -> RunOptions:
    """Parse the arguments that follow ``loopwatch run``.  A mistake ends the process with exit code 2."""
    parser = _parser()
    ours, module, rest = _cut(argv)
    found = parser.parse_args(ours)
    if module is None and not rest:
        parser.error("name the program to run: a script (app.py), or -m and a module (-m pytest)")
    if module == "":
        parser.error("-m needs the name of a module, as in `loopwatch run -m pytest`")
    if found.json is not None:
        _check_writable(parser, found.json)
    return RunOptions(
        program=rest[0] if module is None else module,
        is_module=module is not None,
        arguments=tuple(rest[1:] if module is None else rest),
        threshold=found.threshold,
        hang_after=found.hang_after,
        json=None if found.json is None else os.path.abspath(found.json),
        fail_on_block=found.fail_on_block,
        patterns=Patterns(found.include, found.exclude),
        quiet=found.quiet,
    )


def seconds_above_zero(text: str) -> float:
    """Parse a duration in seconds.  Raises argparse.ArgumentTypeError for one that is not above zero and finite."""
    value = _seconds(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, such as 0.2; got {text!r}")
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


def _cut(argv: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """Cut the arguments into our own, the module (None: a script) and the rest."""
    ours: list[str] = []
    position = 0
    while position < len(argv):
        word = argv[position]
        if word == "--":
            return ours, None, list(argv[position + 1 :])
        if word.startswith("-m") and not word.startswith("--"):
            if word != "-m":
                return ours, word[2:], list(argv[position + 1 :])
            rest = list(argv[position + 1 :])
            return ours, rest[0] if rest else "", rest[1:]
        if not word.startswith("-") or word == "-":
            return ours, None, list(argv[position:])
        ours.append(word)
        position += 1
        if word in _TAKE_VALUE and position < len(argv):
            ours.append(argv[position])
            position += 1
    return ours, None, []


def _check_writable(parser: argparse.ArgumentParser, path: str) -> None:
    if not path:
        parser.error("--json: name the file to write")
    if os.path.isdir(path):
        parser.error(f"--json: {path} is a folder; name a file in it")
    if is_special(path):
        return
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        parser.error(f"--json: the folder {folder} does not exist; create it with `mkdir -p {folder}`")
    if not os.access(folder, os.W_OK):
        parser.error(f"--json: the folder {folder} cannot be written to")


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
        metavar="PATTERN",
        help="report only blocks whose file, function or module.function matches this shell pattern, such as "
        "'*/app/*' or 'app.db.*'; may be given several times",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="do not report those that match; wins over --include",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print no blocks and no summary (a loop that hangs is still reported)"
    )
    return parser
