"""Events as the hot path makes them: slots, and their bytes.

Owns the slotted `Event`, the bytes of `schemas.events.JobEvent` and the headers of
`jobs.completed`. Refuses to know who decides (`streams`) and where the bytes go
(`agents`). No model of pydantic's stands here: this module is among those that are compiled
(`tools.native`).

`EventWriter` and `JobEvent` describe the same record: the first is quick, the second is the
contract; a test holds them together.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from librt.strings import BytesWriter

from schemas import SCHEMA_VERSION
from schemas.instants import InstantCache
from schemas.record_pages import RecordPages, header_bytes, put_bytes
from schemas.words import EventKind, State

CLOUDEVENTS_SOURCE: Final = "/tidemill/ledger"
CLOUDEVENTS_TYPE_PREFIX: Final = "tidemill.job."


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
_VERSION: Final = str(SCHEMA_VERSION).encode()
_CLOUDEVENTS_TYPE: Final = {
    kind: ("ce_type", f"{CLOUDEVENTS_TYPE_PREFIX}{kind.value}".encode()) for kind in EventKind
}
_CLOUDEVENTS_VERSION: Final = ("ce_specversion", b"1.0")
_CLOUDEVENTS_SOURCE: Final = ("ce_source", CLOUDEVENTS_SOURCE.encode())
_CONTENT_TYPE: Final = ("content-type", b"application/json")
HEADERS_COUNT: Final = 7  # of a record on jobs.completed
# Those that all jobs with the same end share, as they stand in a record.
_HEADERS_OF_KIND: Final = {
    kind: b"".join(
        header_bytes(name, text)
        for name, text in (
            _CLOUDEVENTS_VERSION, _CLOUDEVENTS_SOURCE, _CLOUDEVENTS_TYPE[kind], _CONTENT_TYPE
        )
    )
    for kind in EventKind
}
_EVENT_BEGINS: Final = b'{"schema_version":%b,"event_id":"' % _VERSION
_VERSION_ENDS: Final = b',"schema_version":%b}' % _VERSION
_KIND_PART: Final = {kind: f'","event":"{kind}",'.encode() for kind in EventKind}
_STATE_JSON: Final[dict[State | None, bytes]] = {
    None: _NULL, **{state: f'"{state}"'.encode() for state in State}
}
_DIGITS: Final = tuple(str(number).encode() for number in range(1_000))


def _digits(number: int) -> bytes:
    """Decimal; most numbers of an event are small."""
    return _DIGITS[number] if 0 <= number < 1_000 else str(number).encode()


class _User:
    """What is written of a user's id, again and again."""

    __slots__ = ("in_id", "json", "key")

    def __init__(self, user_id: str) -> None:
        self.key = user_id.encode()  # of a record
        self.json = _json(user_id)
        # As `_name_of` has it: JSON's own escapes hold neither of the two characters.
        self.in_id = self.json.replace(b"%", b"%25").replace(b"/", b"%2F")[1:-1]


