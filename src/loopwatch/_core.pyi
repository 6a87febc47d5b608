"""The C core, as Python sees it.  Durations and times are whole nanoseconds; stacks are outermost first."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Final, TypedDict

RawFrame = tuple[str, str, int, int, int, int]
"""filename, qualified name, line, end line, column, end column (UTF-8 byte offsets from 0).

Line 0 and columns -1 mean unknown.
"""

class RawSegment(TypedDict):
    frames: list[RawFrame]
    omitted: int  # frames left out between the outer and the inner part of a very deep stack
    duration_ns: int
    samples: int
    cause: str  # one of CAUSES
    syscall: str | None  # name of the system call the thread sat in
    holder_id: int | None  # native id of the thread that held the GIL
    holder_comm: str | None  # the kernel's name of that thread when it was seen
    holder_frames: list[RawFrame] | None
    task: str | None  # name of the asyncio task that ran
    callback: str | None  # what the loop called: coroutine or function, qualified
    callback_is_c: bool  # it is a C function that the loop called by itself
    callback_index: int | None  # which of the total it was, from 0; None of a known total: for I/O, or a timer
    callback_total: int | None  # how many callbacks the iteration ran; uvloop: without those for I/O and timers
    callback_framed: bool  # its frames tell it from the next one: the loop has a frame of its own
    request: int  # number of the request it, or the GIL's holder, worked for; 0 unknown
    marks: list[tuple[int, int]]  # of each frame: co_flags; 1 another call than in the segment before, 2 called from C
    advances: int  # samples of it before which the thread may have run since the sample before
    shifts: int  # samples of it in which the innermost frame was at another instruction than before
    slack_ns: int  # between its first sample and the one before, or the block's begin
    steady_ns: int  # between its first sample and its last

class RawBlock(TypedDict):
    start_ns: int  # CLOCK_MONOTONIC
    wall_ns: int  # Unix time at which it began
    duration_ns: int
    threshold_ns: int
    stopped_ns: int  # of the duration: the whole process did not run (SIGSTOP, debugger)
    starved_ns: int  # of the duration: ready to run, but the CPU was busy with others
    stall: bool  # told apart: mostly stopped or starved, and under the threshold without that
    thread_ident: int
    thread_native_id: int
    segments: list[RawSegment]
    dropped: int  # samples that found no room
    captured: int  # segments whose stack was taken under the GIL, as memory cannot be read from outside

CAUSES: Final[tuple[str, ...]]  # python c_call c_call_released syscall lock gil starved stopped gc import unknown
LAYOUT: Final[str]  # "exact" | "fallback: why": how stacks of other threads are read

class Scope:
    """A stretch of watching on one Watch.  close() is idempotent."""

    closed: bool
    def cut(self) -> None: ...  # what the loop is busy with now is taken for ended; from any thread
    def take(self) -> list[RawBlock]: ...
    def close(self) -> list[RawBlock]: ...

class Watch:
    """One watched loop.  Its probe is installed by the first scope and taken away with the last."""

    kind: str  # selector-epoll | selector | uv | trio | generic
    exact: bool  # spans are measured by a probe, not looked for by the watchdog
    scopes: int  # how many are open
    busy_since: int  # when the span that lasts began (monotonic); 0: it waits
    def __init__(self, loop: Any, kind: str) -> None: ...
    def open_scope(
        self, threshold_ns: int, interval_ns: int, on_block: Callable[[RawBlock], object] | None = None
    ) -> Scope: ...
    def busy(self) -> None: ...  # trio: after_io_wait
    def idle(self) -> None: ...  # trio: before_io_wait
    def stats_open(self) -> LoopStats: ...  # count spans and callbacks from now on
    def stats_close(self) -> None: ...  # once for each stats_open()
    def abandon(self) -> None: ...  # the loop is being closed: take the probe away, keep findings

def set_hang_report(after_ns: int, fd: int) -> None:
    """Report loops that have not come back for after_ns, then at doubling intervals; 0 switches it off."""

def watchdog_info() -> dict[str, int]: ...  # samples, ticks, cpu_ns, watches, failed_reads, running
def stress_sampling(thread_ident: int, interval_ns: int) -> None:
    """For tests: sample that thread as fast as asked, discarding results; interval_ns 0 ends it."""

def stack_of(native_id: int) -> list[RawFrame]: ...  # read as the watchdog would, of any thread

# --- creation stacks ---

def creation_here(skip: int) -> list[RawFrame]: ...  # the caller's own stack, without its `skip` innermost frames
def creation_info() -> dict[str, int]: ...  # stacks, bytes: distinct creation stacks now remembered

# --- objects ---

def count_objects() -> dict[type, tuple[int, int]]:
    """How many objects of each type the garbage collector tracks, and how many bytes they are themselves."""

def referrers(targets: tuple[Any, ...], nanoseconds: int, /) -> tuple[list[tuple[int, Any]], bool]:
    """What refers to each target, as (its index, what refers to it), and whether time sufficed to see everything."""

def objects_of(types: tuple[type, ...], nanoseconds: int, /) -> tuple[list[tuple[int, Any]], bool]:
    """The objects of exactly these types that the garbage collector tracks, in the same form."""

# --- what a scope made ---

RESOURCE_SCOPE: ContextVar[tuple[int, ...]]  # the marks of the guards under which code runs

class Origin:
    """Where something was made while a guard was open."""

    serial: int  # grows by one a making
    thread: int  # ident of the thread that made it
    scope: tuple[int, ...] | None  # what RESOURCE_SCOPE was there
    def frames(self) -> list[RawFrame]: ...

class AsyncgenHook:
    """Stands before a hook of sys.set_asyncgen_hooks()."""

class Timers:
    """The timers of one loop, for all guards on it."""

    def end(self) -> None: ...  # once for each timers_begin()
    def since(self, serial: int) -> list[tuple[Any, Origin, int]]: ...  # handle, where, how often its callback

def origin_serial() -> int: ...
def openings_begin() -> int: ...  # see descriptors, processes and executors made from now on
def openings_end() -> None: ...  # once for each openings_begin()
def opened_at(fd: int, dev: int, ino: int) -> Origin | None: ...
def started_at(pid: int) -> Origin | None: ...
def executors_made(since: int) -> list[tuple[Any, Origin, int]]: ...
def selectors_made(since: int) -> list[tuple[Any, Origin, int]]: ...
def descriptors() -> bytes: ...  # a snapshot
def descriptors_since(snapshot: bytes) -> list[tuple[int, int, int, int]]: ...  # fd, mode, dev, ino
def children_mark() -> tuple[int, int, int]: ...  # a moment
def children_since(mark: tuple[int, int, int]) -> list[tuple[int, str, int, str]]: ...  # pid, state, start, comm
def asyncgens_begin() -> AsyncgenHook: ...  # of this thread
def asyncgens_end(hook: AsyncgenHook) -> None: ...
def asyncgens_since(serial: int) -> list[tuple[Any, Origin, int]]: ...  # generator, where begun, 1: finalised
def asyncgens_dropped(serial: int) -> tuple[list[tuple[Origin, str, str, int]], int]: ...  # ..., how many more
def loop_ready(loop: Any) -> Any: ...  # its own queue of callbacks; None: unknown
def loop_timers(loop: Any) -> list[Any] | None: ...  # handles, some may be cancelled; None: unknown
def timers_begin(loop: Any, names: tuple[str, ...], passing: tuple[Any, ...]) -> Timers: ...

# --- threads (threads.c, threadlook.c) ---

class ThreadRecord:
    """Where and what a thread was begun as."""

    threading: bool  # by a threading.Thread
    thread: Any  # that Thread; None when it is gone
    target: str | None  # qualified name of the function, of a thread that is no threading.Thread's
    module: str | None
    born_ns: int  # CLOCK_MONOTONIC
    def creation(self) -> list[RawFrame]: ...

RawThread = tuple[int, int, int, int, ThreadRecord | None, int]
"""number of its thread state (grows, never used twice), ident, native id (0: has not run yet), begun by _thread (1 yes,
0 no, -1 not told), record, 1 if it was begun inside other scopes only."""

class ThreadScope:
    """A stretch in which threads are noted.  close() is idempotent; dropping it closes it too."""

    open: bool
    def threads(self) -> list[RawThread]: ...  # begun since it was made, newest first, without the caller's own
    def close(self) -> None: ...

RawDoing = tuple[str, str | None, int, int, list[RawFrame] | None]
"""what: python c_call gc runs call lock gil asleep unknown ended; system call; its first argument; native id of the
thread that has the GIL waited for; stack, None where it cannot be read."""

def threads_doing(pairs: Sequence[tuple[int, int]]) -> list[RawDoing]: ...  # pairs: number of a thread state, native id
def own_tids() -> tuple[int, int]: ...  # loopwatch's own threads: watchdog, capture; 0: there is none

# --- task records ---
# --- task records -----------------------------------------------------------------------------------------------------

SCOPE: Final[ContextVar[Any]]  # the token of the guard under which something is created

class TaskRecord:
    """What is remembered of one task.  It dies with the task."""

    seq: int  # when its creation began: 1 and up, over all loops
    order: int  # when it was recorded
    parent: str | None  # name of the task that created it
    parent_seq: int  # 0: unknown
    born_ns: int  # CLOCK_MONOTONIC
    past_factory: bool
    adopted: bool  # there before; only marks a place
    omitted: int  # frames left out of the middle of a very deep creation stack
    def frames(self) -> list[RawFrame] | None: ...  # None: recorded later than it was created

class TaskFactory:
    """The tracking of one loop; on 3.14 and later it is the loop's task factory as well."""

    below: Any  # the factory that was there before
    installed: int
    in_place: bool  # the loop's factory is this one, now
    trackers: int
    alive: int
    born: int

