"""Events as the hot path makes them: slots, and their bytes.

Owns the slotted `Event`, the bytes of `tidemill.schemas.events.JobEvent` and the headers of
`jobs.completed`. Refuses to know who decides (`streams`) and where the bytes go (`agents`). No
model of pydantic's stands here: this module is compiled (`tools.native`).
`EventWriter` is quick and `JobEvent` is the contract of one record; a test holds them together.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from librt.strings import BytesWriter

from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.batch_builder import BatchBuilder, header_bytes, put_bytes
from tidemill.schemas.instants import InstantCache
from tidemill.schemas.numbers import number_text, put_decimal, put_decimal_or_null
from tidemill.schemas.words import EventKind, Reason, State

CLOUDEVENTS_SOURCE: Final = "/tidemill/ledger"
COLLAPSED: Final = Reason.COLLAPSED
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
        "labels",
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
        "waits_for",
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
        state_after: State | None,
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
        labels: bytes = b"",
        waits_for: tuple[str, ...] | None = None,
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
        self.labels = labels  # JSON of tags, batch_id and parent_job_id, without its braces
        self.index = index  # of an audit event: how many its input led to, this one included
        # What `data` says, as the engine holds it (`tidemill.streams.job.Spec`); never written.
        self.spec = spec
        # What the job waits for from now on (`tidemill.streams.job.WaitKey`); readers get `reason`.
        self.waits_for = waits_for

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
STATE_JSON: Final[dict[State | None, bytes]] = {
    None: _NULL, **{state: f'"{state}"'.encode() for state in State}
}


class _User:
    """What is written of a user's id, again and again."""

    __slots__ = ("in_id", "is_escaped", "json", "key", "user_id")

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.key = user_id.encode()  # of a record
        self.json = b"%b" % _json(user_id)  # a copy: orjson's results keep a buffer of 4 KiB
        # As `_name_of` has it: JSON's own escapes hold neither of the two characters.
        self.in_id = self.json.replace(b"%", b"%25").replace(b"/", b"%2F")[1:-1]
        self.is_escaped = b"\\" in self.json


class _Phase:
    """What the events of many jobs share that are equally far. The kind tells the state after."""

    __slots__ = ("attempt", "before", "epoch", "numbers", "run", "sequence", "states", "tail")

    def __init__(self, event: Event, tail: bytes) -> None:
        self.run, self.attempt, self.epoch = event.run, event.attempt, event.epoch
        self.sequence = -1 if event.sequence is None else event.sequence
        self.before = event.state_before
        self.tail = b'/%b","event":"%b",' % (tail, event.kind.encode())
        self.numbers = b',"run":%b,"sequence":%b,"attempt":%b,"epoch":%b,"occurred_at":' % (
            number_text(event.run), _NULL if event.sequence is None else tail,
            number_text(event.attempt), number_text(event.epoch),
        )
        self.states = b',"state_before":%b,"state_after":%b,"reason":' % (
            STATE_JSON[event.state_before], STATE_JSON[event.state_after]
        )


