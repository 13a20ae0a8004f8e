"""Several partitions over rows in memory that send each other messages, and workers of a few words.

Owns the carrying of records between partitions. Refuses to know what a test expects.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson

from tests.chaos.rawlog import RawRecord
from tests.unit.core_kit import NOW
from tests.unit.partition_kit import (
    INCARNATION,
    TOPICS,
    WORKER_ID,
    decided,
    events_in,
    keep,
    restored,
)
from tidemill.schemas.batch_builder import OutRecord
from tidemill.schemas.wire import Definition
from tidemill.streams.dispatch.slot_pool import SlotPoolName
from tidemill.streams.gathers.table import Gather
from tidemill.streams.job import Job, JobKey
from tidemill.streams.partition import Capacity, Partition
from tidemill.streams.partitioner import partition_of

PARENT: Final[JobKey] = ("u", "parent")
SLOTS: Final = 10_000
ROOM: Final = Capacity(SLOTS, SLOTS, 1, (0,))

Facts = dict[str, Any]
"""An outcome without what names its attempt."""

Handler = Callable[[dict[str, Any]], Facts | None]
"""What becomes of a job of a ready pack; None: it runs on."""


def plain(*types: str, **facts: Any) -> list[Definition]:
    return [Definition(schema_version=1, type=name, **facts) for name in types]


class Cluster:
    """Partitions, the records between them, and what is out at workers."""

    def __init__(self, partitions: int = 3, definitions: Sequence[Definition] = ()) -> None:
        self.definitions = list(definitions) or plain("t", "m", max_attempts=1)
        self.partitions = partitions
        self.now_ms = NOW
        self.rows: list[dict[bytes, bytes]] = [{} for _ in range(partitions)]
        self.engines: list[Partition] = []
        self.inbox: list[list[RawRecord]] = [[] for _ in range(partitions)]
        self.offsets: dict[tuple[str, int], int] = defaultdict(int)
        self.out: dict[JobKey, dict[str, Any]] = {}  # the last dispatch of each job
        self.completed: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.internal: list[tuple[int, dict[str, Any]]] = []
        self._parts: list[Any] = []  # of what the next job remembers
        self.handler: Handler | None = None
        self.on_commit: Callable[[int], None] | None = None
        for number in range(partitions):
            self.engines.append(self._restored(number))

    def _restored(self, number: int) -> Partition:
        return restored(
            self.rows[number].items(), self.now_ms, number=number, partitions=self.partitions
        )

    def restore(self, number: int) -> None:
        """A new owner, which knows the rows alone."""
        self.engines[number] = self._restored(number)

    def home(self, user_id: str) -> int:
        return partition_of(user_id, self.partitions)

    # --- in ---

    def put(
        self, topic: str, number: int, value: bytes,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> None:
        place = (topic, number)
        record = RawRecord(
            topic, number, self.offsets[place], self.now_ms, None, value, tuple(headers)
        )
        self.offsets[place] += 1
        self.inbox[number].append(record)

    def ask(self, user_id: str = "u", job_id: str = "parent", **fields: Any) -> None:
        body = {"type": "t", "user_id": user_id, "job_id": job_id, "payload": {}, **fields}
        self.put(TOPICS.requested, self.home(user_id), orjson.dumps(body))

    def command(self, word: str, key: JobKey = PARENT) -> None:
        body = {"command": word, "user_id": key[0], "job_id": key[1]}
        self.put(TOPICS.commands, self.home(key[0]), orjson.dumps(body))

    def say(self, key: JobKey, *told: Facts) -> None:
        """What a worker says of the last attempt of a job, in one pack."""
        job = self.out[key]
        named = {name: job[name] for name in ("user_id", "job_id", "run", "attempt", "epoch")}
        pack = {
            "schema_version": 1, "worker_id": WORKER_ID, "incarnation": INCARNATION,
            "outcomes": [{**named, **facts} for facts in told],
        }
        self.put(TOPICS.outcomes, self.home(key[0]), json.dumps(pack).encode())

    # --- groups ---

    def group(self, number: int, *, is_committed: bool = True, most: int = 10**9) -> int:
        """One group of a partition: how many records it took."""
        engine = self.engines[number]
        taken = self.inbox[number][:most]
        out = decided(
            engine, self.now_ms, taken, alive={WORKER_ID: INCARNATION},
            rooms={SlotPoolName("default", "async", ""): ROOM}, definitions=self.definitions,
        )
        records = list(out)
        if not is_committed:
            engine.rollback()
            return 0
        engine.commit()
        keep(self.rows[number], records)
        del self.inbox[number][: len(taken)]
        self._carry(records)
        if self.on_commit is not None:
            self.on_commit(number)
        return len(taken)

    def _carry(self, records: list[OutRecord]) -> None:
        self.events += events_in(records)
        for topic, partition, _, value, headers in records:
            if topic == TOPICS.internal:
                assert value is not None
                self.internal.append((partition, orjson.loads(value)))
                self.put(topic, partition, value, headers or ())
            elif topic == TOPICS.completed:
                self.completed.append(orjson.loads(value or b""))
            elif topic.startswith("jobs.ready"):
                self._hand_out(orjson.loads(value or b""))

    def _hand_out(self, pack: dict[str, Any]) -> None:
        if "part" in pack:
            self._parts += pack["part"]["entries"]
        for job in pack["jobs"]:
            if "parted" in pack:
                job["type"], job["memory"] = pack["parted"]["type"], self._parts
                self._parts = []
            self.out[job["user_id"], job["job_id"]] = job

    def settle(self, groups_max: int = 2_000) -> None:
        """Groups until nothing is left to be done at this instant."""
        for _ in range(groups_max):
            for number in range(self.partitions):
                self.group(number)
                self._work()
            if not any(self.inbox) and not any(
                engine.next_tick_at() == 0 for engine in self.engines
            ):
                return
        raise AssertionError("it never settles")

    def _work(self) -> None:
        if self.handler is None:
            return
        for key, job in list(self.out.items()):
            told = self.handler(job)
            if told is not None:
                self.say(key, told)
                del self.out[key]

    # --- what there is ---

    def job(self, key: JobKey = PARENT) -> Job | None:
        return self.engines[self.home(key[0])].state.jobs.get(key)

    def gather(self, name: str = "g", key: JobKey = PARENT) -> Gather | None:
        engine = self.engines[self.home(key[0])]
        return engine.state.policies.gather.parents.table.find(key, name)

    def story(self, key: JobKey = PARENT) -> list[str]:
        return [
            one["event"] for one in self.events if (one["user_id"], one["job_id"]) == key
        ]

    def rows_of(self, kind: bytes) -> list[bytes]:
        return [key for rows in self.rows for key in rows if key[:1] == kind]

    def ends(self, name: str = "g", key: JobKey = PARENT) -> dict[int, dict[str, Any]]:
        """What the last dispatch of the parent says of the members, by index."""
        found: dict[int, dict[str, Any]] = {}
        for entry, kind, value in self.out[key].get("memory", ()):
            if (entry, kind) == (name, "ends"):
                assert not found.keys() & {index for index, _ in value}
                found |= dict(value)
        return found

    def verdict(self, name: str = "g", key: JobKey = PARENT) -> dict[str, Any] | None:
        """The same of the whole."""
        found = [
            value for entry, kind, value in self.out[key].get("memory", ())
            if (entry, kind) == (name, "gather")
        ]
        assert len(found) <= 1
        return found[0] if found else None


def requests(count: int, users: Sequence[str] = ("u", "v", "w"), **fields: Any) -> list[Facts]:
    return [
        {"type": "m", "user_id": users[index % len(users)], "payload": {"n": index}, **fields}
        for index in range(count)
    ]


def gathering(
    asked: Sequence[Facts], *, name: str = "g", part: int = 100, parallel: int | None = None,
    tolerate: Facts | None = None,
) -> list[Facts]:
    """What a worker says when a handler gathers."""
    parts = [list(asked[at : at + part]) for at in range(0, len(asked), part)]
    told: list[Facts] = [
        {"kind": "members", "name": name, "part": number, "requests": one}
        for number, one in enumerate(parts)
    ]
    waits = {
        "kind": "gather", "name": name, "parts": len(parts), "members": len(asked),
        "parallel": parallel, "tolerate": tolerate or {"count": 0},
    }
    return [*told, {"kind": "suspended", "waits": waits}]


def awaiting(
    asked: Sequence[Facts], *, partitions: int = 3, definitions: Sequence[Definition] = (),
    **facts: Any,
) -> Cluster:
    """A cluster whose parent has suspended; members are out as far as they may."""
    cluster = Cluster(partitions, definitions)
    cluster.ask()
    cluster.settle()
    cluster.say(PARENT, *gathering(asked, **facts))
    cluster.settle()
    return cluster
