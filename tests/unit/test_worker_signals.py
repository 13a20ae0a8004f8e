"""Waits for signals as handlers see them, on the loop and on a thread."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest
from pydantic import BaseModel

from tests.unit.test_worker_suspending import ended
from tests.unit.worker_harness import bench_of, pack_of
from tidemill import Context, NonRetryable, SignalTimeout


class Approval(BaseModel):
    by: str
    is_ok: bool = True


@dataclass
class Point:
    x: int
    day: date


async def on_loop(payload: dict[str, Any], ctx: Context) -> Any:
    found = await ctx.wait("go", Approval, timeout="24h")
    return [type(found).__name__, found.by]


def on_thread(payload: dict[str, Any], ctx: Context) -> Any:
    found = ctx.wait("go", Approval, timeout=86_400)
    return [type(found).__name__, found.by]


HANDLERS = (on_loop, on_thread)


async def end_of(handler: Any, memory: list[list[Any]] | None = None) -> dict[str, Any]:
    async with bench_of(handler) as bench:
        bench.take(pack_of((handler.__name__, {}), memory=memory))
        return await ended(bench)


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_wait_ends_the_attempt(handler: Any) -> None:
    end = await end_of(handler)
    assert end["kind"] == "suspended"
    assert end["waits"] == {"kind": "signal", "name": "go", "timeout_ms": 86_400_000}


async def test_without_a_time_out_it_is_for_ever() -> None:
    async def waits(payload: dict[str, Any], ctx: Context) -> None:
        await ctx.wait("go")

    assert (await end_of(waits))["waits"] == {"kind": "signal", "name": "go", "timeout_ms": None}


@pytest.mark.parametrize("handler", HANDLERS)
async def test_the_value_is_read_as_what_was_asked_for(handler: Any) -> None:
    end = await end_of(handler, [["go", "signal", {"by": "ada"}]])
    assert end["result"] == ["Approval", "ada"]


@pytest.mark.parametrize(
    ("model", "value", "expected"),
    [
        (None, {"any": [1]}, {"any": [1]}), (None, None, None), (bool, True, True),
        (Point, {"x": 1, "day": "2026-01-02"}, Point(1, date(2026, 1, 2))),
        (list[int], [1, 2], [1, 2]), (date, "2026-01-02", date(2026, 1, 2)), (Any, 7, 7),
        (int | None, None, None),
    ],
    ids=str,
)
async def test_any_type_that_json_can_be_read_as(model: Any, value: Any, expected: Any) -> None:
    found: list[Any] = []

    async def waits(payload: dict[str, Any], ctx: Context) -> None:
        found.append(await ctx.wait("go", model))

    await end_of(waits, [["go", "signal", value]])
    assert found == [expected]


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_value_that_does_not_fit_is_final_and_names_its_field(handler: Any) -> None:
    end = await end_of(handler, [["go", "signal", {"is_ok": "maybe", "by": 7}]])
    assert (end["error"]["code"], end["error"]["retryable"]) == ("INVALID_SIGNAL", False)
    assert "signal 'go': field 'value.by'" in end["error"]["message"]
    assert "Approval" in end["error"]["message"]


async def test_a_plain_value_that_does_not_fit_has_the_field_value() -> None:
    async def waits(payload: dict[str, Any], ctx: Context) -> None:
        await ctx.wait("go", int)

    end = await end_of(waits, [["go", "signal", "x"]])
    assert "field 'value': " in end["error"]["message"]


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_time_out_that_is_let_pass_is_final(handler: Any) -> None:
    end = await end_of(handler, [["go", "timed_out", None]])
    assert (end["kind"], end["error"]["code"]) == ("failed", "SIGNAL_TIMEOUT")
    assert end["error"]["retryable"] is False
    assert "'go'" in end["error"]["message"]


@pytest.mark.parametrize("caught", [SignalTimeout, TimeoutError, NonRetryable])
async def test_a_time_out_may_be_caught_by_each_of_its_names(caught: type[Exception]) -> None:
    async def waits(payload: dict[str, Any], ctx: Context) -> str:
        try:
            await ctx.wait("go")
        except caught:
            return str(await ctx.step("escalate", str, "escalated"))
        return "no"

    end = await end_of(waits, [["go", "timed_out", None]])
    assert end["result"] == "escalated"


def test_a_signal_time_out_is_an_exception_like_others() -> None:
    raised = SignalTimeout("late")
    back = pickle.loads(pickle.dumps(raised))
    assert (str(back), back.code) == ("late", "SIGNAL_TIMEOUT") == (str(raised), raised.code)
    assert "signal" in str(SignalTimeout())


@pytest.mark.parametrize("kind", ["step", "sleep"])
async def test_a_name_that_was_another_kind_is_told(kind: str) -> None:
    end = await end_of(on_loop, [["go", kind, {"by": "ada"}]])
    assert (end["error"]["code"], end["error"]["retryable"]) == ("NAME_USED_TWICE", False)
    assert f"remembers a {kind}" in end["error"]["message"]


async def twice(payload: dict[str, Any], ctx: Context) -> None:
    await ctx.step("go", int, 1)
    await ctx.wait("go")


async def side_by_side(payload: dict[str, Any], ctx: Context) -> None:
    await asyncio.gather(ctx.wait("a"), ctx.wait("b"), return_exceptions=True)


async def in_a_step(payload: dict[str, Any], ctx: Context) -> None:
    await ctx.step("outer", lambda: ctx.wait("inner"))


async def swallows(payload: dict[str, Any], ctx: Context) -> None:
    try:
        await ctx.wait("go")
    except BaseException:  # noqa: BLE001, S110  # what this is about
        pass


@pytest.mark.parametrize(
    ("handler", "code"),
    [
        (twice, "NAME_USED_TWICE"), (side_by_side, "SUSPENDED_SIDE_BY_SIDE"),
        (in_a_step, "SUSPENDED_SIDE_BY_SIDE"), (swallows, "SUSPENSION_SWALLOWED"),
    ],
)
async def test_what_breaks_the_rules_is_a_final_error(handler: Any, code: str) -> None:
    end = await end_of(handler)
    assert (end["kind"], end["error"]["code"], end["error"]["retryable"]) == ("failed", code, False)


@pytest.mark.parametrize("given", ["soon", -1, 10**9, "1"])
async def test_a_wrong_time_out_names_its_wait(given: Any) -> None:
    async def waits(payload: dict[str, Any], ctx: Context) -> None:
        await ctx.wait("go", timeout=given)

    assert "wait 'go': timeout" in (await end_of(waits))["error"]["message"]


async def test_what_is_no_type_names_its_wait() -> None:
    async def waits(payload: dict[str, Any], ctx: Context) -> None:
        await ctx.wait("go", 7)

    assert "wait 'go': 7 is no type" in (await end_of(waits))["error"]["message"]
