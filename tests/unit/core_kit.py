"""Small jobs and commands for the tests of the pure core.

Owns how a job gets into a state: by the events that lead there, never by setting fields.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from tidemill.schemas.codec import Decoded, Refusal, check_request
from tidemill.schemas.event_writer import Event
from tidemill.schemas.wire import Definition
from tidemill.schemas.words import ErrorCode, EventKind, Reason, State
from tidemill.streams.commands import (
    Cancel,
    Cause,
    CoreCommand,
    Dispatch,
    Obey,
    Redrive,
    Refuse,
    Report,
    Rescue,
    Resolve,
    Resume,
    Signal,
    Submit,
)
from tidemill.streams.decision import Accepted, Decision
from tidemill.streams.decisions import decide as core_decide
from tidemill.streams.dispatch.schedule import Schedule
from tidemill.streams.dispatch.slot_pool import SlotPoolName
from tidemill.streams.job import RATE_LIMIT, Job, JobKey, Spec
from tidemill.streams.job_type import JobType
from tidemill.streams.lifecycle import evolve
from tidemill.streams.limits import NOTHING_USED, LimitState
from tidemill.streams.policies.base import wait
from tidemill.streams.policies.expiry import EXPIRED
from tidemill.streams.policies.uniqueness import UNIQUE_BY_USER_PREFIX
from tidemill.streams.store.finished import digest_of
from tidemill.streams.store.kept_cancels import KeptCancel
from tidemill.streams.store.state import PartitionState
from tidemill.streams.turn import Turn

NOW: Final = 1_760_000_000_000
INTERRUPTIONS_MAX: Final = 2  # of the partition around a decision
DEFAULT: Final = SlotPoolName("default", "async")
HELD: Final = (RATE_LIMIT, "u", "t")  # what a job waits for that a limit holds back
CAUSE: Final[Cause] = ("jobs.requested", 0, 7)
WORKER: Final = ("worker-1", 1)


def arranged(  # reads as what it makes
    *definitions: Definition,
    holder: JobKey | None = None,
    used: LimitState = NOTHING_USED,
    kept: KeptCancel | None = None,
    has_ended: bool = False,
) -> Turn:
    """What a decision may look at beside its job, as a test arranges it."""
    state = PartitionState(interruptions_max=INTERRUPTIONS_MAX)
    state._position.accepted = 5
    for definition in definitions:
        state.define(definition)
    if holder is not None:
        for unique_key in ("k", f"{UNIQUE_BY_USER_PREFIX}t"):  # of requests, and of the type
            state.policies.uniqueness.holders["u", unique_key] = holder
    if used != NOTHING_USED:
        state.policies.rate_limit.uses.put(("u", "t"), used)
    if kept is not None:
        state.cancels.keep(kept)
    if has_ended:
        state.finished.add(digest_of(("u", "j")), NOW, 0, State.SUCCEEDED)
    return Turn(state, Schedule(state.kinds))


def decide(job: Job | None, command: CoreCommand, now: int, around: Turn) -> Decision:
    """`decisions.decide` at that instant."""
    around.state._position.clock_ms = now
    return core_decide(job, command, around)


def define(**facts: Any) -> Definition:
    """A definition of type `t`."""
    return Definition.model_validate({"schema_version": 1, "type": "t", **facts})


KNOWN: Final = arranged(define())


def decoded(**fields: Any) -> Decoded:
    """A checked request of type `t`."""
    found = check_request({"type": "t", "user_id": "u", "job_id": "j", **fields})
    assert isinstance(found, Decoded), found.message
    return found


def submit(**fields: Any) -> Submit:
    return Submit(decoded(**fields), "j", CAUSE)


def refuse() -> Refuse:
    refusal = Refusal(ErrorCode.UNKNOWN_FIELD, "unknown field 'x'", field="x", type="t")
    return Refuse(refusal, "u", "j", CAUSE)


def report(kind: str, epoch: int = 1, **facts: Any) -> Report:
    outcome = {"kind": kind, "user_id": "u", "job_id": "j", "epoch": epoch, **facts}
    return Report(outcome, WORKER, ("jobs.outcomes", 0, 3))


def after(job: Job | None, *commands: CoreCommand, now: int = NOW, around: Turn = KNOWN) -> Job:
    """The job once all the commands were accepted."""
    for command in commands:
        decision = decide(job, command, now, around)
        assert isinstance(decision, Accepted), command
        job = decision.job
    assert job is not None
    return job


EXPIRE: Final = Obey(EXPIRED)


def defer(due_at: int) -> Obey:
    """A limit holds the job back."""
    return Obey(wait(HELD, Reason.RATE_LIMITED, due_at))


CANCEL: Final = Cancel(("u", "j"), "somebody", "no more", ("jobs.commands", 0, 1))
REDRIVE: Final = Redrive(("u", "j"), "somebody", "again", ("jobs.commands", 0, 2))
FATAL: Final = {"code": "BROKEN", "message": "beyond repair", "retryable": False}
SLEEPS: Final = {"kind": "sleep", "name": "nap", "for_ms": 60_000}
SIGNAL: Final = Signal(("u", "j"), "go", b'{"ok":true}', "ada", ("jobs.commands", 0, 3))
WAYS: Final[dict[State, tuple[CoreCommand, ...]]] = {
    State.PENDING: (submit(),),
    State.SCHEDULED: (submit(run_at=NOW + 5_000),),
    State.DISPATCHED: (submit(), Dispatch()),
    State.RUNNING: (submit(), Dispatch(), report("started", started_at=NOW)),
    State.RETRYING: (submit(), Dispatch(), report("failed")),
    State.AWAITING: (submit(), Dispatch(), report("suspended", waits=SLEEPS)),
    State.SUCCEEDED: (submit(), Dispatch(), report("succeeded", result=1)),
    State.FAILED: (submit(), Dispatch(), report("failed", error=FATAL)),
    State.CANCELLED: (submit(), CANCEL),
    State.SKIPPED: (submit(), Dispatch(), report("skipped", reason="nothing new")),
    State.EXPIRED: (submit(expires_at=NOW + 5_000), EXPIRE),
}
"""How a job gets into each state."""


def job_in(state: State | None) -> Job | None:
    """A job that the core itself brought into `state`."""
    if state is None:
        return None
    job = after(None, *WAYS[state])
    assert job.state is state
    return job


def command_named(name: str, state: State | None) -> CoreCommand:
    """The commands of the tests' tables by their names; `submit` repeats what was asked."""
    if name == "submit" and state is not None:
        return WAYS[state][0]
    plain: dict[str, CoreCommand] = {
        "submit": submit(), "submit_other": submit(payload={"other": 1}), "refuse": refuse(),
        "resolve": Resolve(JobType(define())), "resolve_none": Resolve(None),
        "dispatch": Dispatch(), "defer": defer(NOW + 9_000), "expire": EXPIRE,
        "resume": Resume(), "stepped": report("stepped", name="one", result={"n": 1}),
        "suspended": report("suspended", waits=SLEEPS),
        "rescue": Rescue(Reason.WORKER_LOST), "cancel": CANCEL, "redrive": REDRIVE,
        "signal": SIGNAL,
    }
    if name in plain:
        return plain[name]
    kind, _, staleness = name.partition("@")
    return report(kind, epoch=0 if staleness else 1)


def event_of(
    job: Job | None, kind: EventKind, state_after: State, *, spec: Spec | None = None
) -> Event:
    """An event as it would follow `job`."""
    known = job.spec if job is not None else after(None, submit()).spec
    return Event(
        kind, known.user_id, known.job_id, known.type, known.queue, known.priority,
        known.requested_at, 1, 1 if job is None else job.sequence + 1, 0, 0, NOW,
        None if job is None else job.state, state_after, spec=spec or known, worker=WORKER,
    )


def fold(events: list[Event]) -> Job:
    """The job that these events give."""
    job: Job | None = None
    for event in events:
        job = evolve(job, event)
    assert job is not None
    return job


def fields_of(made: type) -> list[str]:
    """The names of its fields and properties, whether it is compiled or not."""
    names = [name for name in dir(made) if not name.startswith("_")]
    return [name for name in names if not callable(getattr(made, name))]


def payload_of(value: bytes) -> Any:
    """JSON text as a value."""
    return orjson.loads(value)
