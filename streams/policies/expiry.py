"""`expires_at`: a job that has not begun by then is not wanted any more.

Owns that rule and its timers. What was dispatched once has begun in time, and never expires.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidemill.schemas.words import TERMINAL_STATES, Reason
from tidemill.streams.commands import Obey
from tidemill.streams.job import Job, JobKey, Spec, WaitKey
from tidemill.streams.policies.base import GO, Policy, Verdict, expire

if TYPE_CHECKING:
    from tidemill.streams.job_type import JobType
    from tidemill.streams.turn import Turn

EXPIRED: Final = expire(Reason.EXPIRED_BEFORE_START)
_OVER: Final = TERMINAL_STATES


def is_expired(spec: Spec, now_ms: int) -> bool:
    return spec.expires_at is not None and spec.expires_at <= now_ms


def is_too_late(job: Job, now_ms: int) -> bool:
    """Whether the job has expired."""
    return job.epoch == 0 and is_expired(job.spec, now_ms)


class Expiry(Policy):
    """`expires_at` of requests."""

    def __init__(self) -> None:
        super().__init__("expiry", is_for_requests=True)

    def admit(self, turn: Turn, spec: Spec, job_type: JobType | None) -> Verdict:
        return EXPIRED if is_expired(spec, turn.now_ms) else GO

    def may_start(self, turn: Turn, job: Job) -> Verdict:
        """Asked at the start too, as the timer may be far behind."""
        return EXPIRED if is_too_late(job, turn.now_ms) else GO

    def may_redrive(self, turn: Turn, job: Job) -> Reason | None:
        """A redrive would only lose the dead letter."""
        return Reason.EXPIRED_BEFORE_START if is_too_late(job, turn.now_ms) else None

    def place(self, turn: Turn, before: Job | None, after: Job) -> None:
        expires_at = after.spec.expires_at
        is_new = before is None or before.state in _OVER
        if is_new and expires_at is not None and after.waits:
            turn.set_timer(self.id, expires_at, after.key)

    def on_timer(self, turn: Turn, name: JobKey | WaitKey) -> None:
        job = turn.job(name)
        # The timer may be that of an earlier job of this id.
        if job is not None and job.state not in _OVER and is_too_late(job, turn.now_ms):
            turn.command(name, Obey(EXPIRED))
