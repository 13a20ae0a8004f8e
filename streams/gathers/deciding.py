"""What is decided about a job whose handler gathers: that it waits, how far that is, that it goes
on.

Owns those decisions. Refuses to know how members are released and counted
(`tidemill.streams.gathers.parent`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidemill.schemas.words import EventKind, Reason, State
from tidemill.streams import attempts
from tidemill.streams.commands import Gathered, Report, Tell
from tidemill.streams.decision import Decision, InvalidTransition, Rejected
from tidemill.streams.gathers.table import GATHER
from tidemill.streams.gathers.wire import asked_tolerance
from tidemill.streams.job import SUSPENSION, Job

if TYPE_CHECKING:
    from tidemill.streams.decisions import EventBuilder
    from tidemill.streams.turn import Turn

_E: Final = EventKind


def suspended(story: EventBuilder, job: Job, command: Report, turn: Turn) -> Decision | None:
    """The handler waits for members. None: what holds for each suspension is still to be asked."""
    waits = command.outcome["waits"]
    name = waits["name"]
    members = turn.policies.gather.parents.listed(job, waits)
    if members is None:
        return Rejected(Reason.MISSING_PARTS, _E.OUTCOME_IGNORED)
    started_at, wait_ms, run_ms = attempts.times(job, command.outcome, turn.now_ms)
    data = {
        "name": name, "kind": GATHER, "members": members, "parallel": waits.get("parallel"),
        "tolerate": asked_tolerance(waits.get("tolerate")),
    }
    story.tell(
        _E.SUSPENDED, worker=command.worker, started_at=started_at, wait_ms=wait_ms, run_ms=run_ms,
        reason=Reason.MEMBERS_AWAITED, data=data, waits_for=(SUSPENSION, GATHER, name),
    )
    return None


def progressed(story: EventBuilder, command: Tell) -> Decision:
    """How far the gather is that the job waits for."""
    return story.tell(_E.PROGRESSED, reason=Reason.MEMBERS_AWAITED, data=command.data).done()


def gathered_already(
    story: EventBuilder, job: Job, name: str, turn: Turn
) -> Decision | None:
    """The handler goes on at once where the gather is over in this run. None: it waits."""
    if not turn.policies.gather.parents.is_settled(job, name):
        return None
    return gathered(story, Gathered(name), turn)


def gathered(story: EventBuilder, command: Gathered, turn: Turn) -> Decision:
    """All members are known ended."""
    job = story.job
    if job is None or job.state is not State.AWAITING:
        raise InvalidTransition(job, _E.RESUMED)
    data = turn.policies.gather.parents.facts_of(job, command.name)
    return story.tell(_E.RESUMED, reason=Reason.MEMBERS_ENDED, data=data).done()
