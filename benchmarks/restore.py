"""Restore: rows per second of one ledger partition's state, read and ready to decide.

Owns the making of real rows (the engine itself decides real requests and outcomes, and its own
state rows go to a compacted topic) and the measurement, which takes the ledger's steps in the
ledger's order. Refuses to know what is in a row.

*waiting*: each row is a job that waits, with its payload. *ended*: each row is what is kept of a
succeeded job. A partition has many of the second kind and as many of the first as its backlog.
"""

from __future__ import annotations

import gc
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from confluent_kafka import KafkaError, Message, Producer

from benchmarks.noop_jobs import NOOP
from benchmarks.program import NotMeasuredError
from benchmarks.sink_alone import broker_of
from benchmarks.tidemill_programs import noops
from tidemill.agents import topics as topics_
from tidemill.agents.runtime.restore import read_compacted
from tidemill.requests import encode
from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.topics import READY_PARTITIONS, Topics
from tidemill.schemas.wire import Definition, LimitSpec
from tidemill.streams.dispatch.slot_pool import SlotPoolName
from tidemill.streams.partition import Capacity, Partition
from tidemill.streams.store.state import PartitionState

ROWS = 200_000
QUICK_ROWS = 40_000
GROUP_RECORDS = 1_000
SLOTS = 2_000
QUEUE = "default"
WORKER = "bench-worker"
# A round instant; the engine's clock is what it is told.
BEGIN_MS = 1_764_000_000_000
GROUP_MS = 50
# Groups without an end before the making of rows counts as hung.
IDLE_GROUPS_MAX = 1_000
FLUSH_SECONDS = 120.0
PRODUCE_RECORDS = 1_000

Rows = Mapping[bytes, bytes]


class _Input(NamedTuple):
    """A record as the ledger reads it."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()
    timestamp: int = BEGIN_MS


class _Maker:
    """A partition that decides in memory; its rows are what its transactions would have written."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._engine = Partition(0, 1, topics, PartitionState())
        self._engine.restored(BEGIN_MS)
        self._now_ms = BEGIN_MS
        self._offsets = dict.fromkeys(topics.ledger_inputs, 0)
        self.rows: dict[bytes, bytes] = {}

    def group(self, topic: str, values: Sequence[bytes], *, has_worker: bool) -> list[bytes]:
        """Decides one group; what a worker would answer to what was dispatched."""
        engine = self._engine
        self._now_ms += GROUP_MS
        engine.begin(self._now_ms)
        engine.define(_definition())
        if has_worker:
            engine.set_workers({WORKER: 1})
            room = Capacity(SLOTS, SLOTS, 1, tuple(range(READY_PARTITIONS)))
            engine.set_capacity({SlotPoolName(QUEUE, "async"): room})
        for value in values:
            engine.take(topic, 0, _Input(self._offsets[topic], b"user", value))
            self._offsets[topic] += 1
        engine.tick()
        answers: list[bytes] = []
        for out_topic, _, key, record, _ in engine.seal():
            if out_topic == self._topics.state:
                self._keep(key, record)
            elif out_topic == self._topics.ready(QUEUE) and record is not None:
                answers.append(self._answer(record))
        engine.commit()
        return answers

    def _keep(self, key: bytes | None, value: bytes | None) -> None:
        if key is not None and value is not None:
            self.rows[key] = value
        elif key is not None:
            self.rows.pop(key, None)

    def _answer(self, pack: bytes) -> bytes:
        outcomes = [
            {
                "kind": "succeeded",
                **{name: job[name] for name in ("user_id", "job_id", "run", "attempt", "epoch")},
                "started_at": self._now_ms,
                "finished_at": self._now_ms,
            }
            for job in orjson.loads(pack)["jobs"]
        ]
        return orjson.dumps(
            {
                "schema_version": SCHEMA_VERSION,
                "worker_id": WORKER,
                "incarnation": 1,
                "outcomes": outcomes,
            }
        )