def tasks_open(loop: Any) -> TaskFactory: ...
def tasks_close(factory: TaskFactory) -> None: ...
def tasks_adopt(factory: TaskFactory, tasks: Sequence[Any]) -> int: ...  # records for tasks older than the tracking
def task_mark() -> int: ...  # the order of the newest record
def task_record(task: Any) -> TaskRecord | None: ...
def task_frames(task: Any) -> list[RawFrame] | None: ...  # its creation stack, also while it is being destroyed
def task_value(task: Any, var: ContextVar[Any]) -> Any: ...  # of a variable, in the task's own context; or None
def task_token(task: Any) -> Any: ...  # the value of SCOPE in the task's own context, or None
def task_records(factory: TaskFactory | None, since: int, pending: bool) -> list[tuple[Any, TaskRecord]]: ...
def task_list_mark(factory: TaskFactory) -> bool: ...  # whether every task of this thread has a record now
def task_list_look(
    since: int, whole: bool
) -> bool: ...  # records for what came past the factory; whether it could tell
def task_list_why() -> str | None: ...
def task_list_hooked() -> bool: ...

# --- requests (requests.c) ---

def requests_watch(var: ContextVar[Any], value: Any) -> bool:
    """Let samples read `number`, a slot of the values of var like this one; False where that cannot be done."""

