"""The outcome writer: gathering, order, bounds, and what a broker refuses for its size."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from tests.unit.worker_harness import until
from tidemill.agents.worker.attempts import Attempt, Pack, QueueState
from tidemill.agents.worker.writer import MemorySink, OutcomeWriter
from tidemill.schemas.wire import OUTCOME_PACK_BYTES_MAX, OUTCOMES_PER_RECORD_MAX, OutcomePack


def writer_of(sink: MemorySink) -> OutcomeWriter:
    return OutcomeWriter(
        sink, worker_id="w", incarnation=1, loop=asyncio.get_running_loop()
    )


def outcome(number: int, **more: Any) -> bytes:
    return orjson.dumps(
        {"kind": "succeeded", "user_id": "u", "job_id": str(number), "run": 1, "attempt": 1,
         "epoch": 1, **more}
    )


def ids(value: bytes) -> list[int]:
    return [int(each.job_id) for each in OutcomePack.model_validate_json(value).outcomes]


async def test_outcomes_of_one_turn_travel_together_and_partitions_apart() -> None:
    sink = MemorySink()
    writer = writer_of(sink)
    for number in range(6):
        writer.add(number % 2, outcome(number), None)
    assert writer.pending == 6
    await writer.drain()
    assert [(partition, ids(value)) for partition, value in sink.records] == [
        (0, [0, 2, 4]), (1, [1, 3, 5]),
    ]
    assert (writer.pending, writer.durable_total, writer.records_total) == (0, 6, 2)


async def test_what_comes_while_a_record_is_on_its_way_gathers() -> None:
    sink = MemorySink(is_held=True)
    writer = writer_of(sink)
    writer.add(0, outcome(0), None)
    await until(lambda: len(sink.records) == 1)
    for number in range(1, 10):
        writer.add(0, outcome(number), None)
        await asyncio.sleep(0)
    assert len(sink.records) == 1
    sink.release()
    await writer.drain()
    assert [ids(value) for _, value in sink.records] == [[0], list(range(1, 10))]


async def test_full_records_do_not_wait_for_each_other() -> None:
    sink = MemorySink(is_held=True)
    writer = writer_of(sink)
    for number in range(OUTCOMES_PER_RECORD_MAX * 2 + 5):
        writer.add(0, outcome(number), None)
    await until(lambda: len(sink.records) == 2)
    assert [len(ids(value)) for _, value in sink.records] == [OUTCOMES_PER_RECORD_MAX] * 2
    sink.release()
    await writer.drain()
    assert [number for _, value in sink.records for number in ids(value)] == list(
        range(OUTCOMES_PER_RECORD_MAX * 2 + 5)
    )


async def test_records_are_bounded_in_bytes_and_a_large_outcome_goes_alone() -> None:
    sink = MemorySink()
    writer = writer_of(sink)
    writer.add(0, outcome(0), None)
    writer.add(0, outcome(1, result="x" * OUTCOME_PACK_BYTES_MAX), None)
    writer.add(0, outcome(2), None)
    await writer.drain()
    assert [ids(value) for _, value in sink.records] == [[0], [1], [2]]


async def test_what_the_broker_refuses_for_its_size_goes_alone_and_then_as_a_refusal() -> None:
    sink = MemorySink(bytes_max=2_000)
    writer = writer_of(sink)
    settled: list[str] = []
    pack = Pack(QueueState("q"), 0, 3, 0.0, lambda: settled.append("pack"))
    job = {"user_id": "u", "job_id": "1", "type": "t", "run": 1, "attempt": 1, "epoch": 1}
    for number in range(3):
        result = "x" * 3_000 if number == 1 else "fits"
        attempt = Attempt(pack, {**job, "job_id": str(number)}, None)
        writer.add(0, outcome(number, result=result, started_at=5, finished_at=6), pack, attempt)
    await writer.drain()
    assert settled == ["pack"]
    said = [orjson.loads(value)["outcomes"][0] for _, value in sink.records]
    assert sorted(each["job_id"] for each in said) == ["0", "1", "2"]
    refused = next(each for each in said if each["job_id"] == "1")
    assert refused["error"]["code"] == "RESULT_TOO_LARGE"
    assert refused["started_at"] == 5
    assert writer.pending == 0
