"""Rescued jobs in a worker: a start is durable before the handler is called, and few go at once."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import orjson
import pytest

from tests.unit.worker_harness import Bench, bench_of, pack_of, until
from tidemill.agents.worker import suspects
from tidemill.schemas.words import Reason


def rescued(*jobs: tuple[str, Any, int]) -> bytes:
    """A pack with these (type, payload, rescues)."""
    pack = orjson.loads(pack_of(*[(name, payload) for name, payload, _ in jobs]))
    for body, (_, _, rescues) in zip(pack["jobs"], jobs, strict=True):
        if rescues:
            body["rescues"] = rescues
    return orjson.dumps(pack)


@pytest.mark.parametrize("runs", ["async", "thread"])
async def test_a_rescued_job_begins_once_its_start_is_durable(runs: str) -> None:
    begun: list[str] = []

    async def in_loop(payload: dict[str, Any]) -> None:
        begun.append("async")

    def in_thread(payload: dict[str, Any]) -> None:
        begun.append("thread")

    function = in_loop if runs == "async" else in_thread
    async with bench_of(function, is_held=True) as bench:
        bench.take(rescued((function.__name__, {}, 1)))
        await until(lambda: bench.kinds() == ["started"])
        assert begun == []
        bench.sink.release()
        await until(lambda: bench.kinds() == ["started", "succeeded"])
        assert begun == [runs]
        assert bench.settled == ["pack"]


async def test_rescued_jobs_go_one_at_a_time_the_fewest_rescues_first() -> None:
    begun: list[str] = []

    def is_last(name: str) -> bool:
        return begun[-1:] == [name]

    gates = {name: asyncio.Event() for name in "abcd"}

    async def work(payload: dict[str, Any]) -> None:
        begun.append(payload["name"])
        await gates[payload["name"]].wait()

    async with bench_of(work) as bench:
        named = [("a", 2), ("b", 1), ("c", 2), ("d", 1)]
        bench.take(rescued(*[("work", {"name": name}, rescues) for name, rescues in named]))
        for name in ("b", "d", "a", "c"):
            await until(partial(is_last, name))
            assert bench.executor.running == 1
            gates[name].set()
        await until(lambda: bench.executor.running == 0)
        assert begun == ["b", "d", "a", "c"]


async def test_who_lives_for_a_while_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "PROBATION_SECONDS", 0.05)
    gate = asyncio.Event()

    async def long(payload: dict[str, Any]) -> None:
        await gate.wait()

    async with bench_of(long) as bench:
        bench.take(rescued(*[("long", {}, 2)] * 3))
        await until(lambda: bench.executor.running == 3)
        gate.set()


async def test_others_run_beside_them() -> None:
    gate = asyncio.Event()

    async def work(payload: dict[str, Any]) -> None:
        if payload["waits"]:
            await gate.wait()

    async with bench_of(work) as bench:
        bench.take(rescued(("work", {"waits": True}, 2), ("work", {"waits": False}, 0)))
        await until(lambda: bench.kinds("j1") == ["succeeded"])
        gate.set()


async def test_many_that_were_rescued_once_fill_the_slots_in_a_dozen_turns() -> None:
    turns: list[int] = []
    gate = asyncio.Event()

    async def work(payload: dict[str, Any]) -> None:
        await gate.wait()

    async with bench_of(work, concurrency=100) as bench:
        bench.take(rescued(*[("work", {}, 1)] * 60))
        await until(lambda: bench.executor.running)
        turns.append(bench.executor.running)
        assert turns == [60 // suspects.TURNS]
        gate.set()
        await until(lambda: len([o for o in bench.outcomes if o["kind"] == "succeeded"]) == 60)


async def test_a_stop_gives_back_those_that_were_told_and_have_not_begun() -> None:
    begun: list[str] = []

    async def work(payload: dict[str, Any]) -> None:
        begun.append("begun")

    async with bench_of(work, is_held=True) as bench:
        bench.take(rescued(("work", {}, 1), ("work", {}, 1)))
        await until(lambda: len(bench.outcomes) == 1)
        stopping = asyncio.create_task(bench.executor.stop(0.05))
        await until(lambda: bench.executor.is_stopping)
        bench.sink.release()
        await stopping
        await bench.writer.drain()
        assert begun == []
        assert bench.settled == ["pack"]
        last = [o for o in bench.outcomes if o["kind"] == "returned"]
        assert {o["reason"] for o in last} == {Reason.WORKER_STOPPING.value}
        assert len(last) == 2


async def test_a_cancel_meets_one_whose_start_is_on_its_way() -> None:
    begun: list[str] = []

    async def work(payload: dict[str, Any]) -> None:
        begun.append("begun")

    async with bench_of(work, is_held=True) as bench:
        bench.take(rescued(("work", {}, 1)))
        await until(lambda: bench.kinds() == ["started"])
        bench.executor.cancel("u", "j0", 1, 5)
        bench.sink.release()
        outcome = await bench.last()
        assert outcome["error"]["code"] == "CANCELLED"
        assert begun == []


async def test_a_record_that_may_have_been_delivered_before_starts_nothing() -> None:
    begun: list[str] = []

    async def work(payload: dict[str, Any]) -> None:
        begun.append("begun")

    async with bench_of(work) as bench:
        _give_back(bench, pack_of(("work", {}), ("unknown", {})))
        await bench.writer.drain()
        assert begun == []
        assert bench.settled == ["again"]
        assert {(o["kind"], o["reason"]) for o in bench.outcomes} == {("returned", "redelivered")}
        assert bench.executor.room("default") > 0


def _give_back(bench: Bench, value: bytes) -> None:
    bench.executor.give_back(value, lambda: bench.settled.append("again"), None)
