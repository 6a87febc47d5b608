"""Hangs for good in a C call that never lets go of the GIL, under names that a terminal would obey."""

import asyncio
import re

NAME = "stuck\x1b[31m\x9b1m"


def hang() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")


async def main() -> None:
    named = {"hang": hang}
    code = compile("def stuck(hang):\n    hang()\n    return 0\n", "/tmp/\x1b]0;evil\x07.py", "exec")
    exec(code, named)
    stuck = named["stuck"]
    stuck.__code__ = stuck.__code__.replace(co_name=NAME, co_qualname=NAME)
    stuck(hang)


asyncio.run(main())
