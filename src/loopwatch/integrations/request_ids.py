"""Request ids: taken over from the header that a proxy set, else made."""

import itertools
import os

__all__ = ["HEADER", "accepted", "made"]

HEADER = "X-Request-ID"
_LONGEST = 200
_count = itertools.count(1)
_prefix = ""


def _begin() -> None:
    global _prefix
    _prefix = f"{os.getpid():x}-{os.urandom(3).hex()}-"


_begin()
os.register_at_fork(after_in_child=_begin)


def accepted(value: str) -> str | None:
    """An id that came from outside, if it is fit to be shown: printable and of at most 200 characters."""
    return value if value.isprintable() and 0 < len(value) <= _LONGEST else None


def made() -> str:
    """An id no other request has: the process id, three bytes by chance, a running number, in hexadecimal."""
    return f"{_prefix}{next(_count):x}"
