"""What happened: the event on `jobs.events` and the record on `jobs.completed`.

Owns the public shape of both, and the slotted `Event` that the hot path builds. Refuses to know
who decides (`streams`) and where the bytes go (`agents`).

`EventWriter` and `JobEvent` describe the same record: the first is quick, the second is the
contract from which the documentation is generated; a test holds them together.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field

from schemas import SCHEMA_VERSION
from schemas.words import EventKind, Priority, State

CLOUDEVENTS_SOURCE: Final = "/tidemill/ledger"
CLOUDEVENTS_TYPE_PREFIX: Final = "tidemill.job."


def instant_text(epoch_ms: int) -> str:
    """1764000000123 -> "2025-11-24T16:00:00.123Z"."""
    seconds, ms = divmod(epoch_ms, 1000)
    moment = datetime.fromtimestamp(seconds, tz=UTC)
    return f"{moment.strftime('%Y-%m-%dT%H:%M:%S')}.{ms:03d}Z"


class InstantCache:
    """The text of the last few instants: nearly all events of a group share theirs."""

    __slots__ = ("_jsons", "_texts")
    _SIZE_MAX: Final = 4096  # entries, then it starts anew

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}
        self._jsons: dict[int, bytes] = {}

    def text(self, epoch_ms: int | None) -> str | None:
        """RFC 3339 text of `epoch_ms`; None stays None."""
        if epoch_ms is None:
            return None
        found = self._texts.get(epoch_ms)
        if found is None:
            if len(self._texts) >= self._SIZE_MAX:
                self._texts.clear()
            found = self._texts[epoch_ms] = instant_text(epoch_ms)
        return found

    def json(self, epoch_ms: int | None) -> bytes:
        """The same as JSON text; None is null."""
        if epoch_ms is None:
            return b"null"
        found = self._jsons.get(epoch_ms)
        if found is None:
            if len(self._jsons) >= self._SIZE_MAX:
                self._jsons.clear()
            found = self._jsons[epoch_ms] = f'"{instant_text(epoch_ms)}"'.encode()
        return found


class JobError(BaseModel):
    """Why an attempt or a job failed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: str = Field(description="One of the engine's error codes, or the handler's own.")
    message: str = Field(description="For a person; no stack trace. Cut at 2,000 characters.")
    retryable: bool = Field(description="Whether another attempt could have helped.")


class Cause(BaseModel):
    """The input record that led to an event; absent when a timer or a worker's silence did."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    topic: str
    partition: int
    offset: int


class JobEvent(BaseModel):
    """One record on `jobs.events`; key = user_id. The contract of `EventWriter`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = Field(description="1. Refuse what you do not know.")
    event_id: str = Field(description="Unique; the same on a replay.")
    event: EventKind = Field(description="What happened.")
    job_id: str
    user_id: str
    type: str
    queue: str = Field(description='"" until the type is known.')
    priority: Priority
    incarnation: int = Field(
        description="Epoch ms of the first acceptance: orders reuses of a job_id after the "
        "dedupe retention."
    )
    run: int = Field(description="1, and one more with each redrive.")
    sequence: int | None = Field(
        description="1, 2, 3 … without a gap per job incarnation; null for audit events."
    )
    attempt: int = Field(description="Attempts begun in this run, 0 before the first dispatch.")
    epoch: int = Field(description="Dispatches of this job so far; outcomes must carry the last.")
    occurred_at: str = Field(description="RFC 3339, UTC, ms. Never goes back in a partition.")
    state_before: State | None = Field(description="null before the first event.")
    state_after: State
    reason: str | None = Field(description="A word of `schemas.words.Reason`, or a handler's own.")
    error: JobError | None
    worker_id: str | None
    due_at: str | None = Field(description="When it goes on: scheduled, deferred, retry_scheduled.")
    wait_ms: int | None = Field(
        description="Terminal events and attempt events: from requested to the last start."
    )
    run_ms: int | None = Field(description="From the start to the end of that attempt.")
    cause: Cause | None
    data: dict[str, Any] | None = Field(
        description="requested: payload and resolved policy; succeeded: result; progressed: "
        "percent, stage, message; others: null."
    )


