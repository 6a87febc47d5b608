"""What ``Monitor.read()`` gives: plain, immutable data.  Durations are seconds, sizes bytes, counts since the start."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loopwatch.findings import place_text
from loopwatch.monitor.histogram import Histogram
from loopwatch.requests import RequestInfo, request_text

if TYPE_CHECKING:
    from loopwatch.memory.allocations import Allocations
    from loopwatch.monitor.alarms import Alarm

__all__ = [
    "AwaitReading",
    "BlockReading",
    "CoroutineReading",
    "ExampleTask",
    "LoopReading",
    "OverheadReading",
    "Place",
    "ProcessReading",
    "Reading",
    "TimerReading",
]

Place = tuple[str, int, str]
"""File, line, qualified name of the function."""


@dataclass(frozen=True)
class TimerReading:
    """Timers of one callback that wait on a loop, without those of asyncio itself (sleeps and timeouts of tasks).

    ``place`` is where the callback is defined.  Of many timers a part is looked at, and ``count`` is an estimate.
    """

    callback: str
    place: Place | None
    count: int


@dataclass(frozen=True)
class LoopReading:
    """One event loop.

    ``lag``: every busy span, from one wait for I/O to the next, which is how late a callback can come; its count is
    the number of iterations.  ``callbacks``: every single callback; empty where the loop runs its callbacks itself
    (uvloop, trio).  ``utilization``: the share of time it was busy since the sample before; ``utilization_overall``
    since it was first seen; both from 0 to 1.  ``ready`` and ``timers``: how many callbacks wait to be run, now or
    later; None where the loop does not tell.  ``busy``: for how long it has been busy without a break now.
    ``exact`` is False where no probe fits and spans are only looked for; then ``lag`` holds long ones only.
    """

    name: str
    kind: str
    exact: bool
    running: bool
    thread: str | None
    thread_id: int
    native_id: int
    since: float
    lag: Histogram
    callbacks: Histogram
    utilization: float
    utilization_overall: float
    ready: int | None
    timers: int | None
    busy: float = 0.0
    timers_by_callback: tuple[TimerReading, ...] = ()
    read_at: float = field(default=0.0, repr=False)
    """Of ``time.monotonic()``."""

    @property
    def iterations(self) -> int:
        """How often the loop has come round."""
        return self.lag.count


@dataclass(frozen=True)
class AwaitReading:
    """Where tasks wait: ``place`` is the innermost line of the program's own, ``waits_for`` the type it awaits."""

    place: Place | None
    waits_for: str
    count: int


@dataclass(frozen=True)
class ExampleTask:
    """One of the oldest tasks: its name, age in seconds, and what it waits for, as a clause that follows the name.

    ``request`` is the web request in whose context it runs, where an integration is used.
    """

    name: str
    age: float
    wait: str
    request: RequestInfo | None = field(default=None, hash=False)

    def __str__(self) -> str:
        request = f", request {request_text(self.request)}" if self.request else ""
        return f"task {self.name!r}, {self.age:.1f} s old, {self.wait}{request}"


@dataclass(frozen=True)
class CoroutineReading:
    """All tasks of one coroutine that were created at one place, the program's own line of the creation stack.

    ``place`` is None for tasks created before the monitor began, and for those past the 4,095 places it tells apart.
    ``alive``: not done.  ``old``: of those, older than one interval of the monitor (at least a second).
    ``retained``: done, but something still holds them; ``old_retained``: born longer ago than that.
    ``born``: created while the monitor ran.  ``ended`` = ``returned`` + ``failed`` + ``cancelled``, retained ones too.
    ``destroyed``: freed while pending.  ``never_retrieved``: failed, and nobody asked for the exception.
    ``oldest``, ``mean_age``: of those alive, seconds.  ``steps``, ``busy``, ``longest_step``: runs of the coroutine
    between two awaits, seconds spent in them, and the longest one; 0 on loops that run their callbacks themselves.
    ``awaits``: where those alive wait, the most frequent first.  ``examples``: up to three of the oldest, where asked
    for.  ``groups`` are the numbers that the core knows the creation stacks by.
    """

    qualname: str
    place: Place | None
    alive: int
    old: int
    born: int
    returned: int
    failed: int
    cancelled: int
    retained: int
    old_retained: int
    destroyed: int
    never_retrieved: int
    oldest: float
    mean_age: float
    steps: int
    busy: float
    longest_step: float
    awaits: tuple[AwaitReading, ...] = ()
    examples: tuple[ExampleTask, ...] = ()
    groups: tuple[int, ...] = field(default=(), repr=False)

    @property
    def ended(self) -> int:
        """How many are done."""
        return self.returned + self.failed + self.cancelled

    def __str__(self) -> str:
        return f"{self.qualname}() created at {place_text(self.place)}"


@dataclass(frozen=True)
class BlockReading:
    """Blocks (busy spans above the monitor's ``lag``) of one line to fix and cause.  Seconds."""

    place: Place | None
    cause: str
    count: int
    total: float
    longest: float
    last: float
    """When the last one began, Unix time."""


@dataclass(frozen=True)
class ProcessReading:
    """The process.  ``rss``, ``uss``: bytes resident, and resident and its own alone (None where the kernel hides it).

    ``threads``: those Python knows; ``native_threads``: those the kernel knows.  ``gc_pauses``: collections of the
    garbage collector.  ``objects``: how many objects of each type, and their bytes; None where they were not counted.
    """

    rss: int
    uss: int | None
    threads: int
    native_threads: int
    descriptors: int
    gc_pauses: Histogram
    objects: Mapping[str, tuple[int, int]] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class OverheadReading:
    """What the monitor itself costs: samples taken, CPU seconds they took, and what found no room.

    ``tasks_unplaced``: tasks past the 4,095 creation places.  ``blocks_dropped``: blocks past 1,000 places,
    which are counted without theirs.  ``series_dropped``: series past 2,000.  ``sink_errors``: alarms that a sink
    failed to take.  ``errors``: samples that failed; ``last_error`` says how.
    """

    samples: int = 0
    seconds: float = 0.0
    last_sample: float = 0.0
    tasks_unplaced: int = 0
    blocks_dropped: int = 0
    series_dropped: int = 0
    sink_errors: int = 0
    errors: int = 0
    last_error: str | None = None


@dataclass(frozen=True)
class Reading:
    """All that a monitor knows at one moment.  ``time`` is Unix time, ``monotonic`` of ``time.monotonic()``.

    ``ended_loops`` and ``ended_lag`` are of loops that were closed meanwhile.  ``unwatched``: why some loops are not
    seen.  ``notes``: what could not be measured.
    """

    time: float
    monotonic: float
    loops: tuple[LoopReading, ...]
    coroutines: tuple[CoroutineReading, ...]
    process: ProcessReading
    blocks: tuple[BlockReading, ...]
    alarms: "tuple[Alarm, ...]"
    overhead: OverheadReading
    ended_loops: int = 0
    ended_lag: Histogram = field(default_factory=Histogram)
    unwatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    allocations: "Allocations | None" = field(default=None, repr=False)
