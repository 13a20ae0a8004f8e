"""`tidemill.testing.Engine`: time, faults, clients, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from tidemill import (
    Client,
    Context,
    InvalidRequest,
    NonRetryable,
    RateLimit,
    Request,
    Tick,
    WaitTimeout,
    default_client,
    job,
    schedule,
)
from tidemill.testing import Engine, EngineError

START = datetime(2026, 5, 1, tzinfo=UTC)


class Sum(BaseModel):
    of: list[int]


@job("kit.sum")
async def add(payload: Sum) -> int:
    return sum(payload.of)


@job("kit.slow", timeout_seconds=60, max_attempts=2)
async def slow(payload: dict[str, Any], ctx: Context) -> str:
    ctx.progress(10, stage="begun")
    await asyncio.sleep(payload.get("seconds", 30))
    return "done"


@job("kit.stubborn")
async def stubborn(payload: dict[str, Any]) -> None:
    while True:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            if payload.get("gives_in"):
                raise


@job("kit.blocking")
def blocking(payload: dict[str, Any], ctx: Context) -> list[str]:
    return [ctx.enqueue("kit.sum", {"of": [n]}, user_id="other") for n in range(2)]


@job("kit.in_process", process=True)
def in_process(payload: dict[str, Any]) -> str:
    return "here"


@job("kit.relay")
async def relay(payload: dict[str, Any], ctx: Context) -> int | None:
    handle = await add.enqueue(Sum(of=[4, 5]), user_id=ctx.user_id)
    return (await handle.result(timeout=10)).result


@job("kit.relay_blocking", max_attempts=1)
def relay_blocking(payload: dict[str, Any], ctx: Context) -> int | None:
    return add.enqueue_sync(Sum(of=[1]), user_id=ctx.user_id).result_sync(timeout=10).result


@job("kit.threads")
async def threads(payload: dict[str, Any]) -> int:
    return await asyncio.to_thread(sum, [1, 2, 3])


@job("kit.connected")
async def connected(payload: dict[str, Any]) -> bytes:
    """It talks to a server of its own, and keeps the connection while it sleeps."""
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await reader.read()  # until the other side has closed
        writer.close()
        await writer.wait_closed()
        closed.set()

    closed = asyncio.Event()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"hello\n")
    line = await reader.readline()
    await asyncio.sleep(100)
    writer.close()
    await writer.wait_closed()
    await closed.wait()
    server.close()
    await server.wait_closed()
    return line


@job("kit.limited", limits=[RateLimit("1/h", over="delay")])
async def limited(payload: dict[str, Any]) -> None: ...


@job("kit.hopeless")
def hopeless(payload: dict[str, Any]) -> None:
    raise NonRetryable("never", code="NEVER")


RAN: list[str] = []


def note(name: str) -> str:
    RAN.append(name)
    return name.upper()


@job("kit.steps")
async def steps(payload: dict[str, Any], ctx: Context) -> list[str]:
    first = await ctx.step("first", note, "first")
    await ctx.sleep("pause", "10min")
    second = await ctx.step("second", note, "second")
    await asyncio.sleep(30)
    return [first, second]


@job("kit.steps_in_thread")
def steps_in_thread(payload: dict[str, Any], ctx: Context) -> list[str]:
    first = ctx.step("first", note, "first")
    ctx.sleep("pause", "10min")
    return [first, ctx.step("second", note, "second")]


@schedule("kit.minutely", every="1min", first="now")
async def minutely(tick: Tick) -> list[Request]:
    return [Request(type="kit.sum", user_id="u", payload={"of": [1]})]


@schedule("kit.long", every="1min", first="now", overlap="skip")
async def long(tick: Tick) -> None:
    await asyncio.sleep(90)


@schedule("kit.caught_up", every="1min", first="now", overlap="allow", catch_up="all")
async def caught_up(tick: Tick) -> bool:
    return tick.is_catch_up


@job("kit.shared", collapse_by="payload.thing")
async def shared(payload: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(30)
    return {"thing": payload["thing"]}


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(start=START) as made:
        yield made


def test_a_job_ends_at_its_instant(engine: Engine) -> None:
    found = engine.enqueue(add, Sum(of=[1, 2]))
    assert (found.status, found.events, found.attempts) == (None, [], 0)
    engine.run()
    assert (found.status, found.result, found.attempts, found.run) == ("succeeded", 3, 1, 1)
    assert found.events == ["requested", "dispatched", "attempt_succeeded", "succeeded"]
    assert engine.now == START
    assert found.story[-1].occurred_at == "2026-05-01T00:00:00.000Z"


def test_the_same_test_has_the_same_story() -> None:
    stories = []
    for _ in range(2):
        with Engine(start=START) as engine:
            for seconds in (1, 90, 0):
                engine.enqueue("kit.slow", {"seconds": seconds})
            engine.enqueue(blocking, {})
            engine.advance("10min")
            stories.append([event.model_dump() for found in engine.jobs for event in found.story])
    assert stories[0] == stories[1]
    assert len(stories[0]) > 20


def test_a_handler_sleeps_in_virtual_time(engine: Engine) -> None:
    found = engine.enqueue(slow, {"seconds": 30})
    engine.run()
    assert found.status == "dispatched"
    engine.advance("1s")
    assert found.status == "running"
    assert found.progress == {"percent": 10.0, "stage": "begun", "message": None}
    engine.advance("28s")
    assert found.status == "running"
    engine.advance("1s")
    assert (found.status, engine.now - START) == ("succeeded", timedelta(seconds=30))


def test_a_time_out_is_of_virtual_time(engine: Engine) -> None:
    found = engine.enqueue(slow, {"seconds": 90})
    engine.advance("59s")
    assert found.status == "running"
    engine.advance("1s")
    assert (found.status, found.error and found.error.code) == ("retrying", "TIMEOUT")
    engine.advance("5min")
    assert (found.status, found.attempts) == ("failed", 2)


@pytest.mark.parametrize("gives_in", [True, False])
def test_a_running_job_is_cancelled(engine: Engine, gives_in: bool) -> None:
    found = engine.enqueue("kit.stubborn", {"gives_in": gives_in})
    engine.advance("1s")
    engine.cancel(found, actor="ada")
    engine.advance("10s")
    assert (found.status, found.events[-3:]) == (
        "cancelled", ["cancel_requested", "attempt_failed", "cancelled"]
    )


def test_a_job_tells_its_story(engine: Engine) -> None:
    found = engine.enqueue("kit.hopeless", {"n": 1}, user_id="u", job_id="j")
    assert "engine.run()" in repr(found)
    engine.run()
    assert (found.type, found.payload) == ("kit.hopeless", {"n": 1})
    assert repr(found) == (
        "<kit.hopeless job 'j' of 'u': failed (not_retryable; never): "
        "requested, dispatched, attempt_failed, failed>"
    )


def test_children_are_born_with_the_end(engine: Engine) -> None:
    parent = engine.enqueue("kit.blocking")
    engine.run()
    children = [engine.job(("other", job_id)) for job_id in parent.result]
    assert [child.result for child in children] == [0, 1]


def test_threads_processes_and_real_threads(engine: Engine) -> None:
    found = [engine.enqueue(name) for name in ("kit.in_process", "kit.threads", "kit.relay")]
    engine.run()
    assert [each.result for each in found] == ["here", 6, 9]


def test_sockets_are_waited_for_in_real_time(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidemill.testing.clock.REAL_WAIT_SECONDS", 0.3)
    found = engine.enqueue("kit.connected")
    engine.advance("2min")
    assert found.result == "hello\n"


def test_a_blocking_wait_in_a_handler_is_refused(engine: Engine) -> None:
    found = engine.enqueue("kit.relay_blocking")
    engine.run()
    assert found.error is not None
    assert "make it `async def`" in found.error.message


def test_limits_wait_for_the_clock(engine: Engine) -> None:
    first, second = engine.enqueue("kit.limited"), engine.enqueue("kit.limited")
    engine.run()
    assert (first.status, second.status, second.reason) == (
        "succeeded", "scheduled", "rate_limited"
    )
    engine.advance("1h")
    assert second.status == "succeeded"


def test_a_dead_letter_is_redriven(engine: Engine) -> None:
    found = engine.enqueue("kit.hopeless")
    engine.run()
    assert (found.status, found.error and found.error.code) == ("failed", "NEVER")
    engine.redrive(found)
    engine.run()
    assert (found.run, found.status, found.events.count("failed")) == (2, "failed", 2)


@pytest.mark.parametrize("is_told", [True, False])
def test_a_worker_dies_in_the_middle(engine: Engine, is_told: bool) -> None:
    found = engine.enqueue(slow, {"seconds": 30})
    engine.advance(1 if is_told else 0.1)
    engine.kill_worker()
    engine.restart_worker()
    engine.run()
    assert "rescued" in found.events or "returned" in found.events
    engine.advance("31s")
    assert (found.status, found.attempts) == ("succeeded", 1)  # a rescue spends none


def test_without_a_worker_jobs_wait(engine: Engine) -> None:
    found = engine.enqueue(slow)
    engine.advance(1)
    engine.kill_worker()
    engine.advance("9s")
    assert found.status == "running"
    engine.advance("2s")
    assert (found.status, found.reason) == ("pending", "worker_lost")
    with pytest.raises(EngineError, match="restart_worker"):
        engine.kill_worker()
    engine.restart_worker()
    engine.advance("1min")
    assert found.status == "succeeded"


def test_a_ledger_knows_what_the_log_holds(engine: Engine) -> None:
    waits = engine.enqueue(add, Sum(of=[1]), run_at=START + timedelta(hours=1))
    runs = engine.enqueue(slow, {"seconds": 30})
    dead = engine.enqueue("kit.hopeless")
    engine.advance(1)
    engine.restart_ledger()
    engine.redrive(dead)
    engine.advance("1h")
    assert [each.status for each in (waits, runs, dead)] == ["succeeded", "succeeded", "failed"]
    assert dead.run == 2


def test_an_unknown_type_is_given_up(engine: Engine) -> None:
    found = engine.enqueue("kit.nobody")
    engine.advance("20s")
    assert (found.status, found.reason) == ("scheduled", "unknown_type")
    engine.advance("20s")
    assert (found.status, found.error and found.error.code) == ("failed", "UNKNOWN_TYPE")


def test_errors_are_those_of_production(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="field 'priority'"):
        engine.enqueue("kit.sum", {"of": []}, priority="urgent")
    with pytest.raises(InvalidRequest, match=r"field 'payload\.of'"):
        engine.enqueue(add, {"of": "many"})
    found = engine.enqueue("kit.sum", {"of": "many"})
    engine.run()
    assert found.error is not None
    assert found.error.code == "INVALID_PAYLOAD"
    assert "field 'payload.of'" in found.error.message
    with pytest.raises(EngineError, match="no time zone"):
        Engine(start=datetime(2026, 5, 1))


def test_clients_ask_this_engine(engine: Engine) -> None:
    client = default_client()
    assert isinstance(client, Client)
    assert client is engine.client
    handles = client.enqueue_many(
        Request(type="kit.sum", user_id=f"u{n}", payload={"of": [n]}) for n in range(3)
    )
    assert [client.wait(handle).result for handle in handles] == [0, 1, 2]
    waits = client.enqueue("kit.slow", user_id="u", payload={"seconds": 50})
    with pytest.raises(WaitTimeout):
        client.wait(waits, timeout=20)
    assert engine.now - START == timedelta(seconds=20)
    client.cancel("u", waits.job_id)
    assert client.wait(waits, timeout=20).status == "cancelled"


async def test_typed_calls_on_a_loop(engine: Engine) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    handle = await add.enqueue(Sum(of=[2, 2]), user_id="u")
    assert (await handle.result()).result == 4
    assert asyncio.get_running_loop() is loop
    assert asyncio.current_task() is task


def test_after_its_end_it_says_so(engine: Engine) -> None:
    engine.close()
    engine.close()
    for call in (engine.run, lambda: engine.enqueue("kit.sum")):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_jobs_that_ask_without_end_are_told(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidemill.testing.engine.TURNS_MAX", 50)

    @job("kit.endless")
    async def endless(payload: dict[str, Any], ctx: Context) -> None:
        ctx.enqueue("kit.endless")

    engine.enqueue("kit.endless")
    with pytest.raises(EngineError, match="without end"):
        engine.run()


def test_schedules_tick_once_they_are_announced(engine: Engine) -> None:
    engine.advance("5min")
    assert engine.jobs == []
    engine.announce_schedules("kit.minutely")
    engine.advance("3min")
    ticks = engine.ticks("kit.minutely")
    assert [(tick.job_id[-20:], tick.status) for tick in ticks] == [
        (f"2026-05-01T00:0{minute}:00Z", "succeeded") for minute in (5, 6, 7, 8)
    ]
    assert len([found for found in engine.jobs if found.user_id == "u"]) == 4
    engine.restart_ledger()
    engine.restart_worker()
    engine.advance("1min")
    assert len(engine.ticks("kit.minutely")) == 5


def test_a_tick_that_overlaps_is_skipped(engine: Engine) -> None:
    engine.announce_schedules("kit.long")
    engine.advance("2min")
    assert [(tick.status, tick.reason) for tick in engine.ticks("kit.long")] == [
        ("succeeded", None), ("skipped", "overlap"), ("dispatched", None)
    ]


def test_ticks_of_a_ledgers_down_time_are_caught_up(engine: Engine) -> None:
    engine.announce_schedules("kit.caught_up")
    engine.run()
    engine.kill_ledger()
    with pytest.raises(EngineError, match="restart_ledger"):
        engine.kill_ledger()
    asked = engine.enqueue(add, Sum(of=[1]))
    engine.advance("150s")
    assert (asked.status, len(engine.ticks("kit.caught_up"))) == (None, 1)
    engine.restart_ledger()
    engine.run()
    assert asked.status == "succeeded"
    # One instant was missed; the next one is late by less than a minute.
    assert [tick.result for tick in engine.ticks("kit.caught_up")] == [False, True, False]


def test_requests_for_the_same_thing_share_a_run(engine: Engine) -> None:
    first, joiner = (engine.enqueue(shared, {"thing": 1}) for _ in range(2))
    another = engine.enqueue(shared, {"thing": 2})
    engine.advance("1s")
    assert (first.status, another.status, joiner.status) == ("running", "running", "scheduled")
    engine.restart_ledger()
    engine.advance("30s")
    assert (joiner.status, joiner.reason, joiner.result) == ("skipped", "collapsed", {"thing": 1})
    assert joiner.completed is not None
    assert joiner.completed.collapsed_into is not None
    assert joiner.completed.collapsed_into.job_id == first.job_id


def test_a_schedule_that_nobody_has_is_told(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"known are: .*kit\.long"):
        engine.announce_schedules("kit.nobody")


@pytest.mark.parametrize("type_name", ["kit.steps", "kit.steps_in_thread"])
def test_steps_are_remembered_and_a_job_sleeps_without_a_slot(
    engine: Engine, type_name: str
) -> None:
    RAN.clear()
    found = engine.enqueue(type_name)
    engine.run()
    assert (found.status, RAN) == ("awaiting", ["first"])
    engine.restart_ledger()
    engine.restart_worker()
    engine.advance("9min")
    assert found.status == "awaiting"
    engine.advance("61s")
    engine.restart_worker()  # in the middle of what follows its second step, where it waits there
    engine.advance("1min")
    assert (found.status, found.result, found.attempts) == ("succeeded", ["FIRST", "SECOND"], 1)
    assert RAN == ["first", "second"]


def test_a_sleeping_job_is_cancelled_at_once(engine: Engine) -> None:
    found = engine.enqueue("kit.steps")
    engine.run()
    engine.cancel(found)
    engine.run()
    assert found.status == "cancelled"
