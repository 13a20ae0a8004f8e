"""From input records to commands: decode, check where it belongs, forward, dead-letter or ask.

Owns the reading of the ledger's four inputs. Refuses to know timers, dispatch and transactions. No
record may stop a partition: whatever arrives ends as a decision, a forward or a dead letter. The
one exception is a record that a newer ledger wrote (`NeedsNewer`): to pass over it would lose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import orjson

from tidemill.schemas.codec import (
    Headers,
    Refusal,
    decode_command,
    decode_request,
)
from tidemill.schemas.requests import ID_LENGTH_MAX, REQUEST_BYTES_MAX, SignalCommand
from tidemill.schemas.schedules import USER_PREFIX, ScheduleCommand
from tidemill.schemas.topics import Topics
from tidemill.schemas.words import ErrorCode, Reason, State
from tidemill.streams import attempts, suspensions
from tidemill.streams.commands import (
    Cancel,
    Cause,
    Redrive,
    Refuse,
    Report,
    Signal,
)
from tidemill.streams.envelope import COMMAND, REQUEST, read_envelope
from tidemill.streams.job import Job
from tidemill.streams.messages import Messages
from tidemill.streams.output import CARRIED_BYTES_MAX, carried_bytes
from tidemill.streams.partitioner import Partitioner
from tidemill.streams.processor import Processor
from tidemill.streams.schedules import commands as schedule_commands
from tidemill.streams.stalls import Stalls

OUTCOME_KINDS: Final = frozenset(
    {
        "started", "progressed", "stepped", "members", "succeeded", "failed", "skipped",
        "returned", "suspended",
    }
)
_GO_ON: Final = frozenset({"progressed", "stepped"})


class InRecord(Protocol):
    """A record as it was read; `timestamp` in epoch ms."""

    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...
    @property
    def timestamp(self) -> int: ...


class _Spawned(NamedTuple):
    """The request of a handler, as if it had come as a record."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    timestamp: int


