"""The machine-readable report of ``loopwatch run --json FILE``.

One JSON document, one line, with ``"schema": "loopwatch.report/1"``.  Durations and times are seconds; times are Unix
times; stacks are outermost first.  Within version 1 keys are only added.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from loopwatch.findings import EventLoopBlock, Segment
from loopwatch.stacks import qualified_name
from loopwatch.summary import Place, Summary

SCHEMA = "loopwatch.report/1"


def document(summary: Summary, *, program: str, argv: Sequence[str], version: str) -> dict[str, Any]:
    """The report as a dictionary that ``json`` can write."""
    blocks, stalls = summary.blocks, summary.stalls
    return {
        "schema": SCHEMA,
        "version": version,
        "python": sys.version.split()[0],
        "pid": os.getpid(),
        "program": program,
        "argv": list(argv),
        "started": summary.started,
        "duration": summary.elapsed,
        "threshold": summary.threshold,
        "loops": [
            {"kind": kind, "exact": exact, "count": count} for (kind, exact), count in sorted(summary.loops.items())
        ],
        "unwatched": list(summary.unwatched),
        "block_count": summary.count,
        "stall_count": summary.stall_count,
        "groups": [
            {
                "culprit": _place(group.place),
                "count": group.count,
                "total": group.total,
                "longest": group.longest,
                "cause": group.cause,
                "why": group.why,
            }
            for group in summary.groups
        ],
        "blocks": [_block(block) for block in blocks],
        "stalls": [_block(stall) for stall in stalls],
        "dropped": {
            "blocks": summary.count - len(blocks),
            "stalls": summary.stall_count - len(stalls),
            "samples": summary.dropped_samples,
            "excluded": summary.excluded,
        },
    }


def _block(block: EventLoopBlock) -> dict[str, Any]:
    return {
        "block_id": block.block_id,
        "timestamp": block.timestamp,
        "duration": block.duration,
        "threshold": block.threshold,
        "cause": block.cause.value,
        "why": block.why,
        "culprit": _place(block.culprit),
        "innermost": _place(block.innermost),
        "task": block.task,
        "callback": block.callback,
        "request": block.request,
        "thread": {"name": block.thread_name, "ident": block.thread_id},
        "loop": block.loop,
        "callbacks": block.callbacks,
        "heaviest": None if block.heaviest is None else {"name": block.heaviest[0], "duration": block.heaviest[1]},
        "stopped": block.stopped,
        "starved": block.starved,
        "missing_reason": block.missing_reason,
        "stack": None if block.blocking_stack is None else _stack(block.blocking_stack),
        "segments": [_segment(segment) for segment in block.segments],
    }


def _segment(segment: Segment) -> dict[str, Any]:
    holder = None
    if segment.holder_thread_id is not None:
        stack = None if segment.holder_stack is None else _stack(segment.holder_stack)
        holder = {"name": segment.holder_thread, "native_id": segment.holder_thread_id, "stack": stack}
    return {
        "duration": segment.duration,
        "cause": segment.cause.value,
        "detail": segment.detail,
        "syscall": segment.syscall,
        "samples": segment.samples,
        "task": segment.task,
        "callback": segment.callback,
        "callback_index": segment.callback_index,
        "callback_total": segment.callback_total,
        "omitted": segment.omitted,
        "request": segment.request,
        "holder": holder,
        "stack": _stack(segment.stack),
    }


def _stack(stack: Sequence[traceback.FrameSummary]) -> list[dict[str, Any]]:
    return [
        {
            "file": frame.filename,
            "line": frame.lineno or 0,
            "name": qualified_name(frame),
            "end_line": frame.end_lineno,
            "column": frame.colno,
            "end_column": frame.end_colno,
            "source": frame.line,
        }
        for frame in stack
    ]


def _place(place: Place | None) -> dict[str, Any] | None:
    return None if place is None else {"file": place[0], "line": place[1], "name": place[2]}