class EventWriter:
    """Events as the bytes of `JobEvent` and `CompletedJob`, quickly: most of what the ledger writes
    is events.

    What events share is written once: the head of a job's events, a cause, an instant. `data` may
    hold `orjson.Fragment`s of JSON that is kept as bytes. Values are written part by part where
    they belong, in a page of records.
    """

    __slots__ = (
        "_cause", "_cause_json", "_head", "_id_head", "_ids", "_incarnation", "_instants",
        "_job_id", "_key", "_priority", "_priority_of", "_queue_of", "_topic", "_topic_json",
        "_type", "_type_name", "_type_of", "_user_id", "_users", "_worker", "_worker_json",
    )
    _USERS_MAX: Final = 4096  # whose ids are kept, then it starts anew

    def __init__(self, instants: InstantCache) -> None:
        self._instants = instants
        self._user_id = self._job_id = ""  # whose head it is
        self._incarnation = -1
        self._type_of = self._queue_of = self._priority_of = ""
        self._users: dict[str, _User] = {}
        self._key = self._head = self._id_head = self._ids = self._priority = b""
        self._type = self._type_name = b""
        self._topic, self._topic_json = "", b""
        self._cause: tuple[str, int, int] | None = None
        self._cause_json = _NULL
        self._worker: tuple[str, int] | None = None
        self._worker_json = _NULL

    # --- jobs.events ---

    def add_event(self, pages: RecordPages, event: Event) -> None:
        """A record on jobs.events; its key is the user's id."""
        self._look_at(event)
        page = pages.place()
        self._put_event(page.begin(self._key), event)
        page.end_value()
        if not page.end():
            pages.add(self._key, self.write(event))

    def write(self, event: Event) -> bytes:
        """The value of a record on jobs.events."""
        self._look_at(event)
        out = BytesWriter()
        self._put_event(out, event)
        return out.getvalue()

    def _put_event(self, out: BytesWriter, event: Event) -> None:
        sequence = event.sequence
        tail = _audit_tail(event).encode() if sequence is None else _digits(sequence)
        reason, error, data = event.reason, event.error, event.data
        out.write(_EVENT_BEGINS)
        out.write(self._id_head)
        out.write(b"/")
        out.write(tail)
        out.write(_KIND_PART[event.kind])
        out.write(self._head)
        out.write(b',"run":')
        out.write(_digits(event.run))
        out.write(b',"sequence":')
        out.write(_NULL if sequence is None else tail)
        out.write(b',"attempt":')
        out.write(_digits(event.attempt))
        out.write(b',"epoch":')
        out.write(_digits(event.epoch))
        out.write(b',"occurred_at":')
        out.write(self._instants.json(event.occurred_at))
        out.write(b',"state_before":')
        out.write(_STATE_JSON[event.state_before])
        out.write(b',"state_after":')
        out.write(_STATE_JSON[event.state_after])
        out.write(b',"reason":')
        out.write(_NULL if reason is None else _json(reason))
        out.write(b',"error":')
        out.write(_NULL if error is None else _json(error))
        out.write(b',"worker_id":')
        out.write(self._write_worker(event.worker))
        out.write(b',"due_at":')
        out.write(self._instants.json(event.due_at))
        out.write(b',"wait_ms":')
        out.write(_digits_or_null(event.wait_ms))
        out.write(b',"run_ms":')
        out.write(_digits_or_null(event.run_ms))
        out.write(b',"cause":')
        out.write(self._write_cause(event.cause))
        out.write(b',"data":')
        out.write(_NULL if data is None else _json(data))
        out.write(b"}")

    # --- jobs.completed ---

    def add_completed(
        self, pages: RecordPages, event: Event, requested_at: int, started_at: int | None
    ) -> None:
        """A record on jobs.completed, with its CloudEvents headers, from a terminal event."""
        self._look_at(event)
        event_id = self.event_id(event)
        time_text = self._instants.utf8(event.occurred_at)
        subject = event.job_id.encode()
        page = pages.place()
        out = page.begin(self._key)
        self._put_completed(out, event, requested_at, started_at)
        page.end_value(HEADERS_COUNT)
        put_bytes(out, b"ce_id")
        put_bytes(out, event_id)
        out.write(_HEADERS_OF_KIND[event.kind])
        put_bytes(out, b"ce_time")
        put_bytes(out, time_text)
        put_bytes(out, b"ce_subject")
        put_bytes(out, subject)
        if not page.end():
            pages.add(
                self._key, self.completed(event, requested_at, started_at),
                completed_headers(event.kind, event_id, time_text, subject),
            )

    def completed(self, event: Event, requested_at: int, started_at: int | None) -> bytes:
        """The value of a record on jobs.completed, from a job's terminal event."""
        self._look_at(event)
        out = BytesWriter()
        self._put_completed(out, event, requested_at, started_at)
        return out.getvalue()

    def _put_completed(
        self, out: BytesWriter, event: Event, requested_at: int, started_at: int | None
    ) -> None:
        reason, error, data = event.reason, event.error, event.data
        result = data.get("result") if data is not None else None
        out.write(b"{")
        out.write(self._ids)
        out.write(b",")
        out.write(self._type)
        out.write(b',"status":')
        out.write(_STATE_JSON[event.state_after])
        out.write(b',"reason":')
        out.write(_NULL if reason is None else _json(reason))
        out.write(b',"result":')
        out.write(_NULL if result is None else _json(result))
        out.write(b',"error":')
        out.write(_NULL if error is None else _json(error))
        out.write(b',"attempts":')
        out.write(_digits(event.attempt))
        out.write(b',"requested_at":')
        out.write(self._instants.json(requested_at))
        out.write(b',"started_at":')
        out.write(self._instants.json(started_at))
        out.write(b',"finished_at":')
        out.write(self._instants.json(event.occurred_at))
        out.write(b',"wait_ms":')
        out.write(_digits_or_null(event.wait_ms))
        out.write(b',"run_ms":')
        out.write(_digits_or_null(event.run_ms))
        out.write(b',"run":')
        out.write(_digits(event.run))
        out.write(b',"sequence":')
        out.write(_digits_or_null(event.sequence))
        out.write(_VERSION_ENDS)

    # --- jobs.ready ---

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
        user = self._user(event.user_id)
        job, begun = _json(event.job_id), self._instants.digits(event.incarnation)
        self._key = user.key
        self._ids = b'"job_id":%b,"user_id":%b' % (job, user.json)
        self._head = b'%b,%b,%b,"incarnation":%b' % (
            self._ids, self._type, self._priority, begun
        )
        self._id_head = b"%b/%b/%b" % (user.in_id, job[1:-1], begun)

    def _user(self, user_id: str) -> _User:
        found = self._users.get(user_id)
        if found is None:
            if len(self._users) >= self._USERS_MAX:
                self._users.clear()
            found = self._users[user_id] = _User(user_id)
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

    def _write_worker(self, worker: tuple[str, int] | None) -> bytes:
        if worker is None:
            return _NULL
        if worker is not self._worker:
            self._worker, self._worker_json = worker, _json(worker[0])
        return self._worker_json

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
    kind: EventKind, event_id: bytes, time_text: bytes, job_id: bytes
) -> list[tuple[str, bytes | None]]:
    """CloudEvents 1.0 binary-mode headers of a record on `jobs.completed`."""
    return [
        ("ce_id", event_id),
        _CLOUDEVENTS_VERSION,
        _CLOUDEVENTS_SOURCE,
        _CLOUDEVENTS_TYPE[kind],
        _CONTENT_TYPE,
        ("ce_time", time_text),
        ("ce_subject", job_id),
    ]
