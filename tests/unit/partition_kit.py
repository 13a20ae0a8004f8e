"""One partition of the engine over rows in memory, group by group.

Owns what each input and each group is made of. Refuses to know what a test expects of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from schemas.record_pages import OutRecord
from schemas.topics import Topics
from schemas.wire import Definition, LimitSpec
from streams.job import JobKey
from streams.partition import Capacity, Partition
from streams.schedule import LineName
from streams.state import PartitionState
from tests.chaos.rawlog import RawRecord
from tests.unit.core_kit import DEFAULT, NOW

TOPICS: Final = Topics()
DAY_MS: Final = 86_400_000
#: The worker that is alive unless a test says otherwise.
WORKER_ID: Final = "w"
INCARNATION: Final = 7
ROOM: Final = Capacity(4, 4, 1, (0, 1))

#: A topic and a record's value.
Input = tuple[str, bytes]


class Scene:
    """A partition, what its workers say, and the rows that it has written.

    `partitions` > 1 makes some users strangers.
    """

    def __init__(
        self,
        *definitions: Definition,
        partitions: int = 1,
        retention_ms: int = DAY_MS,
    ) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.alive = {WORKER_ID: INCARNATION}
        self.rooms: Mapping[LineName, Capacity] = {DEFAULT: ROOM}
        self.definitions: list[Definition] = list(definitions)
        self._partitions = partitions
        self._retention_ms = retention_ms
        self._offsets: dict[str, int] = {}
        self.restore(NOW)

    @property
    def state(self) -> PartitionState:
        return self.engine.state

    def restore(self, now_ms: int) -> None:
        """A new owner, which knows the rows alone."""
        self.engine = self.restored(now_ms)

    def restored(self, now_ms: int) -> Partition:
        state = PartitionState(dedupe_retention_ms=self._retention_ms)
        for key, value in self.rows.items():
            state.load(key, value)
        engine = Partition(0, self._partitions, TOPICS, state)
        engine.restored(now_ms)
        return engine

    def group(
        self,
        now_ms: int,
        *inputs: Input,
        headers: tuple[tuple[str, bytes | None], ...] = (),
        is_committed: bool = True,
    ) -> list[OutRecord]:
        """A group; what it wrote, or would have written."""
        engine = self.engine
        engine.begin(now_ms)
        engine.set_workers(self.alive)
        engine.set_capacity(self.rooms)
        for definition in self.definitions:
            engine.define(definition)
        for topic, value in inputs:
            offset = self._offsets[topic] = self._offsets.get(topic, -1) + 1
            engine.take(topic, 0, RawRecord(topic, 0, offset, now_ms, b"k", value, headers))
        engine.tick()
        records = list(engine.seal())
        if not is_committed:
            engine.undo()
            return records
        engine.settle()
        for topic, _, key, row, _ in records:
            if topic == TOPICS.state and key is not None:
                if row is None:
                    self.rows.pop(key, None)
                else:
                    self.rows[key] = row
        return records

    def in_flight(self, *names: LineName) -> list[JobKey]:
        """Who is out, of these lines or of all."""
        lines = self.engine.schedule.lines
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


def outcomes(*found: dict[str, object], incarnation: int = INCARNATION) -> Input:
    """A worker's pack of outcomes."""
    pack = {
        "schema_version": 1, "worker_id": WORKER_ID, "incarnation": incarnation,
        "outcomes": found,
    }
    return TOPICS.outcomes, orjson.dumps(pack)


def events_in(records: list[OutRecord]) -> list[dict[str, Any]]:
    """The lifecycle events among records."""
    found = [value for topic, _, _, value, _ in records if topic == TOPICS.events]
    return [orjson.loads(value or b"") for value in found]


def plain(*limits: LimitSpec) -> Definition:
    """The type that `request` asks for."""
    return Definition(schema_version=1, type="t", limits=limits)
