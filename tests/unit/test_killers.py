"""Jobs that end their worker, by the ledger's law: what a record that comes again leads to.

Owns the cases of redelivery, of rescues with their causes, and of interruptions.
"""

from __future__ import annotations

import orjson
import pytest

from tests.unit.core_kit import INTERRUPTIONS_MAX, KNOWN, NOW, WAYS, after, decide, job_in, report
from tidemill.schemas.words import EventKind, Reason, State
from tidemill.streams.commands import Dispatch, Report, Rescue
from tidemill.streams.decision import Accepted, Rejected
from tidemill.streams.job import Job
from tidemill.streams.policies.rescue import RESCUES_MAX
from tidemill.streams.store.rows import live_value, read_job

AGAIN = Reason.REDELIVERED.value
HOW = "its worker ended by SIGSEGV (signal 11)"


def again(epoch: int = 1, detail: str | None = HOW) -> Report:
    return report("returned", epoch=epoch, reason=AGAIN, detail=detail)


def kinds_of(decision: object) -> list[EventKind]:
    assert isinstance(decision, Accepted)
    return [event.kind for event in decision.events]


def test_a_record_that_comes_again_rescues_what_was_only_dispatched() -> None:
    decision = decide(job_in(State.DISPATCHED), again(), NOW, KNOWN)
    assert kinds_of(decision) == [EventKind.RESCUED]
    assert isinstance(decision, Accepted)
    assert decision.job.rescues == 1
    assert decision.job.attempt == 0
    assert decision.events[0].data == {"detail": HOW}


def test_where_nobody_knows_how_the_worker_ended_the_story_says_so() -> None:
    decision = decide(job_in(State.DISPATCHED), again(detail=None), NOW, KNOWN)
    assert isinstance(decision, Accepted)
    assert decision.events[0].data == {"detail": "its worker ended without a word"}


def test_a_rescued_job_whose_start_nobody_told_was_not_begun() -> None:
    job = after(job_in(State.DISPATCHED), again(), Dispatch())
    for epoch in range(2, 20):
        decision = decide(job, again(epoch), NOW, KNOWN)
        assert kinds_of(decision) == [EventKind.RETURNED]
        assert isinstance(decision, Accepted)
        assert decision.job.rescues == 1
        job = after(decision.job, Dispatch())


@pytest.mark.parametrize("state", [*State, None])
def test_a_record_that_comes_again_says_nothing_of_what_has_moved_on(state: State | None) -> None:
    job = job_in(state)
    if state is State.DISPATCHED:
        job = after(job, again(), Dispatch())  # another epoch
    decision = decide(job, again(), NOW, KNOWN)
    assert isinstance(decision, Rejected)
    assert decision.audit is None


def test_a_job_that_ends_each_worker_ends_with_the_cause_after_its_last_rescue() -> None:
    job: Job = after(job_in(State.DISPATCHED), again())
    starts = 1
    while job.state is State.PENDING:
        job = after(job, Dispatch(), report("started", epoch=job.epoch + 1, started_at=NOW))
        starts += 1
        job = after(job, Rescue(Reason.WORKER_RESTARTED, HOW))
    assert job.state is State.FAILED
    assert starts == RESCUES_MAX + 1
    assert job.error is not None
    assert job.error["code"] == "WORKER_LOST"
    assert HOW in job.error["message"]


def interrupted(epoch: int) -> Report:
    return report("returned", epoch=epoch, reason=Reason.INTERRUPTED.value, detail="after 4 s")


def test_a_run_that_is_interrupted_too_often_fails_with_a_code_of_its_own() -> None:
    job = after(None, *WAYS[State.PENDING])
    for count in range(1, INTERRUPTIONS_MAX + 1):
        job = after(job, Dispatch())
        job = after(job, interrupted(job.epoch))
        assert job.state is State.PENDING
        assert job.interruptions == count
        assert job.attempt == 0
        restored = read_job(live_value(job))
        assert isinstance(restored, Job)
        assert restored.interruptions == count
    job = after(job, Dispatch())
    decision = decide(job, interrupted(job.epoch), NOW, KNOWN)
    assert kinds_of(decision) == [EventKind.RETURNED, EventKind.FAILED]
    assert isinstance(decision, Accepted)
    assert decision.job.reason == Reason.INTERRUPTED
    assert decision.job.error is not None
    assert decision.job.error["code"] == "INTERRUPTED"


def test_what_never_began_is_no_interruption() -> None:
    job = after(None, *WAYS[State.PENDING])
    for _ in range(INTERRUPTIONS_MAX + 3):
        job = after(job, Dispatch())
        returned = report("returned", epoch=job.epoch, reason=Reason.WORKER_STOPPING.value)
        job = after(job, returned)
        assert job.interruptions == 0


def test_a_row_without_interruptions_reads_as_none() -> None:
    head, _, payload = live_value(after(None, *WAYS[State.PENDING])).partition(b"\n")
    old = orjson.dumps(orjson.loads(head)[:35]) + b"\n" + payload
    restored = read_job(old)
    assert isinstance(restored, Job)
    assert restored.interruptions == 0
