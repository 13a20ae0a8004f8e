"""`@schedule`: what it registers, what it refuses, and what its handler may return."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tidemill import Context, Request, Tick, job, schedule
from tidemill.agents.worker.context import Context as WorkerContext
from tidemill.agents.worker.context import Signal, children_of
from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.agents.worker.handlers import REGISTRY
from tidemill.agents.worker.schedules import SCHEDULES, announcement
from tidemill.errors import NonRetryable
from tidemill.schemas.schedules import ScheduleSet, ScheduleSpec

TICK: dict[str, Any] = {
    "name": "x", "at": "2026-11-28T08:00:00Z", "scheduled_for": "2026-11-28T08:00:00Z",
    "previous": None, "is_catch_up": False, "payload": {},
}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    handlers, schedules = dict(REGISTRY._handlers), dict(SCHEDULES._known)
    REGISTRY.clear()
    SCHEDULES.clear()
    yield
    REGISTRY._handlers, SCHEDULES._known = handlers, schedules


def context() -> WorkerContext:
    told: dict[str, Any] = {"job_id": "x@1", "user_id": "schedule:x", "type": "x", "run": 1}
    return WorkerContext(told, Signal(), lambda progress: None)


def run(type_name: str, payload: dict[str, Any], ctx: WorkerContext) -> Any:
    handler = REGISTRY.get(type_name)
    assert handler is not None
    assert handler.takes_context
    return asyncio.run(handler.function(handler.read_payload(payload), ctx))


def test_the_example_of_the_docs() -> None:
    @schedule("news.ingest", every="1min", first="now", overlap="skip")
    @schedule(
        "digest.daily", cron="0 9 * * *", zone="Europe/Berlin", overlap="skip", catch_up="last",
        jitter="30s",
    )
    async def daily_digest(tick: Tick, ctx: Context) -> list[Request] | dict[str, Any] | None:
        return [Request(type="mail", user_id=f"u{n}", payload={"n": n}) for n in range(2)]

    specs = SCHEDULES.specs()
    assert specs["news.ingest"] == ScheduleSpec(
        type="news.ingest", every_ms=60_000, is_first_now=True
    )
    assert specs["digest.daily"].zone == "Europe/Berlin"
    assert specs["digest.daily"].jitter_ms == 30_000
    assert {handler.type for handler in REGISTRY} == {"news.ingest", "digest.daily"}
    ctx = context()
    assert run("digest.daily", TICK, ctx) == {"requested": 2}
    children = children_of(ctx)
    assert children is not None
    assert [(one["type"], one["user_id"], one["job_id"]) for one in children] == [
        ("mail", "u0", "x@1.1.0"), ("mail", "u1", "x@1.1.1")
    ]


def test_it_is_called_as_before() -> None:
    @schedule("x", every="2s")
    async def handle(tick: Tick) -> dict[str, Any]:
        return {"at": tick.at.isoformat()}

    at = datetime(2026, 1, 1, tzinfo=UTC)
    tick = Tick(name="x", at=at, scheduled_for=at)
    assert asyncio.run(handle(tick)) == {"at": at.isoformat()}
    assert run("x", TICK, context()) == {"at": "2026-11-28T08:00:00+00:00"}


def test_a_parameter_without_an_annotation_is_a_tick() -> None:
    @schedule("x", every="2s")
    async def handle(tick):  # type: ignore[no-untyped-def]
        return {"catch_up": tick.is_catch_up}

    assert run("x", TICK, context()) == {"catch_up": False}


def test_a_function_without_parameters() -> None:
    @schedule("x", every="2s")
    async def handle() -> dict[str, Any]:
        return {"a": 1}

    assert run("x", TICK, context()) == {"a": 1}


def test_a_plain_def_runs_in_a_thread() -> None:
    @schedule("x", every="2s")
    def handle(tick: Tick, ctx: Context) -> list[Request]:
        return [Request(type="mail", user_id="u")]

    handler = REGISTRY.get("x")
    assert handler is not None
    assert handler.runs_as == "thread"
    assert handler.function(handler.read_payload(TICK), context()) == {"requested": 1}


def test_above_a_job_it_is_that_job() -> None:
    @schedule("x", every="2s", payload={"name": "ada"})
    @job("mail.send", queue="mail")
    async def handle(payload: dict[str, Any]) -> None: ...

    assert SCHEDULES.specs()["x"].type == "mail.send"
    assert SCHEDULES.specs()["x"].payload == {"name": "ada"}
    (handler,) = REGISTRY
    assert not handler.takes_tick
    assert not handler.definition().takes_tick


def test_above_a_job_that_takes_a_tick() -> None:
    @schedule("x", every="2s")
    @job("mail.send", queue="mail")
    async def handle(tick: Tick) -> list[Request]:
        return [Request(type="mail", user_id="u", source="s")]

    ctx = context()
    assert run("mail.send", TICK, ctx) == {"requested": 1}
    (handler,) = REGISTRY
    assert handler.queue == "mail"
    assert handler.definition().takes_tick


@pytest.mark.parametrize(
    ("result", "code"),
    [([{"type": "mail"}], "NOT_A_REQUEST"),
     ([Request(type="mail", user_id="u")] * 1_001, "TOO_MANY_REQUESTS")],
)
def test_a_list_of_something_else_fails_for_good(result: list[Any], code: str) -> None:
    @schedule("x", every="2s")
    async def handle(tick: Tick) -> Any:
        return result

    with pytest.raises(NonRetryable) as error:
        run("x", TICK, context())
    assert error.value.code == code


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give either every"),
        ({"every": "1min", "cron": "* * * * *"}, "give either every"),
        ({"every": "500ms"}, "every='500ms' is less than 1 s"),
        ({"every": "2 parsecs"}, "parsec"),
        ({"every": "1min", "zone": "Europe/Berlin"}, "zone='Europe/Berlin'"),
        ({"cron": "61 * * * *"}, "61 * * * *"),
        ({"cron": "0 0 30 2 *"}, "0 0 30 2 *"),
        ({"cron": "@dayly"}, "@daily"),
        ({"cron": "0 9 * * *", "zone": "europe/berlin"}, "write 'Europe/Berlin'"),
        ({"cron": "0 9 * * *", "zone": "CET/Nowhere"}, "zone='CET/Nowhere'"),
        ({"cron": 9}, "cron=9"),
        ({"every": "1min", "overlap": "drop"}, "overlap='drop'"),
        ({"every": "1min", "catch_up": "some"}, "catch_up='some'"),
        ({"every": "1min", "first": "later"}, "first='later'"),
        ({"every": "1min", "jitter": "2d"}, "jitter='2d'"),
        ({"cron": "0 9 * * *", "gap": "prev"}, "gap='prev'"),
        ({"cron": "0 9 * * *", "fold": "third"}, "fold='third'"),
        ({"every": "1min", "payload": {"a": {1}}}, "payload"),
        ({"every": "1min", "payload": 7}, "payload"),
    ],
)
def test_what_is_refused_names_the_field(given: dict[str, Any], said: str) -> None:
    with pytest.raises(JobDefinitionError) as error:
        schedule("x", **given)
    assert said in str(error.value)
    assert "'x'" in str(error.value)


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 129, 7])
def test_a_name_that_cannot_be(name: Any) -> None:
    with pytest.raises(JobDefinitionError, match="name must be"):
        schedule(name, every="1min")


def test_two_of_one_name() -> None:
    def declare(which: str) -> None:
        if which == "a":
            @schedule("x", every="2s")
            @job("a")
            async def first(tick: Tick) -> None: ...
        else:
            @schedule("x", every="2s")
            @job("b")
            async def second(tick: Tick) -> None: ...

    declare("a")
    with pytest.raises(JobDefinitionError, match="two schedules of the name 'x'"):
        declare("b")


def test_a_model_that_is_no_tick() -> None:
    with pytest.raises(JobDefinitionError, match="a tidemill"):

        @schedule("x", every="2s")
        async def handle(payload: ScheduleSpec) -> None: ...


def test_a_set_goes_in_parts() -> None:
    specs = {
        f"s{n}": ScheduleSpec(type="t", every_ms=1_000, payload={"a": "b" * 60_000})
        for n in range(20)
    }
    set_id, records = announcement(specs, ["jobs"])
    parts = [ScheduleSet.model_validate_json(value) for value in records.values()]
    assert len(parts) > 1
    assert {part.id for part in parts} == {set_id}
    assert {name: spec for part in parts for name, spec in part.schedules.items()} == specs
    assert max(map(len, records.values())) < 1_048_576


def test_no_schedules_is_an_announcement_too() -> None:
    set_id, records = announcement({}, ["jobs"])
    assert list(records) == [f"schedules:{set_id}:0"]
    assert announcement({}, ["others"])[0] != set_id
