"""One partition of the engine over rows in memory, group by group.

Owns the calls that a group and a restore are made of, for all tiers that run the engine without a
broker, and what each input is made of. Refuses to know what a test expects of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from tests.chaos.rawlog import RawRecord
from tests.unit.core_kit import DEFAULT, NOW
from tidemill.schemas.batch_builder import OutGroup, OutRecord
from tidemill.schemas.topics import Topics
from tidemill.schemas.wire import Definition, LimitSpec
from tidemill.streams.dispatch.slot_pool import Groups, SlotPoolName
from tidemill.streams.job import JobKey
from tidemill.streams.partition import Capacity, Partition
from tidemill.streams.policies.base import Policy
from tidemill.streams.stalls import NO_STALLS, Stall
from tidemill.streams.store.jobs import DEDUPE_RETENTION_MS
from tidemill.streams.store.state import PartitionState

TOPICS: Final = Topics()
#: The worker that is alive unless a test says otherwise.
WORKER_ID: Final = "w"
INCARNATION: Final = 7
ROOM: Final = Capacity(4, 4, 1, (0, 1))

#: A topic and a record's value.
Input = tuple[str, bytes]


#: More policies of a partition, by its number.
Policies = Callable[[int], Sequence[Policy]]


def no_policies(number: int) -> Sequence[Policy]:
    return ()


def restored(
    rows: Iterable[tuple[bytes, bytes | None]],
    now_ms: int,
    *,
    number: int = 0,
    partitions: int = 1,
    topics: Topics = TOPICS,
    retention_ms: int = DEDUPE_RETENTION_MS,
    policies: Policies = no_policies,
) -> Partition:
    """A new owner, which knows the rows alone."""
    state = PartitionState(dedupe_retention_ms=retention_ms)
    for policy in policies(number):
        state.add_policy(policy)
    for key, value in rows:
        state.load(key, value)
    engine = Partition(number, partitions, topics, state)
    engine.restored(now_ms)
    return engine


def decided(
    engine: Partition,
    now_ms: int,
    records: Iterable[RawRecord],
    *,
    alive: Mapping[str, int],
    rooms: Mapping[SlotPoolName, Capacity],
    definitions: Iterable[Definition],
    told: Mapping[str, Groups] | None = None,
    stalls: Mapping[str, Stall] = NO_STALLS,
    asks: Iterable[Callable[[Partition], None]] = (),
) -> OutGroup:
    """A group up to its commit: what it wants to write. `commit` or `rollback` must follow.

    `told`: by queue, what its living workers run; else they run all that is defined. `asks`: what
    else happens in the group, before its inputs.
    """
    known = list(definitions)
    if told is None:
        queues = {"default", *(name.queue for name in rooms)} if alive else set()
        told = {queue: {one.type: "" for one in known} for queue in sorted(queues)}
    engine.begin(now_ms)
    engine.set_workers(alive, stalls=stalls)
    engine.set_groups(told)
    engine.set_capacity(rooms)
    for definition in known:
        engine.define(definition)
    for ask in asks:
        ask(engine)
    for record in records:
        engine.take(record.topic, record.partition, record)
    engine.tick()
    return engine.seal()


def keep(rows: dict[bytes, bytes], records: Iterable[OutRecord]) -> None:
    """What a committed transaction leaves of the state topic, compacted."""
    for topic, _, key, row, _ in records:
        if topic == TOPICS.state:
            assert key is not None
            if row is None:
                rows.pop(key, None)
            else:
                rows[key] = row


class Scene:
    """A partition, what its workers say, and the rows that it has written.

    `partitions` > 1 makes some users strangers.
    """

    def __init__(
        self,
        *definitions: Definition,
        partitions: int = 1,
        retention_ms: int = DEDUPE_RETENTION_MS,
        policies: Policies = no_policies,
    ) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.alive = {WORKER_ID: INCARNATION}
        self.rooms: Mapping[SlotPoolName, Capacity] = {DEFAULT: ROOM}
        self.definitions: list[Definition] = list(definitions)
        #: What living workers run, by queue; None: all that is defined.
        self.told: Mapping[str, Groups] | None = None
        self.stalls: Mapping[str, Stall] = NO_STALLS
        self._partitions = partitions
        self._retention_ms = retention_ms
        self._policies = policies
        self._offsets: dict[str, int] = {}
        self.restore(NOW)

    @property
    def state(self) -> PartitionState:
        return self.engine.state

    def restore(self, now_ms: int) -> None:
        """A new owner, which knows the rows alone."""
        self.engine = self.restored(now_ms)

    def restored(self, now_ms: int) -> Partition:
        return restored(
            self.rows.items(), now_ms, partitions=self._partitions,
            retention_ms=self._retention_ms, policies=self._policies,
        )

    def group(
        self,
        now_ms: int,
        *inputs: Input,
        headers: tuple[tuple[str, bytes | None], ...] = (),
        is_committed: bool = True,
    ) -> list[OutRecord]:
        """A group; what it wrote, or would have written."""
        taken: list[RawRecord] = []
        for topic, value in inputs:
            offset = self._offsets[topic] = self._offsets.get(topic, -1) + 1
            taken.append(RawRecord(topic, 0, offset, now_ms, b"k", value, headers))
        out = decided(
            self.engine, now_ms, taken,
            alive=self.alive, rooms=self.rooms, definitions=self.definitions, told=self.told,
            stalls=self.stalls,
        )
        records = list(out)
        if is_committed:
            self.engine.commit()
            keep(self.rows, records)
        else:
            self.engine.rollback()
        return records

    def in_flight(self, *names: SlotPoolName) -> list[JobKey]:
        """Who is out, of these lines or of all."""
        lines = self.engine.schedule.pools
        return [key for name in names or lines for key in lines[name].in_flight]


def request(job_id: str, **fields: object) -> Input:
    body = {"type": "t", "user_id": "u", "job_id": job_id, "payload": {}, **fields}
    return TOPICS.requested, orjson.dumps(body)


def outcome(key: JobKey, kind: str, **facts: object) -> dict[str, object]:
    user_id, job_id = key
    return {
        "kind": kind, "user_id": user_id, "job_id": job_id, "run": 1, "attempt": 1, "epoch": 1,
        **facts,
    }


def outcomes(
    *found: dict[str, object], incarnation: int = INCARNATION, worker_id: str = WORKER_ID
) -> Input:
    """A worker's pack of outcomes."""
    pack = {
        "schema_version": 1, "worker_id": worker_id, "incarnation": incarnation,
        "outcomes": found,
    }
    return TOPICS.outcomes, orjson.dumps(pack)


def events_in(records: Sequence[OutRecord]) -> list[dict[str, Any]]:
    """The lifecycle events among records."""
    found = [value for topic, _, _, value, _ in records if topic == TOPICS.events]
    return [orjson.loads(value or b"") for value in found]


def events_of(records: Sequence[OutRecord], job_id: str = "j") -> list[str]:
    """The kinds of one job's events among records."""
    return [event["event"] for event in events_in(records) if event["job_id"] == job_id]


def plain(*limits: LimitSpec) -> Definition:
    """The type that `request` asks for."""
    return Definition(schema_version=1, type="t", limits=limits)
