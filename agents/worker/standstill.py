"""Times in which the loop stood still: what began before them, and what follows once they are over.

Owns the pulse as the executor uses it, and the one line that tells of a standstill. Refuses to know
slots, and what becomes of those that waited.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from tidemill.agents import clocks
from tidemill.agents.worker.attempts import Attempt
from tidemill.agents.worker.pulse import PAUSE_SECONDS, Pulse
from tidemill.schemas.marks import mark_of

logger = logging.getLogger("tidemill.worker")


class Standstill:
    """Of one worker; `types` are those that it runs."""

    def __init__(self, pulse: Pulse, types: Iterable[str]) -> None:
        self._pulse = pulse
        self._names = sorted(types)
        self._numbers: Mapping[str, int] = {name: at for at, name in enumerate(self._names)}

    def may_begin(self, job: Mapping[str, Any]) -> bool:
        """The handler of this job is about to be called. False when the loop has stood still until
        now: others may know by then that the job had not begun. The mark comes first, so that who
        sees the loop stand still from here on knows of this job."""
        mark = mark_of(job["job_id"], job["epoch"])
        self._pulse.begin(mark, self._numbers[job["type"]], job["timeout_ms"])
        return not self._pulse.is_paused

    def latest(self) -> str:
        """Which handlers began last, for a line of the log."""
        return f"began last: {self._pulse.latest(self._names)}"

    def turn(self, swept_seconds: float) -> float:
        """The loop turns, as it does every `swept_seconds`: how much longer it has stood still, 0
        when that is nothing to speak of."""
        paused = clocks.monotonic() - self._pulse.turned_at - swept_seconds
        self._pulse.turn()
        if paused <= PAUSE_SECONDS:
            return 0.0
        logger.warning(
            "the worker stood still for %.1f s: code of a handler held the loop or the "
            "interpreter, and nothing else could go on. Handlers that began last: %s. Jobs that "
            "waited here are handed back, and time-outs of running ones are that much longer; a "
            "handler with process=True would hold up nobody",
            paused, self._pulse.latest(self._names),
        )
        return paused


def put_off(attempts: Iterable[Attempt], seconds: float) -> None:
    """Time in which nobody could be told counts for nobody's time-out; what has ended meanwhile has
    ended by itself."""
    for attempt in attempts:
        attempt.deadline += seconds
        if attempt.told_at:
            attempt.told_at += seconds
