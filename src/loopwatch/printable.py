"""Text from outside made safe to print: nothing in it can drive a terminal or forge a line of a log.

Names of files, functions, tasks and threads may hold any character.  Those that are not seen (control characters, marks
that turn the direction of writing, lone surrogates) are written as Python's escapes.  Reports for machines are exact.
"""

import unicodedata

_UNSEEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    """The text on one line, each character that is not seen written as its escape, such as ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(_escape(character) if _is_unseen(character) else character for character in text)


def printable_source(text: str) -> str:
    """Formatted lines with a ``?`` for each character that is not seen, so that what is underlined stays in place."""
    if all(line.isprintable() for line in text.split("\n")):
        return text
    return "".join("?" if _is_unseen(character) and character not in "\n\t" else character for character in text)


def _is_unseen(character: str) -> bool:
    return not character.isprintable() and unicodedata.category(character) in _UNSEEN


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
