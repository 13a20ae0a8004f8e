"""From events to records: everything that one group of decisions writes to Kafka.

Owns which record goes to which topic and partition, and its bytes. Refuses to know producers and
transactions: it hands over a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import orjson

from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.batch_builder import BatchBuilder, OutGroup, OutRecord
from tidemill.schemas.codec import Refusal
from tidemill.schemas.dead import dead_headers
from tidemill.schemas.event_writer import Event, EventWriter
from tidemill.schemas.instants import InstantCache
from tidemill.schemas.topics import BIG_RECORD_BYTES, Topics
from tidemill.schemas.wire import MEMORY_INLINE_BYTES_MAX, PACK_BYTES_MAX, PARTED_TYPE
from tidemill.streams.commands import Cause
from tidemill.streams.dispatch.memory_parts import cut
from tidemill.streams.dispatch.placement import Placement, ReadyJob
from tidemill.streams.envelope import MutableHeaders, forward_headers
from tidemill.streams.job import Job

CARRIED_BYTES_MAX: Final = BIG_RECORD_BYTES - 65_536
"""Key, value and headers of a record that is forwarded or buried. The topics it goes to take no
more than the ones it came from, and a compressed record is larger than what the broker saw."""

_NOTHING: Final[list[bytes]] = []
_NO_PARTS: Final[tuple[Event | None, list[bytes]]] = (None, [])
_PARTED_TYPE: Final = orjson.dumps(PARTED_TYPE)

CUT_KEY_BYTES: Final = 1_024  # what is kept of the key of a record that is too large
CUT_VALUE_BYTES: Final = 65_536  # and of its value: enough to see whose it was


def carried_bytes(
    key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]
) -> int:
    """What a record costs that is passed on."""
    size = len(key or b"") + len(value or b"")
    for name, text in headers:
        size += len(name) + len(text or b"")
    return size


class DeadLetter(NamedTuple):
    """What is said of one dead letter; "" where something is not known."""

    stage: str  # "attempt": a job that failed for good; else what of a record was refused
    code: str
    user_id: str
    job_id: str
    type: str
    attempts: int
    reason: str
    field: str
    origin: str  # of a refused record: topic/partition/offset


class Output:
    """The records of one group, those of a topic in the order in which they were caused."""

    def __init__(self, topics: Topics, partition: int) -> None:
        self._topics = topics
        self._partition = partition
        self._instants = InstantCache()
        self._writer = EventWriter(self._instants)
        self._ready: dict[tuple[str, str, str], list[ReadyJob]] = {}
        #: By the text of a job whose memory does not fit its record: the event, and the parts.
        self._parted: dict[bytes, tuple[Event | None, list[bytes]]] = {}
        self._placement = Placement(partition)
        self.clear()

    def clear(self) -> None:
        """Forgets the group, committed or not."""
        topics, partition = self._topics, self._partition
        self._events = BatchBuilder(topics.events, partition)
        self._completed = BatchBuilder(topics.completed, partition)
        self.state = BatchBuilder(topics.state, partition)
        self._dead = BatchBuilder(topics.dead, partition)
        self._retry = BatchBuilder(topics.retry, partition)
        self._loose: list[OutRecord] = []
        self._ready = {}
        self._parted = {}
        self.dead_letters: list[DeadLetter] = []
        self.forgotten_cancels = 0
        self.messages = 0

    def group(self) -> OutGroup:
        """All records of the group."""
        made = OutGroup()
        made.loose = self._loose
        for pages in (self._events, self._completed, self._dead, self._retry, self.state):
            if len(pages):
                made.pages.append(pages)
        return made

    def event(self, event: Event) -> None:
        """One record on jobs.events."""
        self._writer.add_event(self._events, event)

    def completed(self, job: Job, event: Event) -> None:
        """The terminal record on jobs.completed."""
        self._writer.add_completed(
            self._completed, event, job.spec.requested_at, job.started_at
        )

    def dead_job(self, job: Job, event: Event) -> None:
        """A failed job on jobs.dead: its request, and why it failed in the headers."""
        spec, error = job.spec, event.error or {}
        topic, partition, offset = event.cause or (self._topics.events, self._partition, -1)
        value = orjson.dumps(
            {
                "type": spec.type, "user_id": spec.user_id, "job_id": spec.job_id,
                "payload": orjson.Fragment(spec.payload), "queue": spec.queue,
                "priority": spec.priority, "max_attempts": spec.max_attempts,
                "timeout_seconds": spec.timeout_ms / 1000, "unique_key": spec.unique_key,
                "source": spec.source, "tags": spec.tags, "batch_id": spec.batch_id,
                "parent_job_id": spec.parent_job_id,
            }
        )
        headers = dead_headers(
            [], topic=topic, partition=partition, offset=offset, timestamp=event.occurred_at,
            stage="attempt", code=str(error.get("code", "")),
            message=str(error.get("message", "")), user_id=spec.user_id, job_id=spec.job_id,
            attempts=event.attempt,
        )
        self._dead.add(spec.user_id.encode(), value, headers)
        self.dead_letters.append(
            DeadLetter(
                "attempt", str(error.get("code", "")), spec.user_id, spec.job_id, spec.type,
                event.attempt, event.reason or "", "", "",
            )
        )

    def dead_record(
        self,
        *,
        topic: str,
        partition: int,
        offset: int,
        timestamp: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        stage: str,
        refusal: Refusal,
    ) -> None:
        """A refused record on jobs.dead, as it was; cut when it is too large to be written."""
        if carried_bytes(key, value, headers) > CARRIED_BYTES_MAX:
            key = None if key is None else key[:CUT_KEY_BYTES]
            value = None if value is None else value[:CUT_VALUE_BYTES]
            headers = ()
        ours = dead_headers(
            list(headers), topic=topic, partition=partition, offset=offset, timestamp=timestamp,
            stage=stage, code=refusal.code.value, message=refusal.message, field=refusal.field,
            user_id=refusal.user_id, job_id=refusal.job_id,
        )
        self._dead.add(key, value, ours)
        self.dead_letters.append(
            DeadLetter(
                stage, refusal.code.value, refusal.user_id or "", refusal.job_id or "",
                refusal.type or "", 0, "", refusal.field or "", f"{topic}/{partition}/{offset}",
            )
        )

    def retry(self, job: Job, event: Event) -> None:
        """News on jobs.retry."""
        value = orjson.dumps(
            {
                "job_id": event.job_id, "user_id": event.user_id, "type": event.type,
                "queue": event.queue, "run": event.run, "attempt": event.attempt,
                "max_attempts": job.spec.max_attempts, "error": event.error,
                "due_at": self._instants.text(event.due_at), "schema_version": SCHEMA_VERSION,
            }
        )
        self._retry.add(event.user_id.encode(), value)

    def cancel_word(self, job: Job) -> None:
        """A word to all workers on jobs.control."""
        value = orjson.dumps(
            {
                "schema_version": SCHEMA_VERSION, "word": "cancel", "user_id": job.spec.user_id,
                "job_id": job.spec.job_id, "run": job.run, "epoch": job.epoch,
            }
        )
        self._loose.append((self._topics.control, 0, None, value, None))

    def schedule(self, name: str, value: bytes | None) -> None:
        """What a schedule is now, on jobs.schedules; None: it is gone."""
        self._loose.append((self._topics.schedules, 0, name.encode(), value, None))

    def forward(
        self,
        *,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        kind: str,
        origin: Cause,
    ) -> None:
        """A record that belongs to another partition, over jobs.internal."""
        ours = forward_headers(headers, kind, origin)
        self._loose.append((self._topics.internal, partition, key, value, ours))

    def message(
        self, partition: int, key: bytes | None, value: bytes, headers: MutableHeaders
    ) -> None:
        """A message of a policy to a partition, over jobs.internal."""
        self.messages += 1
        self._loose.append((self._topics.internal, partition, key, value, headers))

    # --- ready packs ---

    def dispatch(
        self, job: Job, event: Event, pool: tuple[str, str, str],
        entries: Sequence[bytes] = _NOTHING,
    ) -> None:
        """The job goes into a ready pack of that pool when the group is sealed. `entries`: what it
        remembers, each as JSON."""
        spec = job.spec
        ready = self._ready.get(pool)
        if ready is None:
            ready = self._ready[pool] = []
        memory = b"[%b]" % b",".join(entries) if entries else b""
        is_parted = len(memory) > MEMORY_INLINE_BYTES_MAX
        text = self._writer.ready_job(
            event, spec.payload, max_attempts=spec.max_attempts, timeout_ms=spec.timeout_ms,
            traceparent=spec.traceparent, rescues=job.rescues,
            memory=b"" if is_parted else memory, type_name=_PARTED_TYPE if is_parted else b"",
        )
        size = len(spec.payload) + len(memory)
        if is_parted:
            self._parted[text] = (event, cut(entries))
            size = max(size, PACK_BYTES_MAX + 1)  # it shares no pack
        ready.append((text, size))

    def pack_ready(
        self,
        pool: tuple[str, str, str],
        partitions: Sequence[int],
        *,
        workers: int,
        jobs_a_pack: int,
    ) -> None:
        """Writes the dispatched jobs of a pool, which is a queue and a kind of slots, as packs."""
        jobs = self._ready.pop(pool, None)
        if jobs:
            packs = self._placement.packs(
                jobs, partitions, workers=workers, jobs_a_pack=jobs_a_pack
            )
            for partition, pack in packs:
                self._write_pack(pool[0], partition, pack)

    def _write_pack(self, queue: str, partition: int, pack: list[bytes]) -> None:
        more = self._write_parts(queue, partition, pack[0]) if self._parted else b""
        self._write_ready(queue, partition, b",".join(pack), more)

    def _write_parts(self, queue: str, partition: int, text: bytes) -> bytes:
        """What the job remembers, where that travels in records of its own: they come before the
        job's, in the same transaction. What the job's record says of it."""
        event, parts = self._parted.pop(text, _NO_PARTS)
        if event is None:
            return b""
        for number, entries in enumerate(parts):
            part = (
                b',"part":{"user_id":%b,"job_id":%b,"run":%d,"epoch":%d,"number":%d,"parts":%d,'
                b'"entries":[%b]}'
            ) % (
                orjson.dumps(event.user_id), orjson.dumps(event.job_id), event.run, event.epoch,
                number, len(parts), entries,
            )
            self._write_ready(queue, partition, b"", part)
        return b',"parted":{"type":%b,"parts":%d}' % (orjson.dumps(event.type), len(parts))

    def _write_ready(self, queue: str, partition: int, jobs: bytes, more: bytes) -> None:
        value = b'{"schema_version":%b,"ledger_partition":%b,"queue":%b,"jobs":[%b]%b}' % (
            str(SCHEMA_VERSION).encode(), str(self._partition).encode(), orjson.dumps(queue),
            jobs, more,
        )
        self._loose.append((self._topics.ready(queue), partition, None, value, None))
