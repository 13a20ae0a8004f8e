"""What the events of a suspension change in a job, one by one."""

from __future__ import annotations

from typing import Final

from tests.unit.core_kit import FATAL, NOW, REDRIVE, SLEEPS, after, job_in, report
from tidemill.schemas.words import Reason, State
from tidemill.streams.commands import Dispatch, Rescue, Resume
from tidemill.streams.job import Job

LATER: Final = NOW + 60_000


def woken(job: Job | None) -> Job:
    """The same job, when its instant has come."""
    return after(job, Resume(), now=LATER)


def test_a_suspension_takes_nothing_and_says_what_it_waits_for() -> None:
    job = job_in(State.AWAITING)
    assert job is not None
    assert (job.attempt, job.epoch, job.suspensions) == (0, 1, 1)
    assert (job.waits_for, job.due_at) == (("suspension", "sleep", "nap"), LATER)
    assert (job.reason, job.worker) == (Reason.SLEEPING, None)


def test_what_goes_on_is_the_same_attempt_and_waits_anew() -> None:
    job = woken(job_in(State.AWAITING))
    assert (job.state, job.queued_at) == (State.PENDING, LATER)
    assert (job.waits_for, job.due_at, job.reason) == (None, None, None)
    again = after(job, Dispatch(), now=LATER)
    assert (again.attempt, again.epoch) == (1, 2)


def test_rescues_count_since_the_last_suspension() -> None:
    rescue = Rescue(Reason.WORKER_LOST)
    job = after(job_in(State.RUNNING), rescue, Dispatch(), rescue, Dispatch())
    assert (job.rescues, job.epoch) == (2, 3)
    asleep = after(job, report("suspended", 3, waits=SLEEPS))
    assert (asleep.rescues, asleep.interruptions, asleep.returns) == (0, 0, 0)


def test_a_redriven_run_may_suspend_as_often_as_the_first() -> None:
    job = after(woken(job_in(State.AWAITING)), Dispatch(), now=LATER)
    assert job.suspensions == 1
    failed = after(job, report("failed", 2, error=FATAL), now=LATER)
    assert after(failed, REDRIVE, now=LATER).suspensions == 0
