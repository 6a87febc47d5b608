"""The timers of a loop and what they will call; of uvloop's, which do not show it, too."""

import gc
import itertools
from collections.abc import Callable
from typing import Any

from loopwatch import _core

__all__ = ["arguments_of", "callback_of", "timers_of"]


_A_FEW = 200


def timers_of(loop: Any, most: int) -> list[Any]:
    """The handles of its timers, cancelled ones too, but no more than so many; empty where they are not known.

    Of uvloop's, which are in no order and are slow to look into, all of a few or none.
    """
    scheduled = getattr(loop, "_scheduled", None)
    if isinstance(scheduled, list):
        return list(itertools.islice(scheduled, most))
    known = _core.loop_timers(loop) or []
    return known if len(known) <= _A_FEW else []


def callback_of(handle: Any) -> Callable[..., Any] | None:
    """What a timer will call; None for a cancelled one, and for one of uvloop's that ran."""
    found: Callable[..., Any] | None = None
    if hasattr(handle, "_callback"):
        found = handle._callback
    else:
        found = next((one for one in _fields(handle) if callable(one) and one is not type(handle)), None)
    return found


def arguments_of(handle: Any) -> tuple[Any, ...]:
    """What it will be called with."""
    if hasattr(handle, "_args"):
        return handle._args or ()
    return next((one for one in _fields(handle) if isinstance(one, tuple)), ())


def _fields(handle: Any) -> list[Any]:
    """What a handle of uvloop holds: the fields of its compiled class cannot be asked for by name."""
    return gc.get_referents(handle)
