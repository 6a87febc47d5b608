"""A process watched for its life: what its loops do, what its tasks wait for, and what grows."""

from loopwatch.monitor.alarms import Alarm, LeftOut
from loopwatch.monitor.growth import Grown, GrowthReport
from loopwatch.monitor.histogram import Histogram
from loopwatch.monitor.monitor import Monitor
from loopwatch.monitor.readings import (
    AwaitReading,
    BlockReading,
    CoroutineReading,
    ExampleTask,
    LoopReading,
    OverheadReading,
    ProcessReading,
    Reading,
    TimerReading,
)

__all__ = [
    "Alarm",
    "AwaitReading",
    "BlockReading",
    "CoroutineReading",
    "ExampleTask",
    "Grown",
    "GrowthReport",
    "Histogram",
    "LeftOut",
    "LoopReading",
    "Monitor",
    "OverheadReading",
    "ProcessReading",
    "Reading",
    "TimerReading",
]
