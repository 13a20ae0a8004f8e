"""What is decided about a handler that waits: its steps, its suspension, and that it goes on.

Owns those decisions and their bounds. Refuses to know how a handler waits
(`tidemill.agents.worker.suspending`) and where a result is kept (`tidemill.streams.store.memory`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from tidemill.schemas.requests import (
    MEMORY_BYTES_MAX,
    SLEEP_MS_MAX,
    STEP_BYTES_MAX,
    STEP_NAME_PATTERN,
)
from tidemill.schemas.words import ErrorCode, EventKind, Reason, State
from tidemill.streams import attempts
from tidemill.streams.commands import Report
from tidemill.streams.decision import Decision, InvalidTransition, Rejected
from tidemill.streams.gathers import deciding, wire
from tidemill.streams.gathers.table import GATHER
from tidemill.streams.job import SUSPENSION, Job
from tidemill.streams.store.memory import SLEEP, STEP

if TYPE_CHECKING:
    from tidemill.streams.decisions import EventBuilder
    from tidemill.streams.turn import Turn

SUSPENSIONS_MAX: Final = 10_000  # of one run: a loop that only sleeps is a schedule

_E: Final = EventKind
_NAME: Final = re.compile(STEP_NAME_PATTERN.removesuffix("$") + r"\Z")
_Fragment: Final = orjson.Fragment


def is_readable(outcome: dict[str, Any]) -> bool:
    """Whether a `stepped` or `suspended` says what the engine relies on."""
    if outcome["kind"] == "stepped":
        return _is_name(outcome.get("name"))
    if outcome["kind"] == "members":
        return wire.is_part(outcome)
    waits = outcome.get("waits")
    if isinstance(waits, dict) and waits.get("kind") == GATHER:
        return wire.is_wait(waits)
    return (
        isinstance(waits, dict) and waits.get("kind") == SLEEP and _is_name(waits.get("name"))
        and type(waits.get("for_ms")) is int and 0 <= waits["for_ms"] <= SLEEP_MS_MAX
    )


def _is_name(name: object) -> bool:
    return isinstance(name, str) and _NAME.match(name) is not None


def stepped(story: EventBuilder, job: Job, command: Report, turn: Turn) -> Decision:
    """A step's result is remembered. The first one of a name counts."""
    outcome = command.outcome
    name = outcome["name"]
    memory = turn.state.memory
    if memory.has(job, name):
        return Rejected(Reason.SAME_BODY, None)
    result = attempts.result_json(outcome.get("result"))
    if isinstance(result, dict) or len(result) > STEP_BYTES_MAX:
        return Rejected(Reason.TOO_LARGE, _E.OUTCOME_IGNORED)  # its worker refuses it before
    if memory.size_of(job.key) + len(result) > MEMORY_BYTES_MAX:
        return Rejected(Reason.TOO_LARGE, _E.OUTCOME_IGNORED)
    if job.state is not State.RUNNING:
        begun_at, wait_ms, _ = attempts.times(job, outcome, turn.now_ms)
        story.tell(_E.ATTEMPT_STARTED, worker=command.worker, started_at=begun_at, wait_ms=wait_ms)
    data = {"name": name, "kind": STEP, "result": _Fragment(result)}
    return story.tell(_E.STEP_COMPLETED, worker=command.worker, data=data).done()


def suspended(story: EventBuilder, job: Job, command: Report, turn: Turn) -> Decision:
    """The handler waits: its attempt is over, and none is spent."""
    waits = command.outcome["waits"]
    name = waits["name"]
    if waits["kind"] == GATHER:
        rejected = deciding.suspended(story, job, command, turn)
        if rejected is not None:
            return rejected
    else:
        started_at, wait_ms, run_ms = attempts.times(job, command.outcome, turn.now_ms)
        story.tell(
            _E.SUSPENDED, worker=command.worker, started_at=started_at, wait_ms=wait_ms,
            run_ms=run_ms, reason=Reason.SLEEPING, due_at=turn.now_ms + waits["for_ms"],
            data={"name": name, "kind": SLEEP}, waits_for=(SUSPENSION, SLEEP, name),
        )
    if job.is_cancel_requested:
        return story.end(_E.CANCELLED, Reason.CANCELLED_BY_COMMAND)
    left = story.job
    if left is not None and left.suspensions > SUSPENSIONS_MAX:
        return story.end(_E.FAILED, Reason.NOT_RETRYABLE, error=_too_many_error())
    if waits["kind"] == GATHER:
        return deciding.gathered_already(story, job, name, turn) or story.done()
    if turn.state.memory.has(job, name) or not waits["for_ms"]:
        return resume(story)
    return story.done()


def resume(story: EventBuilder) -> Decision:
    """What the job waits for is there."""
    job = story.job
    if job is None or job.state is not State.AWAITING or job.waits_for is None:
        raise InvalidTransition(job, _E.RESUMED)
    data = {"name": job.waits_for[2], "kind": job.waits_for[1]}
    return story.tell(_E.RESUMED, reason=Reason.INSTANT_CAME, data=data).done()


def _too_many_error() -> dict[str, Any]:
    return {
        "code": ErrorCode.TOO_MANY_SUSPENSIONS.value,
        "message": f"the handler has suspended more than {SUSPENSIONS_MAX} times in one run: let "
        "the job end and ask for the next one",
        "retryable": False,
    }
