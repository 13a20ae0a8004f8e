"""One living job of a user for each unique key: the others are skipped.

Owns the keys and which job holds each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidemill.schemas.words import TERMINAL_STATES, Reason
from tidemill.streams.job import Job, JobKey, Spec
from tidemill.streams.policies.base import GO, Policy, Verdict, skip

if TYPE_CHECKING:
    from tidemill.streams.job_type import JobType
    from tidemill.streams.turn import Turn

UNIQUE_BY_USER_PREFIX: Final = "\x1ftype:"  # cannot collide: ids hold no control characters
_OVER: Final = TERMINAL_STATES


def unique_key_of(asked: str | None, job_type: JobType) -> str | None:
    """The request's own key, or the one that `unique_by` gives."""
    if asked is None and job_type.is_unique_by_user:
        return UNIQUE_BY_USER_PREFIX + job_type.type
    return asked


class Uniqueness(Policy):
    """`unique_key` of requests and `unique_by` of types."""

    def __init__(self) -> None:
        super().__init__("uniqueness", is_for_requests=True)
        self.holders: dict[tuple[str, str], JobKey] = {}  # by user and key; of living jobs

    def concerns(self, job_type: JobType | None) -> bool:
        return job_type is not None and job_type.is_unique_by_user

    def admit(self, turn: Turn, spec: Spec, job_type: JobType | None) -> Verdict:
        if spec.unique_key is None:
            return GO
        holder = self.holders.get((spec.user_id, spec.unique_key))
        return GO if holder is None or holder == spec.key else skip(Reason.DUPLICATE)

    def may_redrive(self, turn: Turn, job: Job) -> Reason | None:
        key = job.spec.unique_key
        if key is None or (job.spec.user_id, key) not in self.holders:
            return None
        return Reason.DUPLICATE

    def place(self, turn: Turn, before: Job | None, after: Job) -> None:
        spec = after.spec
        if spec.unique_key is None:
            return
        name = (spec.user_id, spec.unique_key)
        if after.state not in _OVER:
            self.holders[name] = spec.key
        elif self.holders.get(name) == spec.key:
            del self.holders[name]

    def clear(self) -> None:
        self.holders = {}
