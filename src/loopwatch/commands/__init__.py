"""The command ``loopwatch``: one module for each verb."""

import argparse
import sys
from collections.abc import Sequence

from loopwatch.commands import run

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: those of the process) and return its exit code.

    What the watched program raises, SystemExit and KeyboardInterrupt included, is passed on.
    """
    from loopwatch import __version__

    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="loopwatch",
        description="Find what blocks asyncio, uvloop and trio event loops, and why.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"loopwatch {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("run", help=run.HELP, add_help=False)
    if arguments[:1] == ["run"]:
        return run.command(arguments[1:])
    parser.parse_args(arguments)
    return 2
