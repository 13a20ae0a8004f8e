"""Faults that reading found, each with the smallest scene that shows it."""

from __future__ import annotations

import time
import tracemalloc
from typing import Final

import orjson
import pytest

from tests.chaos.rawlog import RawRecord
from tests.unit.core_kit import DEFAULT, NOW
from tests.unit.partition_kit import (
    TOPICS,
    Input,
    Scene,
    events_of,
    outcome,
    outcomes,
    plain,
    request,
)
from tidemill.agents.ledger.clock import LedgerClock
from tidemill.agents.ledger.workers import WorkerBook
from tidemill.schemas.topics import BIG_RECORD_BYTES
from tidemill.schemas.wire import (
    HEARTBEAT_MISSING_SECONDS,
    Heartbeat,
    KindSlots,
    LimitSpec,
    QueueSlots,
)
from tidemill.streams.policies.rescue import DISPATCH_LOST_MS

HOUR_MS: Final = 3_600_000


def started(job_id: str, epoch: int, incarnation: int) -> Input:
    said = outcome(("u", job_id), "started", epoch=epoch)
    return outcomes(said, incarnation=incarnation)


# --- leases -------------------------------------------------------------------------------------


def test_a_lease_has_its_full_time_when_the_former_owners_clock_was_ahead() -> None:
    scene = Scene(plain())
    ahead = NOW + 60_000
    scene.group(ahead, request("j"))
    scene.group(ahead + 1_000, started("j", 1, 7))
    scene.restore(NOW + 15_000)  # our clock is 46 s behind the partition's
    scene.alive = {}  # nobody was heard yet
    assert "rescued" not in events_of(scene.group(NOW + 15_000))
    assert "rescued" not in events_of(scene.group(ahead + 10_000))
    assert "rescued" in events_of(scene.group(ahead + 12_000))


def test_a_worker_that_came_back_with_an_earlier_clock_is_found_out() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j"))
    scene.group(NOW + 1_000, started("j", 1, 7))
    scene.alive = {"w": 6}
    assert "rescued" not in events_of(scene.group(NOW + DISPATCH_LOST_MS - 1_000))
    assert "rescued" in events_of(scene.group(NOW + DISPATCH_LOST_MS + 2_000))


# --- gates --------------------------------------------------------------------------------------


def test_a_restored_gate_asks_the_limit_and_not_an_old_estimate() -> None:
    scene = Scene(plain(LimitSpec(limit=1, window_ms=HOUR_MS, over="delay")))
    scene.group(NOW, request("first"), request("second"), request("third"))
    cancel = {"command": "cancel", "user_id": "u", "job_id": "second"}
    scene.group(NOW + 1_000, (TOPICS.commands, orjson.dumps(cancel)))
    scene.restore(NOW + 2_000)
    scene.group(NOW + 2_000)
    # "third" was told two hours, with "second" before it.
    assert "dispatched" in events_of(scene.group(NOW + HOUR_MS + 1_000), "third")


# --- records that are too large to be passed on ---------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 64])
@pytest.mark.parametrize("topic", [TOPICS.requested, TOPICS.commands])
def test_a_record_that_grew_in_unpacking_stops_nobody(topic: str, partitions: int) -> None:
    scene = Scene(partitions=partitions)
    body = {"type": "t", "user_id": "u", "job_id": "j", "payload": "x" * 3 * BIG_RECORD_BYTES}
    records = scene.group(NOW, (topic, orjson.dumps(body)))
    assert [record[0] for record in records] == [TOPICS.dead, TOPICS.state]
    headers = dict(records[0][4] or [])
    assert b"REQUEST_TOO_LARGE" in headers.values()
    assert sum(len(record[3] or b"") for record in records) < BIG_RECORD_BYTES


def test_large_headers_are_not_passed_on() -> None:
    scene = Scene(partitions=64)
    headers = (("h", b"x" * BIG_RECORD_BYTES),)
    records = scene.group(NOW, request("j"), headers=headers)
    assert [record[0] for record in records] == [TOPICS.dead, TOPICS.state]
    assert "h" not in dict(records[0][4] or [])


def test_a_long_traceparent_does_not_reach_the_jobs_records() -> None:
    scene = Scene(plain())
    records = scene.group(NOW, request("j"), headers=(("traceparent", b"0" * 3_000_000),))
    assert "dispatched" in events_of(records)
    assert max(len(record[3] or b"") for record in records) < 10_000


# --- who is alive ---------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made.monotonic)
    return made


def beat(worker_id: str = "w", incarnation: int = 1) -> Heartbeat:
    return Heartbeat(
        schema_version=1, worker_id=worker_id, incarnation=incarnation, at=NOW, types=("t",),
        running=0,
        queues={
            "default": QueueSlots(kinds={"async": KindSlots(slots=1, free=1)}, partitions=(0,))
        },
    )