class Intake:
    """Takes records into one partition."""

    def __init__(
        self, number: int, topics: Topics, processor: Processor, partitioner: Partitioner,
        stalls: Stalls, messages: Messages,
    ) -> None:
        self._number = number
        self._messages = messages
        self._stalls = stalls
        self._processor = processor
        self._state = processor.state
        self._partitioner = partitioner
        self._topics = topics
        self._takers = {
            topics.requested: self._take_request,
            topics.internal: self._take_internal,
            topics.commands: self._take_command,
            topics.outcomes: self._take_outcomes,
        }

    def take(self, topic: str, partition: int, record: InRecord) -> None:
        """Decides one record, whatever it holds."""
        self._processor.audits = 0
        self._takers[topic](topic, partition, record)

    def note_lost(self, topic: str, partition: int, offset: int, what: str) -> None:
        """A dead letter in place of records that nobody can read any more, from `offset` on."""
        stage = {self._topics.commands: "command", self._topics.outcomes: "outcome"}
        refusal = Refusal(
            ErrorCode.RECORDS_LOST,
            f"{what}. Ask their senders to send again what was not answered: a repeat with the "
            "same job_id is harmless",
        )
        self._processor.output.dead_record(
            topic=topic, partition=partition, offset=offset, timestamp=self._state.clock_ms,
            key=None, value=None, headers=(), stage=stage.get(topic, "request"), refusal=refusal,
        )

    def _take_request(self, topic: str, partition: int, record: InRecord) -> None:
        origin: Cause = (topic, partition, record.offset)
        self._request(record, record.headers, origin, may_forward=True)

    def _take_internal(self, topic: str, partition: int, record: InRecord) -> None:
        here: Cause = (topic, partition, record.offset)
        found = read_envelope(record.headers, here)
        if isinstance(found, Refusal):
            self._dead_letter(record, record.headers, here, "request", found)
        elif found.kind == REQUEST:
            self._request(record, found.carried, found.origin, may_forward=False)
        elif found.kind == COMMAND:
            self._command(record, found.carried, found.origin, may_forward=False)
        else:
            refusal = self._messages.take(found, record.value, here)
            if refusal is not None:
                self._dead_letter(record, record.headers, here, "message", refusal)

    def _take_command(self, topic: str, partition: int, record: InRecord) -> None:
        origin: Cause = (topic, partition, record.offset)
        self._command(record, record.headers, origin, may_forward=True)

    def _is_too_large(
        self, record: InRecord, headers: Headers, origin: Cause, stage: str
    ) -> bool:
        """Whether a record cannot even be passed on; it becomes a dead letter where it was read."""
        size = carried_bytes(record.key, record.value, headers)
        if size <= CARRIED_BYTES_MAX:
            return False
        refusal = Refusal(
            ErrorCode.REQUEST_TOO_LARGE,
            f"key, value and headers have {size} bytes together, too many to be passed on; only "
            f"the beginning is kept. A value may have {REQUEST_BYTES_MAX} bytes; store the data "
            "elsewhere and send a reference",
        )
        self._dead_letter(record, headers, origin, stage, refusal)
        return True

    def _request(
        self, record: InRecord, headers: Headers, origin: Cause, *, may_forward: bool
    ) -> None:
        if self._is_too_large(record, headers, origin, "request"):
            return
        decoded = decode_request(record.value, headers)
        user_id = decoded.user_id if isinstance(decoded, Refusal) else decoded.request.user_id
        if user_id is not None and may_forward:
            home = self._partitioner.of(user_id)
            if home != self._number:
                self._processor.output.forward(
                    partition=home, key=record.key, value=record.value, headers=headers,
                    kind="request", origin=origin,
                )
                return
        if isinstance(decoded, Refusal):
            if user_id is not None and decoded.job_id is None:
                decoded.job_id = derived_job_id(origin)
            self._dead_letter(record, headers, origin, "request", decoded)
            if user_id is not None and decoded.job_id is not None:
                self._refuse(decoded, user_id, decoded.job_id, origin)
            return
        self._processor.submit(decoded, decoded.request.job_id or derived_job_id(origin), origin)

    def _refuse(self, refusal: Refusal, user_id: str, job_id: str, origin: Cause) -> None:
        key = (user_id, job_id)
        command = Refuse(refusal, user_id, job_id, origin)
        self._processor.decide(key, self._state.jobs.get(key), command)

    def _command(
        self, record: InRecord, headers: Headers, origin: Cause, *, may_forward: bool
    ) -> None:
        if self._is_too_large(record, headers, origin, "command"):
            return
        command = decode_command(record.value)
        if isinstance(command, Refusal):
            self._dead_letter(record, headers, origin, "command", command)
            return
        home = self._partitioner.of(
            USER_PREFIX + command.name if isinstance(command, ScheduleCommand) else command.user_id
        )
        if home != self._number and may_forward:
            self._processor.output.forward(
                partition=home, key=record.key, value=record.value, headers=headers,
                kind="command", origin=origin,
            )
            return
        if isinstance(command, ScheduleCommand):
            self._schedule_command(command, record, headers, origin)
            return
        key = (command.user_id, command.job_id)
        job = self._state.jobs.get(key)
        if isinstance(command, SignalCommand):
            value = orjson.dumps(command.value)
            signal = Signal(key, command.name, value, command.actor, origin)
            self._processor.decide(key, job, signal)
            return
        made = Cancel if command.command == "cancel" else Redrive
        if self._processor.decide(key, job, made(key, command.actor, command.reason, origin)):
            self._processor.resolve_known(key)
        elif job is None and made is Redrive and self._state.ended(key) is None:
            refusal = Refusal(
                ErrorCode.UNKNOWN_JOB,
                f"user {command.user_id!r} has no job {command.job_id!r} here, or it ended long "
                "ago; look up user_id and job_id in the jobs table",
                field="job_id", user_id=command.user_id, job_id=command.job_id,
            )
            self._dead_letter(record, headers, origin, "command", refusal)

    def _schedule_command(
        self, command: ScheduleCommand, record: InRecord, headers: Headers, origin: Cause
    ) -> None:
        processor = self._processor
        before = self._state.accepted
        ticking = self._state.policies.schedules.ticking
        refused = schedule_commands.obey(ticking, processor.turn, command)
        processor.spend(1 + self._state.accepted - before)
        if refused is not None:
            refusal = Refusal(
                ErrorCode.INVALID_FIELD,
                f"the {command.word} of schedule {command.name!r} was refused: {refused}",
                field="name",
            )
            self._dead_letter(record, headers, origin, "command", refusal)

    def _take_outcomes(self, topic: str, partition: int, record: InRecord) -> None:
        origin: Cause = (topic, partition, record.offset)
        pack = _read_pack(record.value)
        if isinstance(pack, Refusal):
            self._dead_letter(record, record.headers, origin, "outcome", pack)
            return
        worker = (pack["worker_id"], pack["incarnation"])
        is_strange = False
        for outcome in pack["outcomes"]:
            if _is_outcome(outcome):
                self._outcome(outcome, worker, record, origin)
            else:
                is_strange = True
        if is_strange:
            refusal = Refusal(
                ErrorCode.INVALID_FIELD,
                "an outcome lacks kind, user_id, job_id or epoch, or has one of another type; the "
                "others of its record were taken",
                field="outcomes",
            )
            self._dead_letter(record, record.headers, origin, "outcome", refusal)

    def _outcome(
        self, outcome: dict[str, Any], worker: tuple[str, int], record: InRecord, origin: Cause
    ) -> None:
        key = (outcome["user_id"], outcome["job_id"])
        job = self._state.jobs.get(key)
        kind = outcome["kind"]
        if kind == "members":
            if job is not None:
                parents = self._state.policies.gather.parents
                parents.collect(self._processor.turn, job, outcome)
            return
        if kind == "returned" and job is not None:
            if self._stalls.has(job, outcome):
                return
            if self._stalls.is_unbegun(job, outcome):
                outcome["reason"] = Reason.WORKER_STALLED.value
        if not self._processor.decide(key, job, Report(outcome, worker, origin)) or job is None:
            return
        limit = self._processor.schedule.pool_of(job.spec).limit
        if kind == "returned":
            if outcome.get("reason") == Reason.NO_FREE_SLOT:
                limit.note_returned(self._state.clock_ms)
        elif kind not in _GO_ON and job.state is State.DISPATCHED:
            now_ms = self._state.clock_ms
            started_at, _, run_ms = attempts.times(job, outcome, now_ms)
            waited_ms = started_at - (job.dispatched_at or started_at)
            if kind == "started":
                limit.note_start(waited_ms, now_ms)
            else:
                limit.note_outcome(waited_ms, run_ms, now_ms)
        children = outcome.get("children")
        if children:
            self._spawn(children, job, record, origin)

    def _spawn(
        self, children: list[Any], parent: Job, record: InRecord, origin: Cause
    ) -> None:
        """The requests of a handler are born in the transaction that ends its attempt."""
        spec = parent.spec
        headers: list[tuple[str, bytes | None]] = []
        if spec.traceparent is not None:
            headers.append(("traceparent", spec.traceparent.encode()))
        for index, child in enumerate(children):
            if isinstance(child, dict):
                for name, value in (
                    ("parent_job_id", spec.job_id), ("user_id", spec.user_id),
                    ("job_id", f"{spec.job_id}.{parent.run}.{index}"[-ID_LENGTH_MAX:]),
                ):
                    if child.get(name) is None:
                        child[name] = value
            try:
                text = orjson.dumps(child)
            except TypeError as error:
                refusal = Refusal(ErrorCode.TOO_DEEP, f"child {index}: {error}; flatten it")
                self._dead_letter(record, record.headers, origin, "outcome", refusal)
                continue
            born = _Spawned(origin[2], spec.user_id.encode(), text, headers, record.timestamp)
            self._request(born, headers, origin, may_forward=True)

    def _dead_letter(
        self, record: InRecord, headers: Headers, origin: Cause, stage: str, refusal: Refusal
    ) -> None:
        self._processor.output.dead_record(
            topic=origin[0], partition=origin[1], offset=origin[2], timestamp=record.timestamp,
            key=record.key, value=record.value, headers=headers, stage=stage, refusal=refusal,
        )


