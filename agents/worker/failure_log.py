"""Lines about attempts that raised: some of a kind whole, the others counted.

Owns how many stack traces a second reach the log. Refuses to know what becomes of the attempt: the
message of each one is in its event, whatever is logged.

A trace costs as much as some ten attempts. When something that every job needs is away, all of them
fail alike: a trace of each would take the worker's time and hide everything else in the log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

TRACES_A_SECOND: Final = 5  # of failures of one kind
KIND_SECONDS: Final = 1.0

logger = logging.getLogger("tidemill.worker")

FailureKind = tuple[str, type[BaseException], str]
"""The job's type, the exception's class, and the place that raised it."""


class _Count:
    """What was seen of one kind since an instant."""

    __slots__ = ("since", "total")

    def __init__(self, since: float) -> None:
        self.since = since
        self.total = 0


class FailureLog:
    """Used from the loop and from handlers' threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[FailureKind, _Count] = {}

    def note(self, raised: BaseException, job: Mapping[str, Any]) -> None:
        """An attempt of `job` raised."""
        kind = _kind_of(raised, job["type"])
        with self._lock:
            count = self._counts.get(kind)
            if count is None:
                count = self._counts[kind] = _Count(self._clock())
            count.total += 1
            is_told = count.total <= TRACES_A_SECOND
        if is_told:
            logger.warning(
                "attempt %s of job %s (%s) of user %s raised",
                job["attempt"], job["job_id"], job["type"], job["user_id"],
                exc_info=raised,
            )

    def tell_rest(self, *, is_last: bool = False) -> None:
        """A line for each kind of which more was seen than told; called often, and at the end."""
        if not self._counts:
            return
        with self._lock:
            now = self._clock()
            over = [
                (kind, count) for kind, count in self._counts.items()
                if is_last or now - count.since >= KIND_SECONDS
            ]
            for kind, _ in over:
                del self._counts[kind]
        for (type_name, raised, place), count in over:
            more = count.total - TRACES_A_SECOND
            if more > 0:
                logger.warning(
                    "%d more attempts of %s raised %s at %s within %.1f s; what each of them said "
                    "is in its event", more, type_name, raised.__name__, place, now - count.since,
                )


def _kind_of(raised: BaseException, type_name: str) -> FailureKind:
    trace = raised.__traceback__
    if trace is None:
        return type_name, type(raised), "an unknown place"
    while trace.tb_next is not None:
        trace = trace.tb_next
    return type_name, type(raised), f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


FAILURES: Final = FailureLog()
"""The one of this process."""