class CompletedJob(BaseModel):
    """One record on `jobs.completed`; key = user_id. Exactly one for each (user, job, run)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job_id: str
    user_id: str
    type: str
    queue: str
    status: State = Field(description="succeeded, failed, cancelled, skipped or expired.")
    reason: str | None = Field(description="Why it was skipped, cancelled, …; else null.")
    result: Any = Field(description="What the handler returned; null unless succeeded.")
    error: JobError | None = Field(description="Set when failed.")
    attempts: int = Field(description="Attempts begun in this run.")
    requested_at: str
    started_at: str | None = Field(description="Start of the last attempt; null if it never ran.")
    finished_at: str
    wait_ms: int | None = Field(description="requested_at to started_at.")
    run_ms: int | None = Field(description="started_at to the end of the last attempt.")
    run: int
    sequence: int = Field(description="The sequence of the terminal event on `jobs.events`.")
    schema_version: int


class Event:
    """One transition as the engine makes it: slots, built once, never changed afterwards.

    Times are epoch milliseconds here and become text in `EventWriter`.
    """

    __slots__ = (
        "attempt",
        "cause",
        "data",
        "due_at",
        "epoch",
        "error",
        "incarnation",
        "index",
        "job_id",
        "kind",
        "occurred_at",
        "priority",
        "queue",
        "reason",
        "run",
        "run_ms",
        "sequence",
        "spec",
        "started_at",
        "state_after",
        "state_before",
        "type",
        "user_id",
        "wait_ms",
        "worker_id",
    )

    def __init__(
        self,
        kind: EventKind,
        user_id: str,
        job_id: str,
        type: str,
        queue: str,
        priority: str,
        incarnation: int,
        run: int,
        sequence: int | None,
        attempt: int,
        epoch: int,
        occurred_at: int,
        state_before: State | None,
        state_after: State,
        *,
        reason: str | None = None,
        error: dict[str, Any] | None = None,
        worker_id: str | None = None,
        due_at: int | None = None,
        started_at: int | None = None,
        wait_ms: int | None = None,
        run_ms: int | None = None,
        cause: tuple[str, int, int] | None = None,
        data: dict[str, Any] | None = None,
        spec: Any = None,
        index: int = 0,
    ) -> None:
        self.kind = kind
        self.user_id = user_id
        self.job_id = job_id
        self.type = type
        self.queue = queue
        self.priority = priority
        self.incarnation = incarnation
        self.run = run
        self.sequence = sequence
        self.attempt = attempt
        self.epoch = epoch
        self.occurred_at = occurred_at
        self.state_before = state_before
        self.state_after = state_after
        self.reason = reason
        self.error = error
        self.worker_id = worker_id
        self.due_at = due_at
        self.started_at = started_at
        self.wait_ms = wait_ms
        self.run_ms = run_ms
        self.cause = cause
        self.data = data
        self.index = index  # of an audit event: how many its input led to, this one included
        # What `data` says, as the engine holds it (`streams.job.Spec`); never written.
        self.spec = spec

    @property
    def event_id(self) -> str:
        """`user/job/incarnation/sequence`; audit events name the input that they answer.

        A slash within the user's id is written as %2F, and % as %25: other ids, other event ids.
        """
        tail = str(self.sequence) if self.sequence is not None else _audit_tail(self)
        return f"{_name_of(self)}/{tail}"


_NULL: Final = b"null"
_CLOUDEVENTS_TYPE: Final = {
    kind: ("ce_type", f"{CLOUDEVENTS_TYPE_PREFIX}{kind.value}".encode()) for kind in EventKind
}
_CLOUDEVENTS_VERSION: Final = ("ce_specversion", b"1.0")
_CLOUDEVENTS_SOURCE: Final = ("ce_source", CLOUDEVENTS_SOURCE.encode())
_CONTENT_TYPE: Final = ("content-type", b"application/json")
_KIND_JSON: Final = {kind: f'"{kind}"'.encode() for kind in EventKind}
_STATE_JSON: Final[dict[State | None, bytes]] = {
    None: _NULL, **{state: f'"{state}"'.encode() for state in State}
}
_EVENT_FORMAT: Final = (
    b'{"schema_version":%d,"event_id":"%b/%b","event":%b,%b,"run":%d,"sequence":%b,"attempt":%d,'
    b'"epoch":%d,"occurred_at":%b,"state_before":%b,"state_after":%b,"reason":%b,"error":%b,'
    b'"worker_id":%b,"due_at":%b,"wait_ms":%b,"run_ms":%b,"cause":%b,"data":%b}'
)


class EventWriter:
    """Events as the bytes of `JobEvent`, quickly: most of what the ledger writes is events.

    What events share is written once: the head of a job's events, a cause, an instant. `data` may
    hold `orjson.Fragment`s of JSON that is kept as bytes.
    """

    __slots__ = ("_cause", "_cause_json", "_head", "_head_of", "_id_head", "_instants")

    def __init__(self, instants: InstantCache) -> None:
        self._instants = instants
        self._head_of: tuple[str, str, str, int] = ("", "", "", 0)
        self._head = self._id_head = b""
        self._cause: tuple[str, int, int] | None = None
        self._cause_json = _NULL

    def write(self, event: Event) -> bytes:
        """The record's value."""
        user_id, job_id, queue, incarnation = self._head_of
        if (
            event.job_id is not job_id
            or event.user_id is not user_id
            or event.queue is not queue
            or event.incarnation != incarnation
        ):
            self._begin_job(event)
        cause = event.cause
        if cause is None:
            cause_json = _NULL
        elif cause is self._cause:
            cause_json = self._cause_json
        else:
            cause_json = self._write_cause(cause)
        sequence = event.sequence
        tail = b"%d" % sequence if sequence is not None else _audit_tail(event).encode()
        instant = self._instants.json
        wait_ms, run_ms, due_at = event.wait_ms, event.run_ms, event.due_at
        reason, error, worker_id, data = event.reason, event.error, event.worker_id, event.data
        dumps = orjson.dumps
        return _EVENT_FORMAT % (
            SCHEMA_VERSION, self._id_head, tail, _KIND_JSON[event.kind], self._head, event.run,
            _NULL if sequence is None else tail, event.attempt, event.epoch,
            instant(event.occurred_at), _STATE_JSON[event.state_before],
            _STATE_JSON[event.state_after], _NULL if reason is None else dumps(reason),
            _NULL if error is None else dumps(error),
            _NULL if worker_id is None else dumps(worker_id),
            _NULL if due_at is None else instant(due_at),
            _NULL if wait_ms is None else b"%d" % wait_ms,
            _NULL if run_ms is None else b"%d" % run_ms, cause_json,
            _NULL if data is None else dumps(data),
        )

    def _begin_job(self, event: Event) -> None:
        self._head_of = (event.user_id, event.job_id, event.queue, event.incarnation)
        head = {
            "job_id": event.job_id, "user_id": event.user_id, "type": event.type,
            "queue": event.queue, "priority": event.priority, "incarnation": event.incarnation,
        }
        self._head = orjson.dumps(head)[1:-1]
        self._id_head = orjson.dumps(_name_of(event))[1:-1]

    def _write_cause(self, cause: tuple[str, int, int]) -> bytes:
        self._cause = cause
        self._cause_json = b'{"topic":%b,"partition":%d,"offset":%d}' % (
            orjson.dumps(cause[0]), cause[1], cause[2]
        )
        return self._cause_json


def _name_of(event: Event) -> str:
    """The first three parts of an event's id. A slash in the first would make them ambiguous."""
    user_id = event.user_id
    if "/" in user_id or "%" in user_id:
        user_id = user_id.replace("%", "%25").replace("/", "%2F")
    return f"{user_id}/{event.job_id}/{event.incarnation}"


def _audit_tail(event: Event) -> str:
    cause = event.cause or ("timer", 0, event.occurred_at)
    return f"{event.kind}:{cause[0]}:{cause[1]}:{cause[2]}:{event.index}"


def completed_headers(
    kind: EventKind, event_id: str, time_text: str, job_id: str
) -> list[tuple[str, bytes | None]]:
    """CloudEvents 1.0 binary-mode headers of a record on `jobs.completed`."""
    return [
        _CLOUDEVENTS_VERSION,
        ("ce_id", event_id.encode()),
        _CLOUDEVENTS_SOURCE,
        _CLOUDEVENTS_TYPE[kind],
        ("ce_time", time_text.encode()),
        ("ce_subject", job_id.encode()),
        _CONTENT_TYPE,
    ]
