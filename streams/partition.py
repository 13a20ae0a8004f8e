"""One ledger partition: records in, one group of records out. The whole engine, without I/O.

Owns the order of a group's work: take each input once, fire timers, rescue, dispatch, seal.
Refuses to know Faust, Kafka clients, threads and the clock: `now_ms` comes in, records go out, and
the caller says whether their transaction was committed (`settle`) or not (`undo`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import orjson

from schemas.codec import (
    Decoded,
    Headers,
    Refusal,
    decode_command,
    decode_request,
)
from schemas.events import Event
from schemas.requests import ID_LENGTH_MAX
from schemas.topics import Topics
from schemas.wire import HEARTBEAT_MISSING_SECONDS, Definition
from schemas.words import IN_FLIGHT_STATES, TERMINAL_STATES, ErrorCode, EventKind, Reason, State
from streams import limits
from streams.commands import (
    Cancel,
    Cause,
    CoreCommand,
    Defer,
    Dispatch,
    Expire,
    Redrive,
    Refuse,
    Report,
    Rescue,
    Resolve,
    Submit,
)
from streams.homes import Homes
from streams.job import Job, JobKey
from streams.lifecycle import Effect, Rejected, decide, react, repeat_of_finished
from streams.outbox import ORIGIN_HEADER, ORIGIN_KIND_HEADER, Outbox, OutRecord
from streams.schedule import Schedule, TimerKind
from streams.state import PartitionState

_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")  # what Kafka allows as a topic's name
_NUMBER: Final = re.compile(r"[0-9]{1,18}")  # fits the 64 bits of an offset
LEASE_MS: Final = int(HEARTBEAT_MISSING_SECONDS * 1000)  # ms before a worker's silence counts
DISPATCH_LOST_MS: Final = 30_000  # ms in a ready topic without a start, while workers live
SWEEP_EVERY_MS: Final = 1_000  # ms between two looks at what is in flight
FORGET_EVERY_MS: Final = 5_000  # ms between two looks at what may be forgotten
DISPATCH_AT_ONCE_MAX: Final = 2_000  # jobs of one queue in one group: keeps groups short
_DISPATCH: Final = Dispatch()
OUTCOME_KINDS: Final = frozenset(
    {"started", "progressed", "succeeded", "failed", "skipped", "returned"}
)


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


class _Born(NamedTuple):
    """The request of a handler, as if it had come as a record."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    timestamp: int


class QueueCapacity(NamedTuple):
    """What the heartbeats of all workers say of one queue."""

    slots: int
    free: int
    workers: int
    partitions: tuple[int, ...]  # of its ready topic, those with free slots first


