"""What is said of attempts that failed: a line each, a trace for some of a kind, a count of others.

Owns how many lines and traces a second reach the log, and how many traces reach events. Refuses to
know what becomes of the attempt: the message of each one is in its event, whatever is logged.

A trace costs as much as some ten attempts, so of a storm some are kept whole and the others name
the place that raised them. No line holds a payload; names from strangers are made safe.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from tidemill.agents import clocks
from tidemill.agents.tally import LINES_A_SECOND, Tally
from tidemill.agents.worker.stacks import Frames, place_of_frames, stack_text
from tidemill.agents.worker.traces import class_name, place_of, trace_text
from tidemill.schemas.safe_text import safe_line
from tidemill.schemas.words import ErrorCode

TRACES_A_SECOND: Final = LINES_A_SECOND  # in the log, of failures of one kind
# In events, of one kind: at 8 KiB each less than half a megabyte a second.
TRACES_KEPT_A_SECOND: Final = 50
# Failures that may be tried again and yet get a line: nothing in the handler's words tells of them.
_TOLD_CODES: Final = frozenset({ErrorCode.TIMEOUT.value, ErrorCode.PROCESS_DIED.value})

logger = logging.getLogger("tidemill.worker")


class FailureKind(NamedTuple):
    """What failures that are counted together share."""

    type_name: str
    what: str  # the exception's class, or the code
    place: str  # that raised it; "" when nothing was raised


class FailureLog:
    """Used from the loop and from handlers' threads."""

    def __init__(self, clock: Callable[[], float] = clocks.monotonic) -> None:
        self._tally: Tally[FailureKind] = Tally(clock)
        self._kept: Tally[FailureKind] = Tally(clock)
        #: Whether traces go into events (`TIDEMILL_TRACES`).
        self.keeps_traces = True
        #: False in a child process, whose parent tells how each attempt ended.
        self.tells_ends = True

    def note(self, raised: BaseException, job: Mapping[str, Any]) -> str | None:
        """An attempt of `job` raised: its trace to the log; answers with what its event keeps."""
        place = place_of(raised)
        count = self._tally.count(FailureKind(job["type"], class_name(raised), place))
        if count <= TRACES_A_SECOND:
            logger.warning(
                "attempt %s of job %s (%s) of user %s raised",
                job["attempt"], safe_line(job["job_id"]), safe_line(job["type"]),
                safe_line(job["user_id"]), exc_info=raised,
            )
        return self._kept_of(raised, job["type"], place)

    def trace_of(self, raised: BaseException, job: Mapping[str, Any]) -> str | None:
        """What the event keeps of an exception that gets no trace in the log."""
        return self._kept_of(raised, job["type"], place_of(raised))

    def _kept_of(self, raised: BaseException, type_name: str, place: str) -> str | None:
        kind = FailureKind(type_name, class_name(raised), place)
        return self._rationed(kind, partial(trace_text, raised))

    def stack_of(self, frames: Frames, type_name: str) -> str | None:
        """What the event keeps of where a handler stood when its time was over."""
        if not frames:
            return None
        kind = FailureKind(type_name, "", place_of_frames(frames))
        return self._rationed(kind, partial(stack_text, frames))

    def _rationed(self, kind: FailureKind, text: Callable[[], str]) -> str | None:
        """All of it for the first of a second, the place alone for others alike."""
        if not self.keeps_traces:
            return None
        if self._kept.count(kind) <= TRACES_KEPT_A_SECOND:
            return text()
        place = safe_line(kind.place, 500)
        return f"{place} (one of many alike; the first of a second keep all of it)"

    def note_end(self, job: Mapping[str, Any], error: dict[str, Any]) -> None:
        """An attempt failed: a line with whose it was, where no trace has told of it."""
        if not self.keeps_traces:
            error.pop("trace", None)  # of a child process, which knows no settings
        code = error["code"]
        if not self.tells_ends or code == ErrorCode.CANCELLED.value:
            return
        if error["retryable"] and code not in _TOLD_CODES:
            return
        if self._tally.count(FailureKind(job["type"], code, "")) <= LINES_A_SECOND:
            logger.warning(
                "an attempt failed",
                extra={
                    "job": safe_line(job["job_id"]), "user": safe_line(job["user_id"]),
                    "type": safe_line(job["type"]), "attempt": job["attempt"],
                    "code": safe_line(code),
                },
            )

    def tell_rest(self, *, is_last: bool = False) -> None:
        """A line for each kind of which more was seen than told; called often, and at the end."""
        self._kept.untold(is_last=is_last)
        for kind, more, seconds in self._tally.untold(is_last=is_last):
            if kind.place:
                logger.warning(
                    "%d more attempts of %s raised %s at %s within %.1f s; what each of them said "
                    "is in its event", more, safe_line(kind.type_name), kind.what, kind.place,
                    seconds,
                )
            else:
                logger.warning(
                    "%d more attempts of %s failed with %s within %.1f s", more,
                    safe_line(kind.type_name), safe_line(kind.what), seconds,
                )


FAILURES: Final = FailureLog()
"""The one of this process."""
