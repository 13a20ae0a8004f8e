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

    __slots__ = ("_digits", "_digits_of", "_json", "_json_of", "_jsons", "_texts")
    _SIZE_MAX: Final = 4096  # entries, then it starts anew

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}
        self._jsons: dict[int, bytes] = {}
        self._json_of = self._digits_of = -1  # the last ones asked for, and their texts
        self._json = self._digits = b""

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
        if epoch_ms == self._json_of:
            return self._json
        found = self._jsons.get(epoch_ms)
        if found is None:
            if len(self._jsons) >= self._SIZE_MAX:
                self._jsons.clear()
            found = self._jsons[epoch_ms] = f'"{instant_text(epoch_ms)}"'.encode()
        self._json_of, self._json = epoch_ms, found
        return found

    def digits(self, epoch_ms: int) -> bytes:
        """`epoch_ms` as a decimal number."""
        if epoch_ms != self._digits_of:
            self._digits_of, self._digits = epoch_ms, str(epoch_ms).encode()
        return self._digits


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
    def worker_id(self) -> str | None:
        return None if self.worker is None else self.worker[0]

    @property
    def event_id(self) -> str:
        """`user/job/incarnation/sequence`; audit events name the input that they answer.

        A slash within the user's id is written as %2F, and % as %25: other ids, other event ids.
        """
        tail = str(self.sequence) if self.sequence is not None else _audit_tail(self)
        return f"{_name_of(self)}/{tail}"


_json: Final = orjson.dumps  # a constant of this module: compiled code need not look it up
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
_DIGITS: Final = tuple(str(number).encode() for number in range(1_000))
_VERSION: Final = str(SCHEMA_VERSION).encode()


def _digits(number: int) -> bytes:
    """Decimal; most numbers of an event are small."""
    return _DIGITS[number] if 0 <= number < 1_000 else str(number).encode()


