"""What a decision is: the events that a command causes, or why it causes none.

Owns the answers of `decisions.decide`, what an event leads to beside itself, and the error that is
a bug. Refuses to know how they are reached.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from tidemill.schemas.event_writer import Event
from tidemill.schemas.words import EventKind, Reason, State, direct
from tidemill.streams.commands import CoreCommand
from tidemill.streams.job import Job, JobKey

# Bytes of payload that count as one more decision: a group is bounded in bytes too, 8 MiB of each.
DECISION_BYTES: Final = 4_096


FollowUp = tuple[JobKey, CoreCommand]
"""What a decision about one job means for another one: a command, so that the law holds for it."""


class Accepted:
    """The events that the command causes, in order, the job after them, and the commands that
    follow for other jobs. Those are decided in the same group, before anything else."""

    __slots__ = ("events", "follow_ups", "job")

    def __init__(
        self, events: list[Event], job: Job, follow_ups: tuple[FollowUp, ...] = ()
    ) -> None:
        self.events = events
        self.job = job
        self.follow_ups = follow_ups


class Rejected:
    """The command changes nothing. `audit` is how it is recorded, None when it is not."""

    __slots__ = ("audit", "data", "reason", "state", "type")

    def __init__(
        self, reason: Reason, audit: EventKind | None, data: dict[str, Any] | None = None
    ) -> None:
        self.reason = reason
        self.audit = audit
        self.data = data  # of the record, for readers
        # Of a job that is not alive, as far as they are known.
        self.state: State | None = None
        self.type = ""

    def of(self, state: State, type: str = "") -> Rejected:
        """The same of a job that has ended in `state`."""
        self.state = state
        self.type = type
        return self


class Kept:
    """A cancel that waits for the request of its job, or a signal for somebody who waits."""

    __slots__ = ()


Decision = Accepted | Rejected | Kept


class InvalidTransition(Exception):
    """A bug: an event that the state does not allow. Carries the job's story."""

    def __init__(self, job: Job | None, kind: EventKind) -> None:
        story = "no such job"
        if job is not None:
            story = (
                f"{job.spec.user_id}/{job.spec.job_id} type={job.spec.type} state={job.state} "
                f"sequence={job.sequence} run={job.run} attempt={job.attempt} epoch={job.epoch}"
            )
        super().__init__(f"event {kind} is not legal here: {story}")


class FollowUpsWithoutEnd(Exception):
    """A bug: one decision has led to more commands than any group may hold."""


class NeedsNewer(Exception):
    """Something that a newer ledger wrote and this version cannot read: to go on would lose it.

    `what` names it; `needs` is the first version that reads it, None where nobody has said so.
    """

    def __init__(self, what: str, needs: str | None) -> None:
        self._what = what
        self._needs = needs
        wanted = "a later version of Tidemill" if needs is None else f"Tidemill {needs} or later"
        super().__init__(
            f"{what}, which needs {wanted}: run that as the ledger; nothing was lost"
        )

    def of(self, place: str) -> NeedsNewer:
        """The same, with the place where it was found."""
        return NeedsNewer(f"{place}: {self._what}", self._needs)


def repeat_of(known: int, repeated: int) -> Rejected:
    """What becomes of a request for a job that is known, live or ended: by both fingerprints."""
    if known == repeated:
        return Rejected(Reason.SAME_BODY, EventKind.DUPLICATE_IGNORED)
    return Rejected(Reason.OTHER_BODY, EventKind.CONFLICT_IGNORED)


@direct
class Effect(StrEnum):
    """What the edge must write because of an event, beside the event itself."""

    COMPLETE = "complete"  # a record on jobs.completed
    DEAD_LETTER = "dead_letter"  # a record on jobs.dead; the row is kept for a redrive
    DISPATCH = "dispatch"  # an entry of a ready pack
    ANNOUNCE_RETRY = "announce_retry"  # a record on jobs.retry
    SET_TIMER = "set_timer"  # wake the job at `due_at`
    TELL_WORKER = "tell_worker"  # a word on jobs.control
    MAKE_READY = "make_ready"  # it waits for a slot
    REMEMBER = "remember"  # under the name in `data`, for all attempts to come
    GATHER = "gather"  # if it waits for members: they are released from now on


EFFECTS: Final[dict[EventKind, tuple[Effect, ...]]] = {
    EventKind.REQUESTED: (Effect.MAKE_READY,),
    EventKind.SCHEDULED: (Effect.SET_TIMER,),
    EventKind.DEFERRED: (Effect.SET_TIMER,),
    EventKind.DISPATCHED: (Effect.DISPATCH,),
    EventKind.RETRY_SCHEDULED: (Effect.SET_TIMER, Effect.ANNOUNCE_RETRY),
    EventKind.RETURNED: (Effect.MAKE_READY,),
    EventKind.RESCUED: (Effect.MAKE_READY,),
    EventKind.REDRIVEN: (Effect.MAKE_READY,),
    EventKind.STEP_COMPLETED: (Effect.REMEMBER,),
    EventKind.SUSPENDED: (Effect.SET_TIMER, Effect.GATHER),
    EventKind.RESUMED: (Effect.REMEMBER, Effect.MAKE_READY),
    EventKind.CANCEL_REQUESTED: (Effect.TELL_WORKER,),
    EventKind.SUCCEEDED: (Effect.COMPLETE,),
    EventKind.FAILED: (Effect.COMPLETE, Effect.DEAD_LETTER),
    EventKind.CANCELLED: (Effect.COMPLETE,),
    EventKind.SKIPPED: (Effect.COMPLETE,),
    EventKind.EXPIRED: (Effect.COMPLETE,),
}
"""What each kind of event leads to."""


def react(event: Event) -> tuple[Effect, ...]:
    """What the edge writes beside the event itself."""
    return EFFECTS.get(event.kind, ())


def cost_of(job: Job) -> int:
    """How many decisions one about this job counts as, where a group's decisions are bounded."""
    return 1 + len(job.spec.payload) // DECISION_BYTES
