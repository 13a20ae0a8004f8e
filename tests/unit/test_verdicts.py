"""What a policy's verdict becomes: the event of its kind, with its reason, wait and data."""

from __future__ import annotations

from tests.unit.core_kit import KNOWN, NOW, decide, define, job_in
from tidemill.schemas.words import EventKind, Reason, State
from tidemill.streams.commands import Obey
from tidemill.streams.decision import Accepted
from tidemill.streams.job_type import JobType
from tidemill.streams.policies.base import Policy, Verdict, ask_door, skip, wait

ROOM = ("room", "u")


def obeyed(verdict: Verdict) -> Accepted:
    decision = decide(job_in(State.PENDING), Obey(verdict), NOW, KNOWN)
    assert isinstance(decision, Accepted)
    return decision


def test_a_wait_is_a_deferral_with_its_data_and_no_instant_of_its_own() -> None:
    verdict = wait(ROOM, Reason.JOINED, None)
    verdict.data = {"winner": "a"}
    decision = obeyed(verdict)
    (event,) = decision.events
    assert (event.kind, event.reason, event.data) == (
        EventKind.DEFERRED, Reason.JOINED, {"winner": "a"}
    )
    assert (decision.job.state, decision.job.waits_for, decision.job.due_at) == (
        State.SCHEDULED, ROOM, None
    )


def test_an_end_is_a_terminal_event_with_its_data() -> None:
    verdict = skip(Reason.COLLAPSED)
    verdict.data = {"collapsed_into": {"job_id": "a", "run": 1, "status": "failed"}}
    decision = obeyed(verdict)
    (event,) = decision.events
    assert (event.kind, event.reason, event.data) == (
        EventKind.SKIPPED, Reason.COLLAPSED, verdict.data
    )
    assert decision.job.state is State.SKIPPED


def test_without_data_an_event_has_none() -> None:
    (event,) = obeyed(skip(Reason.DUPLICATE)).events
    assert event.data is None


def test_who_joins_at_the_door_is_asked_nothing_more() -> None:
    """Sharing a run needs no start, so no limit is touched."""
    job_type = JobType(define(collapse_by="payload.x"))
    first = job_in(State.PENDING)
    assert first is not None

    class Joins(Policy):
        def admit(self, *_: object) -> Verdict:
            verdict = wait(ROOM, Reason.JOINED, None)
            verdict.joins = True
            return verdict

    class Never(Policy):
        def admit(self, *_: object) -> Verdict:
            raise AssertionError("asked")

    asked = (Joins("joins"), Never("never"))
    assert ask_door(asked, KNOWN, first.spec, job_type).reason == Reason.JOINED
