"""At most N attempts of a type at once, for each user: the others wait.

Owns how many attempts of each user and type are out. A job that waits for its next attempt takes up
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidemill.schemas.words import IN_FLIGHT_STATES, Reason
from tidemill.streams.job import Job, JobKey, WaitKey
from tidemill.streams.policies.base import GO, Policy, Verdict, wait

if TYPE_CHECKING:
    from tidemill.streams.job_type import JobType
    from tidemill.streams.turn import Turn

ID: Final = "concurrency"
LOOK_AGAIN_MS: Final = 60_000  # ms until a list is looked at that nobody has woken
_OUT: Final = IN_FLIGHT_STATES


class Concurrency(Policy):
    """`concurrency` of types, by user."""

    def __init__(self) -> None:
        super().__init__(ID)
        self.out: dict[WaitKey, int] = {}  # attempts that are out, by the key to wait for them

    def concerns(self, job_type: JobType | None) -> bool:
        return job_type is not None and job_type.concurrency > 0

    def may_start(self, turn: Turn, job: Job) -> Verdict:
        job_type = turn.job_type(job.spec.type)
        if job_type is None or not job_type.concurrency:
            return GO
        name = (ID, job.spec.user_id, job.spec.type)
        comes_later = job.waits_for != name and turn.waiting(name) > 0
        if not comes_later and self.out.get(name, 0) < job_type.concurrency:
            return GO
        return wait(name, Reason.CONCURRENCY_LIMITED, None)

    def define(self, turn: Turn, before: JobType | None, after: JobType) -> None:
        """What the limit is now holds for who waits already. Of a type without a limit nothing was
        counted, so the jobs are."""
        if self.concerns(after) and not self.concerns(before):
            for job in turn.jobs.values():
                if job.spec.type == after.type and job.state in _OUT:
                    self._add((ID, job.spec.user_id, job.spec.type), 1)
        elif self.concerns(before) and not self.concerns(after):
            self.out = {name: count for name, count in self.out.items() if name[2] != after.type}
        for name in turn.wait_lists(ID):
            if name[2] == after.type:
                turn.look_at(name, turn.now_ms)

    def on_timer(self, turn: Turn, name: JobKey | WaitKey) -> None:
        job_type = turn.job_type(name[2])
        if job_type is not None:
            most = job_type.concurrency or turn.waiting(name)  # the limit is gone: all may go
            free = most - self.out.get(name, 0)
            turn.wake(name, free, turn.now_ms + LOOK_AGAIN_MS)

    def place(self, turn: Turn, before: Job | None, after: Job) -> None:
        was_out = before is not None and before.state in _OUT
        is_out = after.state in _OUT
        if was_out == is_out or not self.concerns(turn.job_type(after.spec.type)):
            return
        name = (ID, after.spec.user_id, after.spec.type)
        self._add(name, 1 if is_out else -1)
        if was_out and turn.waiting(name):
            turn.look_at(name, turn.now_ms)

    def clear(self) -> None:
        self.out = {}

    def _add(self, name: WaitKey, attempts: int) -> None:
        count = self.out.get(name, 0) + attempts
        if count:
            self.out[name] = count
        else:
            self.out.pop(name, None)
