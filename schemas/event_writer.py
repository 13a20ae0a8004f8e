"""Events as the hot path makes them: slots, and their bytes.

Owns the slotted `Event`, the bytes of `schemas.events.JobEvent`, the text of instants and the
headers of `jobs.completed`. Refuses to know who decides (`streams`) and where the bytes go
(`agents`). No model of pydantic's stands here: this module is among those that are compiled
(`tools.native`).

`EventWriter` and `JobEvent` describe the same record: the first is quick, the second is the
contract; a test holds them together.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import orjson

from schemas import SCHEMA_VERSION
from schemas.words import EventKind, State

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
        "worker",
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
        worker: tuple[str, int] | None = None,
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
        self.worker = worker  # (worker_id, incarnation) of an attempt; only the id is written
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
_BEGIN: Final = b'{"schema_version":%d,"event_id":"' % SCHEMA_VERSION
_SMALL: Final = tuple(b"%d" % number for number in range(1_000))


def _digits(number: int) -> bytes:
    """Decimal; most numbers of an event are small."""
    return _SMALL[number] if 0 <= number < 1_000 else b"%d" % number


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
        elif cause == self._cause:
            cause_json = self._cause_json
        else:
            cause_json = self._write_cause(cause)
        sequence = event.sequence
        tail = _audit_tail(event).encode() if sequence is None else _digits(sequence)
        reason, error, worker, data = event.reason, event.error, event.worker, event.data
        return b"".join([
            _BEGIN, self._id_head, b"/", tail,
            b'","event":', _KIND_JSON[event.kind],
            b",", self._head,
            b',"run":', _digits(event.run),
            b',"sequence":', _NULL if sequence is None else tail,
            b',"attempt":', _digits(event.attempt),
            b',"epoch":', _digits(event.epoch),
            b',"occurred_at":', self._instants.json(event.occurred_at),
            b',"state_before":', _STATE_JSON[event.state_before],
            b',"state_after":', _STATE_JSON[event.state_after],
            b',"reason":', _NULL if reason is None else orjson.dumps(reason),
            b',"error":', _NULL if error is None else orjson.dumps(error),
            b',"worker_id":', _NULL if worker is None else orjson.dumps(worker[0]),
            b',"due_at":', self._instants.json(event.due_at),
            b',"wait_ms":', _NULL if event.wait_ms is None else _digits(event.wait_ms),
            b',"run_ms":', _NULL if event.run_ms is None else _digits(event.run_ms),
            b',"cause":', cause_json,
            b',"data":', _NULL if data is None else orjson.dumps(data),
            b"}",
        ])

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