class EventWriter:
    """Events as the bytes of `JobEvent` and `CompletedJob`, quickly: most of what the ledger writes
    is events.

    What events share is written once: the head of a job's events, a cause, an instant. `data` may
    hold `orjson.Fragment`s of JSON that is kept as bytes. Values are written part by part where
    they belong, in a page of records.
    """

    __slots__ = (
        "_begun", "_cause_json", "_cause_offset", "_cause_partition", "_cause_topic", "_instants",
        "_job", "_job_id", "_phases", "_priority_of", "_queue_of", "_started", "_topic",
        "_topic_json", "_type", "_type_name", "_type_of", "_type_part", "_user", "_users",
        "_worker_id", "_worker_json",
    )
    _USERS_MAX: Final = 4096  # whose ids are kept, then it starts anew

    def __init__(self, instants: InstantCache) -> None:
        self._instants = instants
        # Each remembers its last one, and these go forward at their own pace.
        self._begun, self._started = InstantCache(), InstantCache()
        self._user, self._job_id = _User(""), ""  # whose the texts are
        self._type_of = self._queue_of = self._priority_of = ""
        self._users: dict[str, _User] = {}
        self._job = self._type = self._type_name = self._type_part = b""
        self._phases: dict[EventKind, _Phase] = {}
        self._topic, self._topic_json = "", b""
        self._cause_topic, self._cause_partition, self._cause_offset = "", -1, -1
        self._cause_json = _NULL
        self._worker_id, self._worker_json = "", b'""'

    # --- jobs.events ---

    def add_event(self, pages: BatchBuilder, event: Event) -> None:
        """A record on jobs.events; its key is the user's id."""
        self._look_at(event)
        key = self._user.key
        page = pages.place()
        self._put_event(page.begin(key), event)
        page.end_value()
        if not page.end():
            pages.add(key, self.write(event))

    def write(self, event: Event) -> bytes:
        """The value of a record on jobs.events."""
        self._look_at(event)
        out = BytesWriter()
        self._put_event(out, event)
        return out.getvalue()

    def _put_event(self, out: BytesWriter, event: Event) -> None:
        phase = self._phase_of(event)
        begun = self._instants.digits(event.incarnation)
        out.write(_EVENT_BEGINS)
        out.write(self._user.in_id)
        out.write(b"/")
        out.write(self._job)
        out.write(b"/")
        out.write(begun)
        out.write(phase.tail)
        self._put_ids(out)
        out.write(self._type_part)
        out.write(begun)
        out.write(phase.numbers)
        out.write(self._instants.json(event.occurred_at))
        out.write(phase.states)
        reason, error, worker = event.reason, event.error, event.worker
        if reason is None and error is None:
            out.write(b'null,"error":null,"worker_id":')
        else:
            out.write(_NULL if reason is None else _json(reason))
            out.write(b',"error":')
            out.write(_NULL if error is None else _json(error))
            out.write(b',"worker_id":')
        out.write(_NULL if worker is None else self._worker_text(worker[0]))
        if event.due_at is None and event.wait_ms is None and event.run_ms is None:
            out.write(b',"due_at":null,"wait_ms":null,"run_ms":null,"cause":')
        else:
            out.write(b',"due_at":')
            out.write(self._instants.json(event.due_at))
            out.write(b',"wait_ms":')
            put_decimal_or_null(out, event.wait_ms)
            out.write(b',"run_ms":')
            put_decimal_or_null(out, event.run_ms)
            out.write(b',"cause":')
        cause, data = event.cause, event.data
        if cause is None:
            out.write(_NULL)
        else:
            out.write(self._cause_text(cause[0], cause[1], cause[2]))
        out.write(b',"data":')
        out.write(_NULL if data is None else _json(data))
        if event.labels:
            out.write(b",")
            out.write(event.labels)
        out.write(b"}")

    def _phase_of(self, event: Event) -> _Phase:
        sequence = event.sequence
        if sequence is None:
            return _Phase(event, _audit_tail(event).encode())
        found = self._phases.get(event.kind)
        if (
            found is None
            or found.sequence != sequence
            or found.epoch != event.epoch
            or found.attempt != event.attempt
            or found.run != event.run
            or found.before is not event.state_before
        ):
            found = self._phases[event.kind] = _Phase(event, number_text(sequence))
        return found

    # --- jobs.completed ---

    def add_completed(
        self, pages: BatchBuilder, event: Event, requested_at: int, started_at: int | None
    ) -> None:
        """A record on jobs.completed, with its CloudEvents headers, from a terminal event."""
        self._look_at(event)
        key = self._user.key
        event_id = self.event_id(event)
        time_text = self._instants.utf8(event.occurred_at)
        subject = event.job_id.encode()
        page = pages.place()
        out = page.begin(key)
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
                key, self.completed(event, requested_at, started_at),
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
        self._put_ids(out)
        out.write(b",")
        out.write(self._type)
        out.write(b',"status":')
        out.write(STATE_JSON[event.state_after])
        out.write(b',"reason":')
        out.write(_NULL if reason is None else _json(reason))
        out.write(b',"result":')
        out.write(_NULL if result is None else _json(result))
        out.write(b',"error":')
        out.write(_NULL if error is None else _json(error))
        out.write(b',"attempts":')
        put_decimal(out, event.attempt)
        out.write(b',"requested_at":')
        out.write(self._begun.json(requested_at))
        out.write(b',"started_at":')
        out.write(self._started.json(started_at))
        out.write(b',"finished_at":')
        out.write(self._instants.json(event.occurred_at))
        out.write(b',"wait_ms":')
        put_decimal_or_null(out, event.wait_ms)
        out.write(b',"run_ms":')
        put_decimal_or_null(out, event.run_ms)
        out.write(b',"run":')
        put_decimal(out, event.run)
        out.write(b',"sequence":')
        put_decimal_or_null(out, event.sequence)
        if reason is not None and data is not None and reason == COLLAPSED:
            out.write(b',"collapsed_into":%b' % _json(data["collapsed_into"]))
        out.write(_VERSION_ENDS)

    # --- jobs.ready ---

    def ready_job(
        self, event: Event, payload: bytes, *, max_attempts: int, timeout_ms: int,
        traceparent: str | None, rescues: int = 0, memory: bytes = b"", type_name: bytes = b"",
    ) -> bytes:
        """A `tidemill.schemas.wire.ReadyJob`; `payload`, `memory`, `type_name` are JSON texts."""
        self._look_at(event)
        return (
            b'{"job_id":"%b","user_id":%b,"type":%b,"run":%b,"attempt":%b,"max_attempts":%b,'
            b'"epoch":%b,"timeout_ms":%b,"requested_at":%b,"dispatched_at":%b,"payload":%b,'
            b'"traceparent":%b%b%b}'
        ) % (
            self._job, self._user.json, type_name or self._type_name, number_text(event.run),
            number_text(event.attempt), number_text(max_attempts), number_text(event.epoch),
            number_text(timeout_ms), self._instants.digits(event.incarnation),
            self._begun.digits(event.occurred_at), payload,
            _NULL if traceparent is None else _json(traceparent),
            b',"rescues":%b' % number_text(rescues) if rescues else b"",
            memory and b',"memory":%b' % memory,
        )

    def event_id(self, event: Event) -> bytes:
        """`Event.event_id` as UTF-8, of an event with a sequence."""
        self._look_at(event)
        user, job = self._user, self._job
        # JSON's escapes are no part of it.
        if event.sequence is None or user.is_escaped or job.find(b"\\") >= 0:
            return event.event_id.encode()
        return b"%b/%b/%b/%b" % (
            user.in_id, job, self._instants.digits(event.incarnation), number_text(event.sequence)
        )

    def _put_ids(self, out: BytesWriter) -> None:
        out.write(b'"job_id":"')
        out.write(self._job)
        out.write(b'","user_id":')
        out.write(self._user.json)

    def _look_at(self, event: Event) -> None:
        """Writes what the events of one job share, unless the last event was of the same job."""
        self._look_at_type(event)
        if event.user_id is not self._user.user_id:
            self._user = self._user_of(event.user_id)
        if event.job_id is not self._job_id:
            self._job_id = event.job_id
            self._job = _json(event.job_id)[1:-1]

    def _user_of(self, user_id: str) -> _User:
        found = self._users.get(user_id)
        if found is None:
            if len(self._users) >= self._USERS_MAX:
                self._users.clear()
            found = self._users[user_id] = _User(user_id)
        return found

    def _look_at_type(self, event: Event) -> None:
        """The same for what many jobs share."""
        if (
            event.type is self._type_of
            and event.queue is self._queue_of
            and event.priority is self._priority_of
        ):
            return
        self._type_of, self._queue_of = event.type, event.queue
        self._priority_of = event.priority
        self._type_name = _json(event.type)
        self._type = b'"type":%b,"queue":%b' % (self._type_name, _json(event.queue))
        self._type_part = b',%b,"priority":%b,"incarnation":' % (
            self._type, _json(event.priority)
        )

    def _worker_text(self, worker_id: str) -> bytes:
        if worker_id is not self._worker_id:
            self._worker_id, self._worker_json = worker_id, _json(worker_id)
        return self._worker_json

    def _cause_text(self, topic: str, partition: int, offset: int) -> bytes:
        if (
            offset != self._cause_offset
            or partition != self._cause_partition
            or topic != self._cause_topic
        ):
            self._cause_topic, self._cause_partition, self._cause_offset = topic, partition, offset
            if topic is not self._topic:
                self._topic, self._topic_json = topic, _json(topic)
            self._cause_json = b'{"topic":%b,"partition":%b,"offset":%b}' % (
                self._topic_json, number_text(partition), str(offset).encode()
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
