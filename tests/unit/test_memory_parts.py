"""What a job remembers, in parts: cut by the ledger, joined by the worker."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import orjson
import pytest

from tests.unit.core_kit import NOW, SLEEPS
from tests.unit.partition_kit import Input, Scene, events_of, outcome, outcomes, plain, request
from tests.unit.worker_harness import bench_of, until
from tidemill.agents import clocks
from tidemill.agents.worker import memory_parts, packs
from tidemill.agents.worker.context import Context
from tidemill.agents.worker.memory_parts import MemoryParts
from tidemill.schemas.batch_builder import OutRecord
from tidemill.schemas.requests import MEMORY_BYTES_MAX, STEP_BYTES_MAX
from tidemill.schemas.wire import (
    MEMORY_INLINE_BYTES_MAX,
    MEMORY_PART_BYTES_MAX,
    PARTED_TYPE,
    ReadyPack,
)
from tidemill.schemas.words import State
from tidemill.streams.dispatch.memory_parts import cut

KEY: Final = ("u", "j")
LARGE: Final = "x" * (STEP_BYTES_MAX - 2)
NAP_MS: Final = 60_000


def told(kind: str, epoch: int = 1, **facts: Any) -> Input:
    return outcomes(outcome(KEY, kind, **{"epoch": epoch, **facts}))


def ready(records: list[OutRecord]) -> list[tuple[int, bytes]]:
    """Partition and value of each ready record."""
    return [
        (place, value or b"") for topic, place, _, value, _ in records
        if topic.startswith("jobs.ready")
    ]


def asleep(steps: int, *others: Input) -> Scene:
    """A job that did so many large steps and sleeps."""
    scene = Scene(plain())
    scene.group(NOW, request("j"), *others)
    for number in range(steps):
        scene.group(NOW + 1, told("stepped", name=f"s{number}", result=LARGE))
    scene.group(NOW + 10, told("suspended", waits=SLEEPS))
    assert scene.state.jobs[KEY].state is State.AWAITING
    return scene


def woken(steps: int) -> list[tuple[int, bytes]]:
    return ready(asleep(steps).group(NOW + 10 + NAP_MS))


# --- the ledger -----------------------------------------------------------------------------------


def test_what_fits_stays_in_the_record_of_its_job() -> None:
    ((_, value),) = woken(2)
    body = orjson.loads(value)
    assert set(body) == {"schema_version", "ledger_partition", "queue", "jobs"}
    assert [name for name, *_ in body["jobs"][0]["memory"]] == ["s0", "s1", "nap"]
    assert len(value) < MEMORY_INLINE_BYTES_MAX


@pytest.mark.parametrize("steps", [4, 16, 60])
def test_parts_come_before_their_job_in_one_partition_and_hold_all(steps: int) -> None:
    records = woken(steps)
    assert len({partition for partition, _ in records}) == 1
    *parts, job = [ReadyPack.model_validate_json(value) for _, value in records]
    assert [(one.part.number, one.part.parts) for one in parts if one.part is not None] == [
        (number, len(parts)) for number in range(len(parts))
    ]
    entries = [entry for one in parts if one.part for entry in one.part.entries]
    names = [*(f"s{number}" for number in range(steps)), "nap"]
    assert [name for name, *_ in entries] == names
    assert all(value == LARGE for _, kind, value in entries if kind == "step")
    assert not any(one.jobs for one in parts)
    assert max(len(value) for _, value in records) < MEMORY_PART_BYTES_MAX + 1_000
    assert job.parted is not None
    assert (job.parted.type, job.parted.parts) == ("t", len(parts))
    (only,) = job.jobs
    assert (only.type, only.memory) == (PARTED_TYPE, None)


def test_an_entry_that_is_larger_than_a_part_has_one_of_its_own() -> None:
    large = b"x" * (MEMORY_PART_BYTES_MAX + 1)
    assert cut([b"1", large, b"2", b"3"]) == [b"1", large, b"2,3"]


def test_jobs_that_remember_much_share_no_pack_and_no_group_holds_too_many() -> None:
    scene = asleep(40, request("a"))
    for number in range(40):
        scene.group(NOW + 20, outcomes(outcome(
            ("u", "a"), "stepped", epoch=1, name=f"s{number}", result=LARGE,
        )))
    waits = {"kind": "sleep", "name": "nap", "for_ms": NAP_MS - 10}
    scene.group(NOW + 20, outcomes(outcome(("u", "a"), "suspended", epoch=1, waits=waits)))
    first = ready(scene.group(NOW + 10 + NAP_MS))
    rest = ready(scene.group(NOW + 10 + NAP_MS))
    jobs = [orjson.loads(value)["jobs"] for _, value in [*first, *rest]]
    assert sorted(job["job_id"] for found in jobs for job in found) == ["a", "j"]
    assert max(map(len, jobs)) == 1
    assert first
    assert rest, "20 MiB are more than one group takes"


def test_a_job_that_came_without_its_parts_is_sent_again_a_while_later() -> None:
    scene = asleep(8)
    first = ready(scene.group(NOW + 10 + NAP_MS))
    now_ms = NOW + 20 + NAP_MS
    given_back = told("returned", 2, reason="memory_incomplete")
    assert events_of(scene.group(now_ms, given_back)) == ["returned", "deferred"]
    scene.restore(now_ms)
    again = scene.group(now_ms + 500)
    assert events_of(again) == ["dispatched"]
    assert len(ready(again)) == len(first)
    job = orjson.loads(ready(again)[-1][1])["jobs"][0]
    assert (job["attempt"], job["epoch"]) == (1, 3)


# --- the worker -----------------------------------------------------------------------------------


async def t(payload: dict[str, Any], ctx: Context) -> list[int]:
    """Of the type that the jobs of these partitions have."""
    return [len(await ctx.step(f"s{number}", print)) for number in range(8)]


async def test_a_worker_joins_the_parts_and_runs_the_job() -> None:
    async with bench_of(t) as bench:
        for number, (_, value) in enumerate(woken(8)):
            assert len(bench.settled) == number, "a part is acked when it is taken"
            bench.take(value, f"record {number}")
        end = await bench.last("j")
    assert end["result"] == [len(LARGE)] * 8
    assert bench.kinds("j") == ["succeeded"]


async def test_parts_of_two_jobs_may_come_in_any_order() -> None:
    *parts, job = [value for _, value in woken(8)]
    others = [value.replace(b'"job_id":"j"', b'"job_id":"other"') for value in (*parts, job)]
    async with bench_of(t) as bench:
        for value in (*reversed(parts), *parts[:2], *others, job):
            bench.take(value)
        assert (await bench.last("j"))["kind"] == "succeeded"
        assert (await bench.last("other"))["kind"] == "succeeded"


@pytest.mark.parametrize("missing", [0, 1, 3])
async def test_a_job_without_all_of_its_parts_is_given_back(missing: int) -> None:
    values = [value for _, value in woken(8)]
    del values[missing]
    async with bench_of(t) as bench:
        for value in values:
            bench.take(value)
        end = await bench.last("j")
        await until(lambda: len(bench.settled) == len(values))
    assert (end["kind"], end["reason"]) == ("returned", "memory_incomplete")


async def test_parts_of_another_epoch_are_not_taken_for_this_one() -> None:
    *parts, job = [value for _, value in woken(8)]
    async with bench_of(t) as bench:
        for value in parts:
            bench.take(value.replace(b'"epoch":2', b'"epoch":1'))
        bench.take(job)
        assert (await bench.last("j"))["reason"] == "memory_incomplete"


def test_a_worker_that_knows_no_parts_finds_a_type_that_it_does_not_run() -> None:
    """It reads the fields of before: no jobs in a part, and none of its own types in the job."""
    jobs = [orjson.loads(value)["jobs"] for _, value in woken(8)]
    assert [job["type"] for found in jobs for job in found] == [PARTED_TYPE]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("part", 7), ("part", {"user_id": "u"}), ("parted", {"type": 7, "parts": 1}),
        ("parted", {"type": "t", "parts": 1}), ("parted", None),
    ],
)
def test_rubbish_is_left_out(what: str, said: object) -> None:
    body = {"schema_version": 1, "ledger_partition": 0, "queue": "q", "jobs": [], what: said}
    assert packs.PackReader().read(orjson.dumps(body)) is None


def part(job_id: str, number: int = 0) -> dict[str, Any]:
    return {
        "user_id": "u", "job_id": job_id, "run": 1, "epoch": 1, "number": number, "parts": 2,
        "entries": [[f"s{number}", "step", 1]],
    }


def test_what_is_kept_is_bounded_in_bytes_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_parts, "PARTS_BYTES_MAX", 1_000)
    kept = MemoryParts()
    for number in range(10):
        kept.keep(part(f"j{number}"), 300)
        kept.keep(part(f"j{number}"), 300)  # read again: no more than before
    assert (len(kept), kept.size) == (3, 900)
    kept.keep(part("j9", 1), 5_000)
    assert (len(kept), kept.size) == (1, 5_300)
    assert kept.take(part("j9"), 2) == ([["s0", "step", 1], ["s1", "step", 1]], 5_300)
    kept.keep(part("late"), 300)
    kept.look(clocks.monotonic())
    assert len(kept) == 1
    kept.look(clocks.monotonic() + memory_parts.PARTS_SECONDS_MAX)
    assert (len(kept), kept.size) == (0, 0)


async def test_what_waits_in_a_worker_is_bounded_in_bytes_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packs, "WAITING_BYTES_MAX", 3_000_000)
    go = asyncio.Event()

    async def t(payload: dict[str, Any], ctx: Context) -> None:
        await go.wait()

    values = [value for _, value in woken(8)]  # 2 MB
    async with bench_of(t, concurrency=1) as bench:
        for name in ("runs", "waits"):
            for value in values:
                bench.take(value.replace(b'"job_id":"j"', b'"job_id":"%b"' % name.encode()))
            await until(lambda: bench.executor.running)
        assert bench.executor.room("default") > 0, "one of them runs, the other one may wait"
        for value in values:
            bench.take(value)
        assert bench.executor.room("default") == 0
        go.set()
        await bench.last("j")  # on a slow machine it was handed back
        assert bench.executor.room("default") > 0


async def test_the_most_that_there_is_holds_the_loop_for_no_time_at_all() -> None:
    steps = MEMORY_BYTES_MAX // (STEP_BYTES_MAX + 100)
    values = [value for _, value in woken(steps)]
    assert sum(map(len, values)) > MEMORY_BYTES_MAX - STEP_BYTES_MAX
    loop = asyncio.get_running_loop()
    longest = 0.0
    async with bench_of(t) as bench:
        for value in values:
            begun = loop.time()
            bench.take(value)
            longest = max(longest, loop.time() - begun)
        assert (await bench.last("j"))["kind"] == "succeeded"
    assert longest < 1.0
