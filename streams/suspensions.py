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
from tidemill.schemas.words import TERMINAL_STATES, ErrorCode, EventKind, Reason, State
from tidemill.streams import attempts
from tidemill.streams.commands import Report, Signal
from tidemill.streams.decision import Decision, InvalidTransition, Kept, Rejected
from tidemill.streams.gathers import deciding, wire
from tidemill.streams.gathers.table import GATHER
from tidemill.streams.job import SUSPENSION, Job
from tidemill.streams.store.memory import SIGNAL, SLEEP, STEP, TIMED_OUT

if TYPE_CHECKING:
    from tidemill.streams.decisions import EventBuilder
    from tidemill.streams.turn import Turn

SUSPENSIONS_MAX: Final = 10_000  # of one run: a loop that only sleeps is a schedule

_E: Final = EventKind
_NAME: Final = re.compile(STEP_NAME_PATTERN.removesuffix("$") + r"\Z")
_Fragment: Final = orjson.Fragment
_WHY_REFUSED: Final = {SIGNAL: Reason.ALREADY_SIGNALLED, TIMED_OUT: Reason.TIMED_OUT}
"""By what the job remembers under the name of a signal."""
_WHY_RESUMED: Final = {
    SLEEP: Reason.INSTANT_CAME, SIGNAL: Reason.SIGNAL_CAME, TIMED_OUT: Reason.TIMED_OUT
}
"""By what the job remembers under the name from now on."""


def is_readable(outcome: dict[str, Any]) -> bool:
    """Whether a `stepped` or `suspended` says what the engine relies on."""
    if outcome["kind"] == "stepped":
        return _is_name(outcome.get("name"))
    if outcome["kind"] == "members":
        return wire.is_part(outcome)
    waits = outcome.get("waits")
    if isinstance(waits, dict) and waits.get("kind") == GATHER:
        return wire.is_wait(waits)
    if not isinstance(waits, dict) or not _is_name(waits.get("name")):
        return False
    if waits.get("kind") == SLEEP:
        return _is_duration(waits.get("for_ms"))
    if waits.get("kind") == SIGNAL:
        return waits.get("timeout_ms") is None or _is_duration(waits["timeout_ms"])
    return False


def _is_duration(ms: object) -> bool:
    return type(ms) is int and 0 <= ms <= SLEEP_MS_MAX


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
    kind, name = waits["kind"], waits["name"]
    lasts_ms = waits.get("for_ms" if kind == SLEEP else "timeout_ms")
    if kind == GATHER:
        rejected = deciding.suspended(story, job, command, turn)
        if rejected is not None:
            return rejected
    else:
        started_at, wait_ms, run_ms = attempts.times(job, command.outcome, turn.now_ms)
        story.tell(
            _E.SUSPENDED, worker=command.worker, started_at=started_at, wait_ms=wait_ms,
            run_ms=run_ms, reason=Reason.SLEEPING if kind == SLEEP else Reason.SIGNAL_AWAITED,
            due_at=None if lasts_ms is None else turn.now_ms + lasts_ms,
            data={"name": name, "kind": kind}, waits_for=(SUSPENSION, kind, name),
        )
    if job.is_cancel_requested:
        return story.end(_E.CANCELLED, Reason.CANCELLED_BY_COMMAND)
    left = story.job
    if left is not None and left.suspensions > SUSPENSIONS_MAX:
        return story.end(_E.FAILED, Reason.NOT_RETRYABLE, error=_too_many_error())
    if kind == GATHER:
        return deciding.gathered_already(story, job, name, turn) or story.done()
    known = turn.state.memory.kind_of(job, name)
    if known is not None:
        return _go_on(story, name, known)
    kept = turn.state.signals.of(job.key, name) if kind == SIGNAL else None
    if kept is not None:
        if not _has_room(turn, job, kept.value):
            return story.end(_E.FAILED, Reason.NOT_RETRYABLE, error=_no_room_error(name))
        story.is_caused_by(kept.cause)
        return _give(story, signal_data(name, kept.value, kept.actor))
    return resume(story) if lasts_ms == 0 else story.done()


def signalled(story: EventBuilder, command: Signal, turn: Turn) -> Decision:
    """Somebody has a value for the handler. The first one of a name counts."""
    job, name = story.job, command.name
    data: dict[str, Any] = {"name": name, "actor": command.actor}
    ended = turn.ended(command.key) if job is None else None
    if ended is not None:
        return Rejected(Reason.ALREADY_ENDED, _E.COMMAND_REFUSED, data).of(ended.state)
    if job is not None:
        if job.state in TERMINAL_STATES:
            return Rejected(Reason.ALREADY_ENDED, _E.COMMAND_REFUSED, data)
        known = turn.state.memory.kind_of(job, name)
        if known is not None:
            return Rejected(_WHY_REFUSED.get(known, Reason.NAME_TAKEN), _E.COMMAND_REFUSED, data)
    if turn.state.signals.of(command.key, name) is not None:
        return Rejected(Reason.ALREADY_SIGNALLED, _E.COMMAND_REFUSED, data)
    if job is None or job.waits_for != (SUSPENSION, SIGNAL, name):
        return Kept()
    if not _has_room(turn, job, command.value):
        return Rejected(Reason.TOO_LARGE, _E.COMMAND_REFUSED, data)
    return _give(story, signal_data(name, command.value, command.actor))


def signal_data(name: str, value: bytes, actor: str | None) -> dict[str, Any]:
    """What events say of a signal."""
    return {"name": name, "kind": SIGNAL, "value": _Fragment(value), "actor": actor}


def resume(story: EventBuilder) -> Decision:
    """The instant is there that the job waits for, or until which it waits."""
    job = story.job
    if job is None or job.state is not State.AWAITING or job.waits_for is None:
        raise InvalidTransition(job, _E.RESUMED)
    _, kind, name = job.waits_for
    return _go_on(story, name, SLEEP if kind == SLEEP else TIMED_OUT)


def _go_on(story: EventBuilder, name: str, kind: str) -> Decision:
    reason = _WHY_RESUMED.get(kind, Reason.NAME_TAKEN)
    return story.tell(_E.RESUMED, reason=reason, data={"name": name, "kind": kind}).done()


def _give(story: EventBuilder, data: dict[str, Any]) -> Decision:
    return story.tell(_E.RESUMED, reason=Reason.SIGNAL_CAME, data=data).done()


def _has_room(turn: Turn, job: Job, value: bytes) -> bool:
    """Whether the job can remember that too."""
    return turn.state.memory.size_of(job.key) + len(value) <= MEMORY_BYTES_MAX


def _no_room_error(name: str) -> dict[str, Any]:
    return {
        "code": ErrorCode.STEP_TOO_LARGE.value,
        "message": f"with the value of signal {name!r} this job would remember more than "
        f"{MEMORY_BYTES_MAX} bytes: let steps return references, and send one as the value",
        "retryable": False,
    }


def _too_many_error() -> dict[str, Any]:
    return {
        "code": ErrorCode.TOO_MANY_SUSPENSIONS.value,
        "message": f"the handler has suspended more than {SUSPENSIONS_MAX} times in one run: let "
        "the job end and ask for the next one",
        "retryable": False,
    }