def _definition() -> Definition:
    limit = LimitSpec(limit=1_000, window_ms=1_000, over="delay")
    return Definition(schema_version=SCHEMA_VERSION, type=NOOP, limits=(limit,))


def _requests(jobs: int) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    for request in noops(jobs, "row"):
        group.append(encode(request, request.job_id or ""))
        if len(group) == GROUP_RECORDS:
            yield group
            group = []
    if group:
        yield group


def waiting_rows(topics: Topics, jobs: int) -> Rows:
    """Rows of a partition whose jobs all wait."""
    maker = _Maker(topics)
    for group in _requests(jobs):
        maker.group(topics.requested, group, has_worker=False)
    return maker.rows


def ended_rows(topics: Topics, jobs: int) -> Rows:
    """Rows of a partition whose jobs have all succeeded, the last row of each key."""
    maker = _Maker(topics)
    answers: list[bytes] = []
    for group in _requests(jobs):
        answers += maker.group(topics.requested, group, has_worker=True)
    idle = 0
    while idle < IDLE_GROUPS_MAX:
        answers = maker.group(topics.outcomes, answers, has_worker=True)
        idle = 0 if answers else idle + 1
    return maker.rows


def produce(kafka: str, topic: str, rows: Rows) -> None:
    """Writes the rows to partition 0 of the state topic; raises when Kafka did not take one."""
    refused: list[str] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            refused.append(error.str())

    settings = {"bootstrap.servers": kafka, "compression.type": "lz4", "linger.ms": 5}
    producer = Producer({**settings, "queue.buffering.max.messages": len(rows) + 1})
    for number, (key, value) in enumerate(rows.items()):
        producer.produce(topic, value, key, 0, on_delivery=delivered)
        if number % PRODUCE_RECORDS == 0:
            producer.poll(0)
    if producer.flush(FLUSH_SECONDS) or refused:
        raise NotMeasuredError(f"rows could not be written: {refused[:1] or 'flush timed out'}")


def restore(kafka: str, topics: Topics) -> tuple[float, float, PartitionState]:
    """What the ledger does for one partition: seconds of the clock, and of the processor."""
    gc.collect()
    begun, cpu = time.perf_counter(), time.process_time()
    state = PartitionState()
    engine = Partition(0, 1, topics, state)
    # As the ledger does it: the rows are all new objects, collecting between them finds none.
    gc.disable()
    try:
        for batch in read_compacted(kafka, topics.state, 0):
            for key, value in batch:
                if key is not None:
                    state.load(key, value)
        engine.restored(BEGIN_MS)
    finally:
        gc.enable()
    return time.perf_counter() - begun, time.process_time() - cpu, state


def measure(*, is_quick: bool) -> dict[str, Any]:
    """Rows per second of both kinds, the reading of the topic included."""
    jobs = QUICK_ROWS if is_quick else ROWS
    with (
        tempfile.TemporaryDirectory(prefix="tidemill-restore-") as name,
        broker_of(Path(name) / "kafka") as kafka,
    ):
        return {
            "waiting": _measure_kind(kafka, jobs, "waiting"),
            "ended": _measure_kind(kafka, jobs, "ended"),
        }


def _measure_kind(kafka: str, jobs: int, kind: str) -> dict[str, Any]:
    topics = Topics(f"bench{uuid.uuid4().hex[:8]}.")
    topics_.apply(kafka, topics, 1)
    rows = waiting_rows(topics, jobs) if kind == "waiting" else ended_rows(topics, jobs)
    count, size = len(rows), sum(len(key) + len(value) for key, value in rows.items())
    produce(kafka, topics.state, rows)
    del rows
    seconds, cpu, state = restore(kafka, topics)
    found = len(state.jobs) if kind == "waiting" else len(state.finished)
    if found != jobs:
        raise NotMeasuredError(f"{found} {kind} jobs were restored, not {jobs}")
    return {
        "rows": count,
        "bytes_per_row": round(size / count, 1),
        "seconds": round(seconds, 2),
        "rows_per_second": round(count / seconds),
        "cpu_us_per_row": round(cpu / count * 1e6, 2),
    }
