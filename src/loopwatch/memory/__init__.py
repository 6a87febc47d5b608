"""Memory that grows: what of, since when, and what keeps it alive."""

from loopwatch.memory.allocations import Allocations, AllocationSite, AllocationTrace
from loopwatch.memory.detector import MemoryLeakDetector
from loopwatch.memory.held import Chain, Link, held_by
from loopwatch.memory.process import ProcessMemory, process_memory
from loopwatch.memory.retain import Retained, RetainedTask, retained, retained_tasks
from loopwatch.memory.snapshots import Growth, MemorySnapshot, TypeGrowth, growth, show_growth, take_snapshot

__all__ = [
    "AllocationSite",
    "AllocationTrace",
    "Allocations",
    "Chain",
    "Growth",
    "Link",
    "MemoryLeakDetector",
    "MemorySnapshot",
    "ProcessMemory",
    "Retained",
    "RetainedTask",
    "TypeGrowth",
    "growth",
    "held_by",
    "process_memory",
    "retained",
    "retained_tasks",
    "show_growth",
    "take_snapshot",
]
