"""Where a handler stands while it runs: the frames of a thread or of a suspended coroutine.

Owns the walk to these frames and its bounds. Refuses to know why somebody asks, and to stop what it
looks at: a handler that goes on meanwhile gives the frames of one moment. Values of variables are
not read.
"""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Coroutine
from types import CodeType, FrameType
from typing import Any, Final

from tidemill.agents.worker.traces import FRAMES_MAX, cut
from tidemill.schemas.safe_text import safe_text

TITLE: Final = "Where it stood when its time was over (most recent call last):\n"
AWAITS_MAX: Final = 1_000  # a longer chain of awaits is one that turns in a circle

Frames = list[FrameType]


def frames_of(standing: object, begins_in: CodeType) -> Frames:
    """The frames of what runs a handler, outermost first, those nearest to where it stands.

    `standing` is a coroutine, or the number of a thread, in which frames begin below that of
    `begins_in`. Empty when there is nothing to see: not begun, or over.
    """
    if isinstance(standing, Coroutine):
        found = _awaited(standing)
        if found:
            return found
        standing = None
    frame = sys._current_frames().get(standing) if isinstance(standing, int) else None
    frames: deque[FrameType] = deque()
    while frame is not None and frame.f_code is not begins_in:
        if len(frames) < FRAMES_MAX:
            frames.appendleft(frame)
        frame = frame.f_back
    # Without the beginning in it the thread is doing something else by now.
    return [] if frame is None else list(frames)


def _awaited(coroutine: Any) -> Frames:
    """From a suspended coroutine to what it awaits; a future at the end has no frame."""
    frames: deque[FrameType] = deque(maxlen=FRAMES_MAX)
    for _ in range(AWAITS_MAX):
        frame = (
            getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
            or getattr(coroutine, "ag_frame", None)
        )
        if frame is None:
            break
        frames.append(frame)
        coroutine = (
            getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
            or getattr(coroutine, "ag_await", None)
        )
    return list(frames)


def place_of_frames(frames: Frames) -> str:
    """File and line of the last one."""
    return f"{frames[-1].f_code.co_filename}:{frames[-1].f_lineno}" if frames else ""


def stack_text(frames: Frames) -> str:
    """As Python prints a stack: bounded, and safe to show."""
    # A frame that has just ended has no line any more.
    pairs = ((frame, frame.f_lineno or frame.f_code.co_firstlineno) for frame in frames)
    lines = traceback.StackSummary.extract(pairs, lookup_lines=True).format()
    return cut(safe_text((TITLE + "".join(lines)).rstrip()))