class Partition:
    """The engine of one partition. Not thread-safe: one group at a time."""

    def __init__(
        self,
        number: int,
        partitions: int,
        topics: Topics,
        state: PartitionState,
        *,
        homes: Homes | None = None,
    ) -> None:
        self.number = number
        self.state = state
        self.schedule = Schedule()
        self._topics = topics
        self._homes = homes or Homes(partitions)
        self._outbox = Outbox(topics, number)
        self._capacity: dict[str, QueueCapacity] = {}
        self._workers: Mapping[str, int] = {}
        self._leases_run_from = 0
        self._swept_at = 0
        self._forgot_at = 0
        self._changes_since = 0
        self._takers = {
            topics.requested: self._take_request,
            topics.internal: self._take_internal,
            topics.commands: self._take_command,
            topics.outcomes: self._take_outcomes,
        }

    # --- what the edge tells ---

    def restored(self, now_ms: int) -> None:
        """All rows are loaded. Every lease gets its full time from now on."""
        self.state.loaded()
        self.schedule.rebuild(self.state.jobs.values())
        self._leases_run_from = now_ms

    def set_capacity(self, capacity: Mapping[str, QueueCapacity]) -> None:
        """Free slots and ready partitions by queue, from the workers' heartbeats."""
        for queue in self._capacity.keys() - capacity.keys():
            self.schedule.window(queue).set_slots(0, free=0)
        self._capacity = dict(capacity)
        for queue, room in capacity.items():
            self.schedule.window(queue).set_slots(room.slots, free=room.free)

    def set_workers(self, alive: Mapping[str, int]) -> None:
        """The incarnation of each living worker."""
        self._workers = alive

    # --- a group ---

    def begin(self, now_ms: int) -> int:
        """Starts a group; returns the partition's instant, which never goes back."""
        return self.state.begin(now_ms)

    def take(self, topic: str, partition: int, record: InRecord) -> bool:
        """Decides one input record. False when it had been decided before."""
        if record.offset <= self.state.applied.get(topic, -1):
            return False
        self._takers[topic](topic, partition, record)
        self.state.applied[topic] = record.offset
        return True

    def define(self, definition: Definition) -> None:
        """Takes a type's definition; jobs that waited for it go on."""
        if self.state.definitions.get(definition.type) == definition:
            return
        self.state.define(definition)
        for key in list(self.schedule.unknown.pop(definition.type, {})):
            job = self.state.jobs.get(key)
            if job is not None and _waits_for_type(job):
                self._decide(key, job, Resolve(definition))

    def tick(self) -> None:
        """Timers, rescues, forgetting, then dispatch: what time alone brings."""
        now_ms = self.state.clock_ms
        while (due := self.schedule.pop_due(now_ms)) is not None:
            self._fire(*due)
        if now_ms - self._swept_at >= SWEEP_EVERY_MS:
            self._swept_at = now_ms
            self._sweep(now_ms)
        if now_ms - self._forgot_at >= FORGET_EVERY_MS:
            self._forgot_at = now_ms
            self.state.forget_old(now_ms)
        for queue in self._capacity:
            self._dispatch(queue, now_ms)

    def next_tick_at(self) -> int:
        """Epoch ms at which `tick` has something to do even if nothing arrives."""
        sweep_at = self._swept_at + SWEEP_EVERY_MS
        timer_at = self.schedule.next_timer_at()
        return sweep_at if timer_at is None else min(sweep_at, timer_at)

    def seal(self) -> list[OutRecord]:
        """The records of the group's one transaction; empty when nothing changed."""
        if not self.state.has_changes and not self._outbox.records:
            return []
        for queue, room in self._capacity.items():
            jobs_a_pack = max(1, room.slots // max(1, 2 * room.workers))
            self._outbox.pack_ready(
                queue, room.partitions, workers=room.workers, jobs_a_pack=jobs_a_pack
            )
        records = self._outbox.records
        state_topic = self._topics.state
        for key, value in self.state.changed_rows():
            records.append((state_topic, self.number, key, value, None))
        return records

    def settle(self) -> None:
        """The transaction is committed."""
        self.state.settle()
        self._outbox.clear()

    def undo(self) -> None:
        """The transaction was aborted: state and indices are as before the group."""
        self.state.undo()
        self._outbox.clear()
        self.schedule.rebuild(self.state.jobs.values())

    # --- inputs ---

    def _take_request(self, topic: str, partition: int, record: InRecord) -> None:
        origin: Cause = (topic, partition, record.offset)
        self._request(record, record.headers, origin, may_forward=True)

    def _take_internal(self, topic: str, partition: int, record: InRecord) -> None:
        here: Cause = (topic, partition, record.offset)
        kept = [
            header for header in record.headers
            if header[0] not in (ORIGIN_HEADER, ORIGIN_KIND_HEADER)
        ]
        found = dict(record.headers)
        origin = _parse_origin(found.get(ORIGIN_HEADER))
        if origin is None:
            refusal = Refusal(
                ErrorCode.BROKEN_FORWARD,
                f"a record on {topic} without a usable {ORIGIN_HEADER} header; only ledgers "
                "write there: send requests to the requests topic",
            )
            self._bury(record, record.headers, here, "request", refusal)
        elif found.get(ORIGIN_KIND_HEADER) == b"command":
            self._command(record, kept, origin, may_forward=False)
        else:
            self._request(record, kept, origin, may_forward=False)

    def _take_command(self, topic: str, partition: int, record: InRecord) -> None:
        origin: Cause = (topic, partition, record.offset)
        self._command(record, record.headers, origin, may_forward=True)

    def _request(
        self, record: InRecord, headers: Headers, origin: Cause, *, may_forward: bool
    ) -> None:
        decoded = decode_request(record.value, headers)
        user_id = decoded.user_id if isinstance(decoded, Refusal) else decoded.request.user_id
        if user_id is not None and may_forward:
            home = self._homes.of(user_id)
            if home != self.number:
                self._outbox.forward(
                    partition=home, user_id=user_id, value=record.value, headers=headers,
                    kind="request", origin=_origin_text(origin),
                )
                return
        if isinstance(decoded, Refusal):
            self._bury(record, headers, origin, "request", decoded)
            if user_id is not None:
                job_id = decoded.job_id or derived_job_id(origin)
                self._refuse(decoded, user_id, job_id, origin)
            return
        self._submit(decoded, decoded.request.job_id or derived_job_id(origin), origin)

    def _submit(self, decoded: Decoded, job_id: str, origin: Cause) -> None:
        key = (decoded.request.user_id, job_id)
        job = self.state.jobs.get(key)
        if job is None:
            ended = self.state.ended(key)
            if ended is not None:
                rejected = repeat_of_finished(ended.fingerprint, decoded.fingerprint)
                self._audit(key, decoded.request.type, ended.state, rejected, origin)
                return
        self._decide(key, job, Submit(decoded, job_id, origin))

    def _refuse(self, refusal: Refusal, user_id: str, job_id: str, origin: Cause) -> None:
        key = (user_id, job_id)
        ended = self.state.ended(key)
        if ended is not None:
            rejected = Rejected(Reason.OTHER_BODY, EventKind.CONFLICT_IGNORED)
            self._audit(key, refusal.type or "", ended.state, rejected, origin)
            return
        command = Refuse(refusal, user_id, job_id, origin)
        self._decide(key, self.state.jobs.get(key), command)

    def _command(
        self, record: InRecord, headers: Headers, origin: Cause, *, may_forward: bool
    ) -> None:
        command = decode_command(record.value)
        if isinstance(command, Refusal):
            self._bury(record, headers, origin, "command", command)
            return
        home = self._homes.of(command.user_id)
        if home != self.number and may_forward:
            self._outbox.forward(
                partition=home, user_id=command.user_id, value=record.value, headers=headers,
                kind="command", origin=_origin_text(origin),
            )
            return
        key = (command.user_id, command.job_id)
        job = self.state.jobs.get(key)
        if job is None and self.state.ended(key) is None:
            refusal = Refusal(
                ErrorCode.UNKNOWN_JOB,
                f"user {command.user_id!r} has no job {command.job_id!r} here, or it ended long "
                "ago; look up user_id and job_id in the jobs table",
                field="job_id", user_id=command.user_id, job_id=command.job_id,
            )
            self._bury(record, headers, origin, "command", refusal)
            return
        made = Cancel if command.command == "cancel" else Redrive
        if self._decide(key, job, made(command.actor, command.reason, origin)):
            self._resolve_known(key)

    def _resolve_known(self, key: JobKey) -> None:
        """A redriven job may have waited in vain for a type that is known by now."""
        job = self.state.jobs.get(key)
        if job is not None and _waits_for_type(job):
            definition = self.state.definition(job.spec.type)
            if definition is not None:
                self.schedule.unknown.get(job.spec.type, {}).pop(key, None)
                self._decide(key, job, Resolve(definition))

    def _take_outcomes(self, topic: str, partition: int, record: InRecord) -> None:
        origin: Cause = (topic, partition, record.offset)
        pack = _read_pack(record.value)
        if isinstance(pack, Refusal):
            self._bury(record, record.headers, origin, "outcome", pack)
            return
        worker = (pack["worker_id"], pack["incarnation"])
        for outcome in pack["outcomes"]:
            if _is_outcome(outcome):
                self._outcome(outcome, worker, record, origin)
        if not all(map(_is_outcome, pack["outcomes"])):
            refusal = Refusal(
                ErrorCode.INVALID_FIELD,
                "an outcome lacks kind, user_id, job_id or epoch, or has one of another type; the "
                "others of its record were taken",
                field="outcomes",
            )
            self._bury(record, record.headers, origin, "outcome", refusal)

    def _outcome(
        self, outcome: dict[str, Any], worker: tuple[str, int], record: InRecord, origin: Cause
    ) -> None:
        key = (outcome["user_id"], outcome["job_id"])
        job = self.state.jobs.get(key)
        if not self._decide(key, job, Report(outcome, worker, origin)) or job is None:
            return
        window = self.schedule.window(job.spec.queue)
        kind = outcome["kind"]
        if kind == "returned":
            if outcome.get("reason") == Reason.NO_FREE_SLOT:
                window.note_returned(self.state.clock_ms)
        elif kind not in ("started", "progressed") and job.state is State.DISPATCHED:
            started_at = outcome.get("started_at") or 0
            window.note_outcome(started_at - (job.dispatched_at or 0), self.state.clock_ms)
        children = outcome.get("children")
        if children:
            self._bear(children, job, record, origin)

    def _bear(
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
                self._bury(record, record.headers, origin, "outcome", refusal)
                continue
            born = _Born(origin[2], spec.user_id.encode(), text, headers, record.timestamp)
            self._request(born, headers, origin, may_forward=True)

    def _bury(
        self, record: InRecord, headers: Headers, origin: Cause, stage: str, refusal: Refusal
    ) -> None:
        self._outbox.dead_record(
            topic=origin[0], partition=origin[1], offset=origin[2], timestamp=record.timestamp,
            key=record.key, value=record.value, headers=headers, stage=stage, refusal=refusal,
        )

    # --- decisions and what they cause ---

    def _decide(self, key: JobKey, job: Job | None, command: CoreCommand) -> bool:
        """Asks the core, keeps what changed, and writes what it leads to."""
        decision = decide(job, command, self.state.clock_ms, self.state)
        if isinstance(decision, Rejected):
            self._record_rejection(key, job, command, decision)
            return False
        after = decision.job
        self.state.put(job, after)
        outbox = self._outbox
        for event in decision.events:
            outbox.event(event)
            for effect in react(event):
                self._cause(effect, after, event)
        self.schedule.place(job, after)
        return True

    def _cause(self, effect: Effect, job: Job, event: Event) -> None:
        match effect:
            case Effect.DISPATCH:
                self._outbox.dispatch(job)
            case Effect.COMPLETE:
                self._outbox.completed(job, event)
            case Effect.DEAD_LETTER:
                if job.is_dead_letter:
                    self._outbox.dead_job(job, event)
            case Effect.ANNOUNCE_RETRY:
                self._outbox.retry(job, event)
            case Effect.TELL_WORKER:
                self._outbox.cancel_word(job)
            case Effect.MAKE_READY | Effect.SET_TIMER:
                pass  # `schedule.place` does it, once, from the job's last state

    def _record_rejection(
        self, key: JobKey, job: Job | None, command: CoreCommand, rejected: Rejected
    ) -> None:
        if rejected.audit is None:
            return
        origin = getattr(command, "cause", None)
        type_name = job.spec.type if job is not None else ""
        state = job.state if job is not None else None
        if state is None:
            ended = self.state.ended(key)
            if ended is None:
                return  # nobody knows the job: there is no story to add to
            state = ended.state
            rejected = Rejected(Reason.ALREADY_ENDED, rejected.audit)
        self._audit(key, type_name, state, rejected, origin, job)

    def _audit(
        self,
        key: JobKey,
        type_name: str,
        state: State,
        rejected: Rejected,
        origin: Cause | None,
        job: Job | None = None,
    ) -> None:
        if rejected.audit is None:
            return
        spec = job.spec if job is not None else None
        self._outbox.event(
            Event(
                rejected.audit, key[0], key[1], type_name,
                spec.queue if spec is not None else "",
                spec.priority if spec is not None else "medium",
                spec.requested_at if spec is not None else 0,
                job.run if job is not None else 0, None,
                job.attempt if job is not None else 0, job.epoch if job is not None else 0,
                self.state.clock_ms, state, state, reason=rejected.reason, cause=origin,
            )
        )

    # --- time ---

    def _fire(self, kind: TimerKind, name: tuple[str, str]) -> None:
        if kind is TimerKind.GATE:
            self._open_gate(name)
            return
        job = self.state.jobs.get(name)
        now_ms = self.state.clock_ms
        if job is None or job.state in TERMINAL_STATES:
            return
        if kind is TimerKind.DUE:
            is_due = job.due_at is not None and job.due_at <= now_ms
            if is_due and job.state in (State.SCHEDULED, State.RETRYING):
                self.schedule.make_ready(job)
        elif kind is TimerKind.EXPIRES:
            if job.epoch == 0 and job.state not in IN_FLIGHT_STATES:
                self._decide(name, job, Expire())
        elif _waits_for_type(job) and (job.due_at or 0) <= now_ms:
            self.schedule.unknown.get(job.spec.type, {}).pop(name, None)
            self._decide(name, job, Resolve(self.state.definition(job.spec.type)))

    def _open_gate(self, name: tuple[str, str]) -> None:
        """Lets as many jobs through a delayed limit as may start now; sets the next timer."""
        gate = self.schedule.gates.get(name)
        definition = self.state.definition(name[1])
        if not gate or definition is None:
            return
        now_ms = self.state.clock_ms
        used = self.state.limit_state(*name)
        free = limits.free_starts(definition.limits, used, now_ms)
        let_in: list[Job] = []
        while gate and len(let_in) < free:
            job = self.state.jobs.get(gate.popleft())
            if job is not None and job.state is State.SCHEDULED:
                let_in.append(job)
        for job in reversed(let_in):
            self.schedule.make_ready(job, is_first=True)
        if gate:
            again_at = limits.delayed_until(definition.limits, used, now_ms)
            shortest = min((limit.window_ms for limit in definition.limits), default=0)
            self.schedule.set_timer(
                max(again_at, now_ms + min(shortest, SWEEP_EVERY_MS)), TimerKind.GATE, name
            )
        else:
            self.schedule.gates.pop(name, None)

    def _sweep(self, now_ms: int) -> None:
        """Rescues attempts whose worker is gone, and dispatches that reached nobody."""
        for queue, keys in list(self.schedule.in_flight.items()):
            has_workers = queue in self._capacity
            for key in list(keys):
                job = self.state.jobs.get(key)
                if job is not None:
                    reason = self._reason_to_rescue(job, now_ms, has_workers=has_workers)
                    if reason is not None:
                        self._decide(key, job, Rescue(reason))

    def _reason_to_rescue(self, job: Job, now_ms: int, *, has_workers: bool) -> Reason | None:
        since = max(job.dispatched_at or 0, self._leases_run_from)
        if job.state is State.RUNNING and job.worker is not None:
            worker_id, incarnation = job.worker
            alive = self._workers.get(worker_id)
            if alive is None:
                # A worker that nobody has heard yet is not lost yet.
                return Reason.WORKER_LOST if now_ms - since >= LEASE_MS else None
            return Reason.WORKER_RESTARTED if alive > incarnation else None
        is_lost = has_workers and now_ms - since > DISPATCH_LOST_MS
        return Reason.DISPATCH_LOST if is_lost else None

    def _dispatch(self, queue: str, now_ms: int) -> None:
        """Takes waiting jobs in their order while the window has room."""
        line = self.schedule.waiting.get(queue)
        if line is None or not len(line) or not self._capacity[queue].partitions:
            return
        in_flight = len(self.schedule.in_flight.get(queue, ()))
        room = self.schedule.window(queue).allowance(in_flight)
        room = min(room, DISPATCH_AT_ONCE_MAX)
        while room > 0 and (key := line.pop()) is not None:
            job = self.state.jobs.get(key)
            if job is None or not _may_dispatch(job, queue, now_ms):
                continue
            if self._is_held_back(key, job, now_ms):
                continue
            self._decide(key, job, _DISPATCH)
            room -= 1

    def _is_held_back(self, key: JobKey, job: Job, now_ms: int) -> bool:
        """Whether a delayed limit does not let the job start yet; it then waits at its gate."""
        definition = self.state.definition(job.spec.type)
        if job.epoch > 0 or definition is None or not definition.limits:
            return False
        used = self.state.limit_state(key[0], job.spec.type)
        gate = self.schedule.gates.get((key[0], job.spec.type), ())
        comes_later = bool(gate) and job.reason != Reason.RATE_LIMITED
        if not comes_later and limits.delayed_until(definition.limits, used, now_ms) <= now_ms:
            return False
        due_at = limits.estimated_due(definition.limits, used, now_ms, ahead=len(gate))
        self._decide(key, job, Defer(due_at))
        return True


def derived_job_id(origin: Cause) -> str:
    """The id of a job that was asked for without one: the same for each reading of the record."""
    return f"{origin[0]}-{origin[1]}-{origin[2]}"


def _origin_text(origin: Cause) -> str:
    return f"{origin[0]}/{origin[1]}/{origin[2]}"


def _parse_origin(value: bytes | None) -> Cause | None:
    if value is None:
        return None
    parts = value.decode("utf-8", "replace").rsplit("/", 2)
    if len(parts) != 3 or _TOPIC.fullmatch(parts[0]) is None:
        return None
    if not all(_NUMBER.fullmatch(part) for part in parts[1:]):
        return None
    return parts[0], int(parts[1]), int(parts[2])


def _waits_for_type(job: Job) -> bool:
    return job.state is State.SCHEDULED and job.reason == Reason.UNKNOWN_TYPE


def _may_dispatch(job: Job, queue: str, now_ms: int) -> bool:
    if job.spec.queue != queue:
        return False
    if job.state is State.PENDING:
        return True
    if job.state is State.RETRYING:
        return (job.due_at or 0) <= now_ms
    if job.state is State.SCHEDULED:
        # A job from a gate has only an estimate in due_at; the limit itself is asked again.
        return job.reason == Reason.RATE_LIMITED or (job.due_at or 0) <= now_ms
    return False


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
        if not isinstance(outcome.get(name), int | None):
            return False
    children = outcome.get("children")
    return isinstance(outcome.get("error"), dict | None) and isinstance(children, list | None)
