"""Unit tests need no built core: where there is none, one that measures nothing stands in for it."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest


class FakeScope:
    def __init__(self, watch: FakeWatch) -> None:
        self.watch = watch
        self.closed = False
        watch.scopes += 1

    def take(self) -> list[Any]:
        return []

    def close(self) -> list[Any]:
        if not self.closed:
            self.closed = True
            self.watch.scopes -= 1
        return []


class FakeWatch:
    exact = True

    def __init__(self, loop: Any, kind: str) -> None:
        self.kind = kind
        self.scopes = 0

    def open_scope(self, threshold_ns: int, interval_ns: int, on_block: Any = None) -> FakeScope:
        return FakeScope(self)

    def busy(self) -> None: ...

    def idle(self) -> None: ...

    def abandon(self) -> None: ...


def fake_core() -> ModuleType:
    core = ModuleType("loopwatch._core")
    core.__dict__.update(
        CAUSES=tuple("python c_call c_call_released syscall lock gil starved stopped gc import unknown".split()),
        LAYOUT="exact",
        Scope=FakeScope,
        Watch=FakeWatch,
        set_hang_report=lambda after_ns, fd: None,
    )
    return core


try:
    importlib.import_module("loopwatch._core")
except ImportError:
    for name in [name for name in sys.modules if name.partition(".")[0] == "loopwatch"]:
        del sys.modules[name]
    sys.modules["loopwatch._core"] = fake_core()


class Raw:
    """Builds what the core would hand out."""

    @staticmethod
    def segment(*frames: Any, ms: float = 100, cause: str = "python", **more: Any) -> dict[str, Any]:
        """A segment; a frame is (file, name, line) or a whole RawFrame."""
        segment = {
            "frames": [f if len(f) == 6 else (f[0], f[1], f[2], f[2], -1, -1) for f in frames],
            "omitted": 0,
            "duration_ns": round(ms * 1e6),
            "samples": 1,
            "cause": cause,
            "syscall": None,
            "holder_id": None,
            "holder_comm": None,
            "holder_frames": None,
            "task": None,
            "callback": None,
            "callback_is_c": False,
            "callback_index": None,
            "callback_total": None,
            "callback_framed": True,
            "steady_ns": 0,
        }
        assert not more.keys() - segment.keys()
        return segment | more

    @staticmethod
    def block(*segments: dict[str, Any], ms: float | None = None, **more: Any) -> dict[str, Any]:
        total = sum(segment["duration_ns"] for segment in segments)
        block = {
            "start_ns": 1_000_000_000,
            "wall_ns": 1_749_051_796_302_000_000,
            "duration_ns": total if ms is None else round(ms * 1e6),
            "threshold_ns": 200_000_000,
            "stopped_ns": 0,
            "starved_ns": 0,
            "stall": False,
            "thread_ident": 0,
            "thread_native_id": 0,
            "segments": list(segments),
            "dropped": 0,
        }
        assert not more.keys() - block.keys()
        return block | more


@pytest.fixture
def raw() -> type[Raw]:
    return Raw
