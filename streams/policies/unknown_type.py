"""Jobs of types that no worker has told of: they wait for one, and then go on in their order.

Owns who waits for which type and the order between those and what is asked for meanwhile. How long
they wait, and what becomes of types that nobody runs any more, is in `tidemill.streams.absences`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidemill.schemas.words import ErrorCode, Reason
from tidemill.streams.absences import UNKNOWN_TYPE_WAIT_MS, Absences
from tidemill.streams.decision import cost_of
from tidemill.streams.dispatch.schedule import waits_for_type
from tidemill.streams.job import UNKNOWN_TYPE, JobKey, Spec, WaitKey
from tidemill.streams.policies.base import GO, Policy, Verdict, fail, wait

if TYPE_CHECKING:
    from tidemill.streams.job_type import JobType
    from tidemill.streams.turn import Turn


def await_type(type_name: str, now_ms: int) -> Verdict:
    """A job of a type that nobody has told of waits for a worker that does."""
    until = now_ms + UNKNOWN_TYPE_WAIT_MS
    return wait((UNKNOWN_TYPE, type_name), Reason.UNKNOWN_TYPE, until)


def nobody_runs(spec: Spec) -> Verdict:
    """No worker told of the job's type in time."""
    where = f"no living worker of queue {spec.queue!r}" if spec.queue else "no worker"
    error: dict[str, Any] = {
        "code": ErrorCode.UNKNOWN_TYPE.value,
        "message": f"{where} runs jobs of type {spec.type!r}; start one that has it, or correct "
        "the type, and redrive the job",
        "retryable": False,
    }
    return fail(Reason.NOT_RETRYABLE, error)


class UnknownType(Policy):
    """Waits for definitions."""

    def __init__(self) -> None:
        super().__init__(UNKNOWN_TYPE)
        self.absences = Absences()
        #: Types that are known, while jobs that waited for them are let in.
        self.resolving: dict[str, None] = {}
        self._decisions_left = 0  # in this group, for jobs whose type is known now

    def concerns(self, job_type: JobType | None) -> bool:
        return job_type is None

    def admit(self, turn: Turn, spec: Spec, job_type: JobType | None) -> Verdict:
        return GO if job_type is not None else await_type(spec.type, turn.now_ms)

    def on_timer(self, turn: Turn, name: JobKey | WaitKey) -> None:
        job = turn.job(name)
        if job is not None and waits_for_type(job) and (job.due_at or 0) <= turn.now_ms:
            self.absences.add(name)

    # --- a type becomes known ---

    def begin(self, decisions_max: int) -> None:
        """A group begins, which may hold so many decisions about such jobs."""
        self._decisions_left = decisions_max

    def define(self, turn: Turn, before: JobType | None, after: JobType) -> None:
        if turn.waiting((UNKNOWN_TYPE, after.type)):
            self.resolving[after.type] = None
            self.resolve_waiting(turn)

    def resolve_waiting(self, turn: Turn) -> bool:
        """Lets jobs go on whose type is known by now, in their order. True: there are more."""
        for type_name in list(self.resolving):
            name = (UNKNOWN_TYPE, type_name)
            while self._decisions_left > 0 and (key := turn.first_of(name)) is not None:
                job = turn.job(key)
                if job is not None and waits_for_type(job):
                    turn.resolve(key, job, turn.job_type(type_name))
                    self._decisions_left -= cost_of(job)
            if turn.waiting(name):
                return True
            del self.resolving[type_name]
            turn.drop_list(name)
        return False

    def find_known(self, turn: Turn) -> None:
        """After the indices were made anew: which types that jobs wait for are known."""
        self.resolving = {
            name[1]: None
            for name in turn.wait_lists(UNKNOWN_TYPE)
            if turn.job_type(name[1]) is not None
        }

    def clear(self) -> None:
        self.absences.forget()