class EventWriter:
    """Events as the bytes of `JobEvent` and `CompletedJob`, quickly: most of what the ledger writes
    is events.

    What events share is written once: the head of a job's events, a cause, an instant. `data` may
    hold `orjson.Fragment`s of JSON that is kept as bytes. The formats are written where they are
    used, with nothing but %b: compiled, that is one copy of the parts into place.
    """

    __slots__ = (
        "_cause", "_cause_json", "_head", "_id_head", "_ids", "_incarnation", "_instants",
        "_job_id", "_priority", "_priority_of", "_queue_of", "_topic", "_topic_json", "_type",
        "_type_name", "_type_of", "_user_id", "_users",
    )
    _USERS_MAX: Final = 4096  # whose ids are kept as JSON, then it starts anew

    def __init__(self, instants: InstantCache) -> None:
        self._instants = instants
        self._user_id = self._job_id = ""  # whose head it is
        self._incarnation = -1
        self._type_of = self._queue_of = self._priority_of = ""
        self._users: dict[str, tuple[bytes, bytes]] = {}
        self._head = self._id_head = self._ids = self._priority = b""
        self._type = self._type_name = b""
        self._topic, self._topic_json = "", b""
        self._cause: tuple[str, int, int] | None = None
        self._cause_json = _NULL

    def write(self, event: Event) -> bytes:
        """The value of a record on jobs.events."""
        self._look_at(event)
        sequence = event.sequence
        tail = _audit_tail(event).encode() if sequence is None else _digits(sequence)
        reason, error, worker, data = event.reason, event.error, event.worker, event.data
        return (
            b'{"schema_version":%b,"event_id":"%b/%b","event":%b,%b,"run":%b,"sequence":%b,'
            b'"attempt":%b,"epoch":%b,"occurred_at":%b,"state_before":%b,"state_after":%b,'
            b'"reason":%b,"error":%b,"worker_id":%b,"due_at":%b,"wait_ms":%b,"run_ms":%b,'
            b'"cause":%b,"data":%b}'
        ) % (
            _VERSION, self._id_head, tail, _KIND_JSON[event.kind], self._head, _digits(event.run),
            _NULL if sequence is None else tail, _digits(event.attempt), _digits(event.epoch),
            self._instants.json(event.occurred_at), _STATE_JSON[event.state_before],
            _STATE_JSON[event.state_after], _NULL if reason is None else _json(reason),
            _NULL if error is None else _json(error),
            _NULL if worker is None else _json(worker[0]),
            self._instants.json(event.due_at), _digits_or_null(event.wait_ms),
            _digits_or_null(event.run_ms), self._write_cause(event.cause),
            _NULL if data is None else _json(data),
        )

    def completed(self, event: Event, requested_at: int, started_at: int | None) -> bytes:
        """The value of a record on jobs.completed, from a job's terminal event."""
        self._look_at(event)
        reason, error, data = event.reason, event.error, event.data
        result = data.get("result") if data is not None else None
        return (
            b'{%b,%b,"status":%b,"reason":%b,"result":%b,"error":%b,"attempts":%b,'
            b'"requested_at":%b,"started_at":%b,"finished_at":%b,"wait_ms":%b,"run_ms":%b,'
            b'"run":%b,"sequence":%b,"schema_version":%b}'
        ) % (
            self._ids, self._type, _STATE_JSON[event.state_after],
            _NULL if reason is None else _json(reason),
            _NULL if result is None else _json(result),
            _NULL if error is None else _json(error), _digits(event.attempt),
            self._instants.json(requested_at), self._instants.json(started_at),
            self._instants.json(event.occurred_at), _digits_or_null(event.wait_ms),
            _digits_or_null(event.run_ms), _digits(event.run), _digits_or_null(event.sequence),
            _VERSION,
        )

    def ready_job(
        self,
        event: Event,
        payload: bytes,
        *,
        max_attempts: int,
        timeout_ms: int,
        traceparent: str | None,
    ) -> bytes:
        """A `schemas.wire.ReadyJob`, from the event of its dispatch; `payload` is JSON text."""
        self._look_at(event)
        return (
            b'{%b,"type":%b,"run":%b,"attempt":%b,"max_attempts":%b,"epoch":%b,"timeout_ms":%b,'
            b'"requested_at":%b,"dispatched_at":%b,"payload":%b,"traceparent":%b}'
        ) % (
            self._ids, self._type_name, _digits(event.run), _digits(event.attempt),
            _digits(max_attempts), _digits(event.epoch), _digits(timeout_ms),
            self._instants.digits(event.incarnation), str(event.occurred_at).encode(), payload,
            _NULL if traceparent is None else _json(traceparent),
        )

    def event_id(self, event: Event) -> bytes:
        """`Event.event_id` as UTF-8, of an event with a sequence."""
        self._look_at(event)
        if event.sequence is None or b"\\" in self._id_head:  # JSON's escapes are no part of it
            return event.event_id.encode()
        return b"%b/%b" % (self._id_head, _digits(event.sequence))

    def _look_at(self, event: Event) -> None:
        """Writes what the events of one job share, unless the last event was of the same job."""
        is_of_type = self._look_at_type(event)
        if (
            is_of_type
            and event.job_id is self._job_id
            and event.user_id is self._user_id
            and event.incarnation == self._incarnation
        ):
            return
        self._user_id, self._job_id = event.user_id, event.job_id
        self._incarnation = event.incarnation
        user, user_in_id = self._user_json(event.user_id)
        job, begun = _json(event.job_id), self._instants.digits(event.incarnation)
        self._ids = b'"job_id":%b,"user_id":%b' % (job, user)
        self._head = b'%b,%b,%b,"incarnation":%b' % (
            self._ids, self._type, self._priority, begun
        )
        self._id_head = b"%b/%b/%b" % (user_in_id, job[1:-1], begun)

    def _user_json(self, user_id: str) -> tuple[bytes, bytes]:
        """A user's id as JSON, and as it stands in an event's id within JSON."""
        found = self._users.get(user_id)
        if found is None:
            if len(self._users) >= self._USERS_MAX:
                self._users.clear()
            text = _json(user_id)
            # As `_name_of` has it: JSON's own escapes hold neither of the two characters.
            in_id = text.replace(b"%", b"%25").replace(b"/", b"%2F")[1:-1]
            found = self._users[user_id] = (text, in_id)
        return found

    def _look_at_type(self, event: Event) -> bool:
        """The same for what many jobs share; whether it was the last event's."""
        if (
            event.type is self._type_of
            and event.queue is self._queue_of
            and event.priority is self._priority_of
        ):
            return True
        self._type_of, self._queue_of = event.type, event.queue
        self._priority_of = event.priority
        self._type_name = _json(event.type)
        self._type = b'"type":%b,"queue":%b' % (self._type_name, _json(event.queue))
        self._priority = b'"priority":%b' % _json(event.priority)
        return False

    def _write_cause(self, cause: tuple[str, int, int] | None) -> bytes:
        if cause is None:
            return _NULL
        if cause != self._cause:
            self._cause = cause
            topic = cause[0]
            if topic is not self._topic:
                self._topic, self._topic_json = topic, _json(topic)
            self._cause_json = b'{"topic":%b,"partition":%b,"offset":%b}' % (
                self._topic_json, _digits(cause[1]), str(cause[2]).encode()
            )
        return self._cause_json


def _digits_or_null(number: int | None) -> bytes:
    return _NULL if number is None else _digits(number)


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
    kind: EventKind, event_id: bytes, time_text: str, job_id: str
) -> list[tuple[str, bytes | None]]:
    """CloudEvents 1.0 binary-mode headers of a record on `jobs.completed`."""
    return [
        _CLOUDEVENTS_VERSION,
        ("ce_id", event_id),
        _CLOUDEVENTS_SOURCE,
        _CLOUDEVENTS_TYPE[kind],
        ("ce_time", time_text.encode()),
        ("ce_subject", job_id.encode()),
        _CONTENT_TYPE,
    ]
