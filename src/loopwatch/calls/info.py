"""A blocking call as the user sees it: immutable, printable, picklable."""

import traceback
from dataclasses import dataclass, field

from loopwatch.findings import Cause
from loopwatch.printable import printable

__all__ = ["ONE", "ONE_OR_SEVERAL", "BlockingCallInfo"]

ONE = "one"
ONE_OR_SEVERAL = "one or several from the same line"


@dataclass(frozen=True)
class BlockingCallInfo:
    """One call that kept an event loop for at least the monitor's threshold.

    ``method_name`` is qualified, such as ``myapp.service.process_data`` or ``time.sleep``; ``duration_ms`` is in
    milliseconds; ``is_c_call`` tells whether the function is written in C.

    ``file`` and ``line`` are where the call was made, in the innermost frame that the monitor's paths do not leave out;
    None for a C function that the loop called by itself, as in ``call_soon(time.sleep, 1)``;
    ``stack`` is the whole stack, outermost first, from what the loop called inwards.  ``cause`` is why it took time,
    ``detail`` the same in plain English; None with the engine "exact", which does not look.  ``thread`` is the name of
    the loop's thread, ``task`` that of the asyncio task.

    ``own_code`` tells that no single call is to blame but a coroutine's own body, between two of its awaits:
    ``method_name`` is then the coroutine's and ``duration_ms`` what is left without the calls reported themselves.
    ``precision_ms`` is how much shorter or longer it may have been in truth (0 with the engine "exact").  ``calls`` is
    "one", or "one or several from the same line" where short calls made one after the other would look the same.
    """

    method_name: str
    duration_ms: float
    is_c_call: bool = False
    file: str | None = None
    line: int | None = None
    stack: tuple[traceback.FrameSummary, ...] = field(default=(), hash=False, compare=False)
    cause: Cause | None = None
    thread: str | None = None
    task: str | None = None
    detail: str | None = None
    own_code: bool = False
    precision_ms: float = 0.0
    calls: str = ONE

    def __str__(self) -> str:
        what = "own code of " if self.own_code else ""
        text = f"{what}{printable(self.method_name)} took {self.duration_ms:.1f} ms"
        if self.calls != ONE:
            text += f" ({self.calls})"
        if self.file is not None:
            text += f" at {printable(self.file)}:{self.line}"
        if self.detail:
            text += f", cause: {self.detail}"
        if self.task:
            text += f", task {printable(self.task)!r}"
        return text
