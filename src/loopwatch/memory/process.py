"""What the kernel says of this process's memory."""

from dataclasses import dataclass

__all__ = ["MEGABYTE", "ProcessMemory", "process_memory"]

MEGABYTE = 1024 * 1024


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of memory of this process.

    ``rss``: resident, what others share included.  ``vms``: address space.  ``uss``: resident and its own alone, what
    would be freed if it ended; None where the kernel does not tell.  ``peak``: the most that was ever resident.
    ``swap``: swapped out.
    """

    rss: int
    vms: int
    uss: int | None
    peak: int
    swap: int


def process_memory(*, uss: bool = True) -> ProcessMemory:
    """Read this process's memory now.  ``uss`` costs some milliseconds for a large process: False leaves it out.

    Raises OSError where /proc cannot be read.
    """
    status = _kilobytes("/proc/self/status")
    own: int | None = None
    if uss:
        try:
            parts = _kilobytes("/proc/self/smaps_rollup")
            own = parts["Private_Clean"] + parts["Private_Dirty"]
        except (OSError, KeyError):  # a kernel before 4.14, or one that refuses
            own = None
    return ProcessMemory(
        rss=status.get("VmRSS", 0),
        vms=status.get("VmSize", 0),
        uss=own,
        peak=status.get("VmHWM", 0),
        swap=status.get("VmSwap", 0),
    )


def _kilobytes(path: str) -> dict[str, int]:
    """The lines `Name:  123 kB` of a file of the kernel's, in bytes."""
    found = {}
    with open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            words = line.split()
            if len(words) == 3 and words[2] == "kB":
                found[words[0].rstrip(":")] = int(words[1]) * 1024
    return found
