"""A queue whose handlers run in several ways: each kind of slots has a line of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from schemas.topics import Topics
from schemas.wire import Definition, RunsAs
from streams.job import JobKey
from streams.partition import DECISIONS_MAX, Capacity, Partition
from streams.schedule import STALE_MAX, LineName
from streams.state import PartitionState
from tests.chaos.rawlog import RawRecord
from tests.unit.core_kit import NOW

TOPICS: Final = Topics("")
QUICK: Final = LineName("default", "async")
SLOW: Final = LineName("default", "process")
# Worker a has partitions 0 and 1 and runs coroutines only, worker b has 2 and 3 and runs both.
ROOMS: Final = {QUICK: Capacity(4, 4, 2, (0, 1, 2, 3)), SLOW: Capacity(1, 1, 1, (2, 3))}
WINDOW: Final = 2  # jobs in flight per slot at first


def defined(type: str, runs_as: RunsAs) -> Definition:
    return Definition(schema_version=1, type=type, runs_as=runs_as)


class Scene:
    """A partition with quick and slow handlers in one queue."""

    def __init__(self) -> None:
        self.engine = Partition(0, 1, TOPICS, PartitionState())
        self.engine.restored(NOW)
        self.definitions = [defined("quick", "async"), defined("slow", "process")]
        self.offsets: dict[str, int] = {}
        self.now_ms = NOW
        self.rows: list[tuple[bytes, bytes | None]] = []

    def group(
        self,
        *inputs: tuple[str, bytes],
        rooms: Mapping[LineName, Capacity] = ROOMS,
        is_committed: bool = True,
    ) -> dict[int, list[str]]:
        """One group; the ids of the jobs that it dispatched, by ready partition."""
        engine = self.engine
        self.now_ms += 10
        engine.begin(self.now_ms)
        engine.set_workers({"b": 7})
        engine.set_capacity(rooms)
        for definition in self.definitions:
            engine.define(definition)
        for topic, value in inputs:
            offset = self.offsets[topic] = self.offsets.get(topic, -1) + 1
            engine.take(topic, 0, RawRecord(topic, 0, offset, self.now_ms, b"k", value, ()))
        engine.tick()
        sent: dict[int, list[str]] = {}
        for topic, partition, key, record, _ in engine.seal():
            if topic == TOPICS.state:
                self.rows.append((key or b"", record))
            elif topic == TOPICS.ready("default"):
                jobs = orjson.loads(record or b"")["jobs"]
                sent.setdefault(partition, []).extend(job["job_id"] for job in jobs)
        if is_committed:
            engine.settle()
        else:
            engine.undo()
        return sent

    def in_flight(self, name: LineName) -> list[JobKey]:
        return list(self.engine.schedule.line(name).in_flight)


def asked(type: str, count: int) -> list[tuple[str, bytes]]:
    bodies = [
        {"type": type, "user_id": "u", "job_id": f"{type}-{number}", "payload": {}}
        for number in range(count)
    ]
    return [(TOPICS.requested, orjson.dumps(body)) for body in bodies]


def ended(keys: list[JobKey], now_ms: int, kind: str = "succeeded") -> tuple[str, bytes]:
    facts: dict[str, Any] = {"reason": "no_free_slot"} if kind == "returned" else {}
    outcomes = [
        {
            "kind": kind, "user_id": user_id, "job_id": job_id, "run": 1, "attempt": 1,
            "epoch": 1, "started_at": now_ms, "finished_at": now_ms, **facts,
        }
        for user_id, job_id in keys
    ]
    pack = {"schema_version": 1, "worker_id": "b", "incarnation": 7, "outcomes": outcomes}
    return TOPICS.outcomes, orjson.dumps(pack)


def ids(sent: dict[int, list[str]]) -> list[str]:
    return [job_id for jobs in sent.values() for job_id in jobs]


def test_slow_processes_do_not_keep_quick_coroutines_waiting() -> None:
    scene = Scene()
    first = ids(scene.group(*asked("slow", 100)))
    assert first == ["slow-0", "slow-1"]
    # Nothing of it ends. What is quick goes through all the same, round after round.
    done = ids(scene.group(*asked("quick", 100)))
    while quick := scene.in_flight(QUICK):
        done += ids(scene.group(ended(quick, scene.now_ms)))
    assert sorted(done) == sorted(f"quick-{number}" for number in range(100))
    assert len(scene.in_flight(SLOW)) == WINDOW


def test_what_one_kind_hands_back_does_not_stop_the_other() -> None:
    scene = Scene()
    scene.group(*asked("slow", 10), *asked("quick", 2))
    taken = {SLOW: Capacity(1, 0, 1, (2, 3)), QUICK: ROOMS[QUICK]}
    handed_back = ended(scene.in_flight(SLOW)[1:], scene.now_ms, "returned")
    sent = ids(scene.group(handed_back, *asked("quick", 9)[2:], rooms=taken))
    assert sorted(sent) == [f"quick-{number}" for number in range(2, 4 * WINDOW)]


def test_a_job_goes_to_a_worker_that_runs_its_kind() -> None:
    scene = Scene()
    for number in range(6):
        sent = scene.group(*asked("slow", 2 * number + 2)[2 * number :])
        assert sent
        assert set(sent) <= {2, 3}
        scene.group(ended(scene.in_flight(SLOW), scene.now_ms))


def test_a_kind_that_nobody_runs_waits_and_nothing_else_does() -> None:
    scene = Scene()
    only_quick = {QUICK: ROOMS[QUICK]}
    sent = scene.group(*asked("slow", 3), *asked("quick", 3), rooms=only_quick)
    assert sorted(ids(sent)) == ["quick-0", "quick-1", "quick-2"]
    assert ids(scene.group()) == ["slow-0", "slow-1"]


def test_a_type_whose_handler_runs_otherwise_from_now_on() -> None:
    scene = Scene()
    scene.group(*asked("slow", 20))
    assert len(scene.in_flight(SLOW)) == WINDOW
    scene.definitions[1] = defined("slow", "async")
    # Those that are out count for the new slots, those that wait longest get the rest.
    for is_committed in (False, True):
        sent = scene.group(is_committed=is_committed)
        assert sorted(ids(sent)) == [f"slow-{number}" for number in range(2, 4 * WINDOW)]
    assert not scene.in_flight(SLOW)
    assert len(scene.in_flight(QUICK)) == 4 * WINDOW
    while flying := scene.in_flight(QUICK):
        scene.group(ended(flying, scene.now_ms))
    assert not scene.engine.state.jobs


def test_lines_are_the_same_after_a_restore() -> None:
    scene = Scene()
    scene.group(*asked("slow", 5), *asked("quick", 20))
    state = PartitionState()
    for key, value in scene.rows:
        state.load(key, value)
    again = Partition(0, 1, TOPICS, state)
    again.restored(scene.now_ms)
    for name in (QUICK, SLOW):
        before, after = scene.engine.schedule.line(name), again.schedule.line(name)
        assert set(before.in_flight) == set(after.in_flight)
        assert list(before.waiting) == list(after.waiting)



def test_queues_that_nobody_serves_are_forgotten_with_their_jobs() -> None:
    scene = Scene()
    bodies = [
        {
            "type": "quick", "user_id": "u", "job_id": f"{number}", "payload": {},
            "queue": f"queue-{number}", "expires_at": scene.now_ms + 1_000,
        }
        for number in range(STALE_MAX + 100)
    ]
    lines = scene.engine.schedule.lines
    scene.group(*[(TOPICS.requested, orjson.dumps(body)) for body in bodies])
    assert len(lines) == len(bodies) + len(ROOMS)
    for _ in range(len(bodies) // DECISIONS_MAX + 3):
        scene.now_ms += 2_000
        scene.group()
    assert scene.engine.state.jobs == {}
    assert set(lines) == set(ROOMS)