def derived_job_id(origin: Cause) -> str:
    """The id of a job that was asked for without one: the same for each reading of the record."""
    return f"{origin[0]}-{origin[1]}-{origin[2]}"


def _read_pack(value: bytes | None) -> dict[str, Any] | Refusal:
    """An outcome pack, checked as far as the engine relies on it."""
    try:
        pack = orjson.loads(value or b"")
    except ValueError as error:
        return Refusal(ErrorCode.UNDECODABLE, f"not an outcome pack: {error}")
    if not isinstance(pack, dict) or not isinstance(pack.get("outcomes"), list):
        return Refusal(
            ErrorCode.NOT_AN_OBJECT, "not an outcome pack; only workers write to this topic"
        )
    if pack.get("schema_version") != 1:
        return Refusal(
            ErrorCode.UNKNOWN_VERSION,
            f"outcome pack of version {pack.get('schema_version')!r}; this ledger reads version 1: "
            "upgrade the ledger before its workers",
            field="schema_version",
        )
    worker_id = pack.get("worker_id")
    has_worker = isinstance(worker_id, str) and len(worker_id) <= ID_LENGTH_MAX
    if not has_worker or type(pack.get("incarnation")) is not int:
        return Refusal(
            ErrorCode.MISSING_FIELD,
            f"an outcome pack needs worker_id, at most {ID_LENGTH_MAX} characters, and incarnation",
            field="worker_id",
        )
    return pack


def _is_outcome(outcome: object) -> bool:
    if not isinstance(outcome, dict):
        return False
    kind = outcome.get("kind")
    if type(kind) is not str or kind not in OUTCOME_KINDS:
        return False
    if type(outcome.get("user_id")) is not str or type(outcome.get("job_id")) is not str:
        return False
    if type(outcome.get("epoch")) is not int:
        return False
    for name in ("started_at", "finished_at", "retry_after_ms"):
        number = outcome.get(name)
        if number is not None and not isinstance(number, int):
            return False
    if kind in ("stepped", "members", "suspended") and not suspensions.is_readable(outcome):
        return False
    error, children = outcome.get("error"), outcome.get("children")
    return (error is None or isinstance(error, dict)) and (
        children is None or isinstance(children, list)
    )