def request_here() -> int: ...  # the number that a sample of this thread would read; 0: none

# --- sampled allocations ---

def alloc_start(sample_bytes: int) -> None: ...
def alloc_stop() -> None: ...
def alloc_read() -> list[tuple[list[RawFrame], str | None, int, int, int, int]]:
    """The samples not freed yet: stack, coroutine, size, bytes it stands for, born (monotonic ns), id of the stack."""

def alloc_info() -> dict[str, Any]: ...  # on, live, taken, dropped, sample_bytes, started_ns

# --- what the monitor counts ---

class RawHistogram(TypedDict):
    count: int
    sum_ns: int
    max_ns: int
    buckets: list[tuple[int, int]]  # first value beyond it (ns), how many; empty ones are left out

class RawLoopStats(TypedDict):
    lag: RawHistogram  # busy spans
    callbacks: RawHistogram  # empty where the loop runs callbacks of its own (uvloop, trio)
    ready: int | None
    timers: int | None
    since_ns: int
    now_ns: int
    open: bool  # counted still

class LoopStats:
    """Histograms of one loop's spans and callbacks."""

    loop: Any
    def read(self) -> RawLoopStats: ...

class RawTaskGroup(TypedDict):
    number: int  # from 1 on; 0: the tasks that found no group
    coro: str | None
    born: int
    pending: int
    retained: int  # done, and something still holds them
    returned: int
    failed: int
    cancelled: int
    destroyed: int  # freed while pending
    unretrieved: int  # of those freed: failed, and nobody asked for the exception
    unretrieved_held: int
    held: int
    steps: int
    busy_ns: int
    longest_ns: int
    oldest_ns: int
    age_sum_ns: int
    old: int  # of those pending: at least as old as task_sampler() was asked for
    old_retained: int  # the same of those done and held
    sites: list[tuple[RawFrame | None, str, int]]  # where they wait, type of what they wait for, how many
    examples: list[Any]  # at most three records of the oldest pending ones: call them for the task