def test_a_stopped_process_loses_no_worker_before_its_reader_runs_again(clock: Clock) -> None:
    book = WorkerBook(LedgerClock())
    book.note_beat(beat())
    clock.now += 60  # nothing ran in between, neither the reader nor we
    assert book.alive() == {"w": 1}
    book.note_deaf()
    clock.now += HEARTBEAT_MISSING_SECONDS
    book.note_hearing()
    assert book.alive() == {}


def test_silence_counts_when_another_worker_is_heard(clock: Clock) -> None:
    book = WorkerBook(LedgerClock())
    book.note_beat(beat("a"))
    for _ in range(6):
        clock.now += 2
        book.note_beat(beat("b"))
    assert book.alive() == {"b": 1}


def test_nothing_is_sent_to_a_worker_that_misses_beats_though_its_attempts_run(
    clock: Clock,
) -> None:
    book = WorkerBook(LedgerClock())
    book.note_beat(beat("a"))
    for _ in range(3):
        assert book.capacity()[DEFAULT].workers == 1 + ("b" in book.alive())
        clock.now += 2
        book.note_beat(beat("b"))
    assert book.alive() == {"a": 1, "b": 1}
    assert book.capacity()[DEFAULT].workers == 1
    book.note_beat(beat("a"))
    assert book.capacity()[DEFAULT].workers == 2


def test_a_worker_whose_clock_went_back_is_heard_again(clock: Clock) -> None:
    book = WorkerBook(LedgerClock())
    book.note_beat(beat("w", 9))
    book.note_beat(beat("w", 8))
    assert book.alive() == {"w": 9}
    clock.now += HEARTBEAT_MISSING_SECONDS
    book.note_hearing()
    book.note_beat(beat("w", 8))
    assert book.alive() == {"w": 8}


def test_ids_that_come_no_more_are_forgotten(clock: Clock) -> None:
    book = WorkerBook(LedgerClock())
    for number in range(100):
        book.note_beat(beat(f"host-{number}"))
        clock.now += 60
        book.note_hearing()
    assert len(book._beats) < 15


def test_a_marker_behind_the_last_record_is_passed_over() -> None:
    # Retention may empty a topic whose last record is followed by a marker: its start is then
    # behind applied + 1, and nothing was lost.
    scene = Scene()
    scene.group(NOW, request("j"))
    applied = scene.engine.state.applied[TOPICS.requested]
    scene.engine.begin(NOW + 1)
    scene.engine.pass_over(TOPICS.requested, scene.engine.number, applied + 2)
    rows = dict(record[2:4] for record in scene.engine.seal() if record[0] == TOPICS.state)
    scene.engine.commit()
    assert orjson.loads(rows[b"p"] or b"")["applied"][TOPICS.requested] == applied + 1
    scene.engine.begin(NOW + 2)
    scene.engine.pass_over(TOPICS.requested, scene.engine.number, applied + 1)  # never back
    assert not len(scene.engine.seal())


@pytest.mark.interpreted
def test_a_dead_letter_that_gives_way_is_still_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.streams.store.jobs.DEAD_LETTERS_MAX", 0)
    scene = Scene(plain())
    scene.group(NOW, request("j"))
    error = {"code": "X", "message": "", "retryable": False}
    scene.group(NOW + 1, outcomes(outcome(("u", "j"), "failed", error=error)))
    scene.group(NOW + 10_000)
    assert not scene.engine.state.jobs
    again = scene.group(NOW + 10_001, request("j"))
    assert events_of(again) == ["duplicate_ignored"]
    scene.restore(NOW + 20_000)
    assert events_of(scene.group(NOW + 20_001, request("j"))) == ["duplicate_ignored"]


def test_a_waiting_job_holds_no_more_memory_than_it_needs() -> None:
    # A million of them must fit a ledger of 1.5 GB; once each payload held a 4 KiB buffer.
    count = 500
    scene = Scene()
    requests = [request(f"job-{number}", payload={"text": "x" * 100}) for number in range(count)]
    scene.definitions = [plain()]
    scene.engine.set_capacity({})
    scene.group(NOW)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        engine = scene.engine
        engine.begin(NOW)
        engine.set_capacity({})
        for offset, (topic, value) in enumerate(requests):
            engine.take(topic, 0, RawRecord(topic, 0, offset, NOW, b"k", value, ()))
        engine.seal()
        engine.commit()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(engine.state.jobs) == count
    assert (after - before) / count < 1_400  # bytes; 1.5 GB for a million leaves the rest
