"""A queue whose handlers run in several ways: each kind of slots has a line of its own."""

from __future__ import annotations

from typing import Final

import orjson

from tests.unit.core_kit import NOW
from tests.unit.partition_kit import TOPICS, Input, Scene, outcome, outcomes, request
from tidemill.schemas.wire import Definition, RunsAs
from tidemill.streams.dispatch.schedule import STALE_MAX
from tidemill.streams.dispatch.slot_pool import SlotPoolName
from tidemill.streams.job import JobKey
from tidemill.streams.partition import DECISIONS_MAX, Capacity

QUICK: Final = SlotPoolName("default", "async")
SLOW: Final = SlotPoolName("default", "process")
# Worker a has partitions 0 and 1 and runs coroutines only, worker b has 2 and 3 and runs both.
ROOMS: Final = {QUICK: Capacity(4, 4, 2, (0, 1, 2, 3)), SLOW: Capacity(1, 1, 1, (2, 3))}
WINDOW: Final = 2  # jobs in flight per slot at first


def defined(type: str, runs_as: RunsAs) -> Definition:
    return Definition(schema_version=1, type=type, runs_as=runs_as)


class Lines(Scene):
    """A partition with quick and slow handlers in one queue, whose clock runs by itself."""

    def __init__(self) -> None:
        super().__init__(defined("quick", "async"), defined("slow", "process"))
        self.rooms = ROOMS
        self.now_ms = NOW

    def sent(self, *inputs: Input, is_committed: bool = True) -> dict[int, list[str]]:
        """One group; the ids of the jobs that it dispatched, by ready partition."""
        self.now_ms += 10
        found: dict[int, list[str]] = {}
        records = self.group(self.now_ms, *inputs, is_committed=is_committed)
        for topic, partition, _, pack, _ in records:
            if topic == TOPICS.ready("default"):
                jobs = orjson.loads(pack or b"")["jobs"]
                found.setdefault(partition, []).extend(job["job_id"] for job in jobs)
        return found


def asked(type: str, count: int) -> list[Input]:
    return [request(f"{type}-{number}", type=type) for number in range(count)]


def ended(keys: list[JobKey], now_ms: int, kind: str = "succeeded") -> Input:
    facts = {"reason": "no_free_slot"} if kind == "returned" else {}
    instants = {"started_at": now_ms, "finished_at": now_ms}
    return outcomes(*(outcome(key, kind, **instants, **facts) for key in keys))


def ids(sent: dict[int, list[str]]) -> list[str]:
    return [job_id for jobs in sent.values() for job_id in jobs]


def test_slow_processes_do_not_keep_quick_coroutines_waiting() -> None:
    scene = Lines()
    first = ids(scene.sent(*asked("slow", 100)))
    assert first == ["slow-0", "slow-1"]
    # Nothing of it ends. What is quick goes through all the same, round after round.
    done = ids(scene.sent(*asked("quick", 100)))
    while quick := scene.in_flight(QUICK):
        done += ids(scene.sent(ended(quick, scene.now_ms)))
    assert sorted(done) == sorted(f"quick-{number}" for number in range(100))
    assert len(scene.in_flight(SLOW)) == WINDOW


def test_what_one_kind_hands_back_does_not_stop_the_other() -> None:
    scene = Lines()
    scene.sent(*asked("slow", 10), *asked("quick", 2))
    scene.rooms = {SLOW: Capacity(1, 0, 1, (2, 3)), QUICK: ROOMS[QUICK]}
    handed_back = ended(scene.in_flight(SLOW)[1:], scene.now_ms, "returned")
    sent = ids(scene.sent(handed_back, *asked("quick", 9)[2:]))
    assert sorted(sent) == [f"quick-{number}" for number in range(2, 4 * WINDOW)]


def test_a_job_goes_to_a_worker_that_runs_its_kind() -> None:
    scene = Lines()
    for number in range(6):
        sent = scene.sent(*asked("slow", 2 * number + 2)[2 * number :])
        assert sent
        assert set(sent) <= {2, 3}
        scene.sent(ended(scene.in_flight(SLOW), scene.now_ms))


def test_a_kind_that_nobody_runs_waits_and_nothing_else_does() -> None:
    scene = Lines()
    scene.rooms = {QUICK: ROOMS[QUICK]}
    sent = scene.sent(*asked("slow", 3), *asked("quick", 3))
    assert sorted(ids(sent)) == ["quick-0", "quick-1", "quick-2"]
    scene.rooms = ROOMS
    assert ids(scene.sent()) == ["slow-0", "slow-1"]


def test_a_type_whose_handler_runs_otherwise_from_now_on() -> None:
    scene = Lines()
    scene.sent(*asked("slow", 20))
    assert len(scene.in_flight(SLOW)) == WINDOW
    scene.definitions[1] = defined("slow", "async")
    # Those that are out count for the new slots, those that wait longest get the rest.
    for is_committed in (False, True):
        sent = scene.sent(is_committed=is_committed)
        assert sorted(ids(sent)) == [f"slow-{number}" for number in range(2, 4 * WINDOW)]
    assert not scene.in_flight(SLOW)
    assert len(scene.in_flight(QUICK)) == 4 * WINDOW
    while flying := scene.in_flight(QUICK):
        scene.sent(ended(flying, scene.now_ms))
    assert not scene.engine.state.jobs


def test_lines_are_the_same_after_a_restore() -> None:
    scene = Lines()
    scene.sent(*asked("slow", 5), *asked("quick", 20))
    again = scene.restored(scene.now_ms)
    for name in (QUICK, SLOW):
        before, after = scene.engine.schedule.pool(name), again.schedule.pool(name)
        assert set(before.in_flight) == set(after.in_flight)
        assert list(before.waiting) == list(after.waiting)


def test_queues_that_nobody_serves_are_forgotten_with_their_jobs() -> None:
    scene = Lines()
    expires_at = scene.now_ms + 1_000
    requests = [
        request(f"{number}", type="quick", queue=f"queue-{number}", expires_at=expires_at)
        for number in range(STALE_MAX + 100)
    ]
    lines = scene.engine.schedule.pools
    scene.sent(*requests)
    assert len(lines) == len(requests) + len(ROOMS)
    for _ in range(len(requests) // DECISIONS_MAX + 3):
        scene.now_ms += 2_000
        scene.sent()
    assert scene.engine.state.jobs == {}
    assert set(lines) == set(ROOMS)