class TaskSampler:
    """Looks at all tasks of the tracked loops, slice by slice."""

    def step(self, budget_ns: int) -> bool: ...  # whether all were looked at
    def result(self) -> list[RawTaskGroup]: ...

def count_tasks(delta: int) -> None: ...  # 1: count tasks by coroutine from now on, -1: no longer
def task_sampler(old_ns: int = 0) -> TaskSampler: ...
def count_unretrieved(task: Any) -> bool: ...  # a task that dies and whose exception nobody asked for
def task_group_frames(number: int) -> list[RawFrame]: ...  # creation stack of a group
def handle_run_active() -> bool: ...
def future_end(future: Any) -> tuple[str, bool]: ...  # unknown pending returned failed cancelled; never retrieved

# Where suspended tasks are, and whether anything alive can wake them.  A link is a coroutine, generator or the like.

def await_chain(task: object) -> tuple[list[RawFrame], Any, list[Any]]:
    """Frames and links of what a task, or a coroutine, awaits; between them the future (or other object) at the end."""

def task_coroutine(task: object) -> Any:
    """What a task runs, or None: for one that gave it up (an eager one that ended in its first step)."""

def await_site(task: object) -> tuple[RawFrame, Any, int, int] | None:
    """Its innermost frame in the program's own code, what is awaited, a hash of the chain, its depth."""

def await_hashes(tasks: list[Any]) -> list[int]: ...  # of each one's chain; 0 for one that does not wait
def frame_local(link: object, name: str, default: Any = None) -> Any: ...  # a suspended frame's variable
def frame_state(link: object) -> str: ...  # created, suspended, running, finished, unknown
def set_library_folders(folders: tuple[str, ...]) -> None: ...  # for await_site: what is not the program's own
def stuck_tasks(loop: object) -> list[tuple[Any, str]]: ...  # those of a loop (None: all), with the reason
def stuck(
    tasks: list[Any] | tuple[Any, ...] | set[Any] | frozenset[Any] | dict[Any, Any],
    nanoseconds: int = 0,  # of CPU time; beyond, the answer is empty; 0: no limit
    /,
) -> dict[Any, str]: ...

# --- memory ---

RawLink = tuple[str, Any, RawFrame | None]  # how, name or key or index, place of a suspended frame

def held_by(
    box: list[Any], own_frames: int, skip: tuple[Any, ...]
) -> tuple[str, Any, int | None, Any, list[tuple[RawLink, Any]]] | None:
    """What keeps the one object in a list alive: root kind, detail, thread, object, links; newest frames left out."""

# --- blocking calls ---

def calls_report(function: Callable[[Any, int, int, int], bool] | None, threshold_ns: int = 0) -> None:
    """Tell of each call that took so long: function(callable or code, is C, ns, of which told before) -> told."""

def calls_enter() -> None: ...  # measure the calls of this thread; RuntimeError where another profiler is (3.11)
def calls_leave() -> None: ...
def calls_hooks(disable: object) -> tuple[Any, Any, Any, Any]: ...  # 3.12 +: for begin, end, C begin, C end
def calling_both(first: Callable[[Any], object], second: Callable[[Any], Any]) -> Callable[[Any], Any]: ...
def call_guarded(callback: Callable[[Any], object], info: Any) -> None: ...  # its exceptions go to sys.unraisablehook
def retained(starts: list[Any], limit: int) -> tuple[dict[type, tuple[int, int]], bool, bool]:
    """What would be freed if these objects went: count and bytes by type; whether cut; whether a frame of it runs."""
