"""Awaiting jobs go on when their instant has come.

Owns that timer. Refuses to know what a job remembers (`tidemill.streams.store.memory`) and what its
going on is (`tidemill.streams.suspensions`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidemill.schemas.words import State
from tidemill.streams.commands import Resume
from tidemill.streams.job import SUSPENSION, JobKey, WaitKey
from tidemill.streams.policies.base import Policy

if TYPE_CHECKING:
    from tidemill.streams.turn import Turn


class Suspension(Policy):
    """Handlers that sleep. The schedule sets the timer of each (`Schedule.place`)."""

    def __init__(self) -> None:
        super().__init__(SUSPENSION)

    def on_timer(self, turn: Turn, name: JobKey | WaitKey) -> None:
        job = turn.job(name)
        # The timer may be that of an earlier sleep.
        if job is None or job.state is not State.AWAITING or job.due_at is None:
            return
        if job.due_at <= turn.now_ms:
            turn.command(name, Resume())
