"""Steps and sleeps as handlers see them, on the loop, on a thread and in a child process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.unit.worker_harness import Bench, bench_of, pack_of, until
from tidemill.agents.worker.context import Context
from tidemill.schemas.requests import STEP_BYTES_MAX

CALLS: list[str] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def load(day: str) -> dict[str, str]:
    CALLS.append(day)
    return {"day": day}


async def on_loop(payload: dict[str, Any], ctx: Context) -> Any:
    found = await ctx.step("load", load, payload["day"])
    await ctx.sleep("nap", "10min")
    return {"found": found, "key": ctx.step_key("load")}


def on_thread(payload: dict[str, Any], ctx: Context) -> Any:
    found = ctx.step("load", load, payload["day"])
    ctx.sleep("nap", 600)
    return {"found": found, "key": ctx.step_key("load")}


def stepped_of(bench: Bench) -> dict[str, Any]:
    (found,) = [one for one in bench.outcomes if one["kind"] == "stepped"]
    return found


async def ended(bench: Bench) -> dict[str, Any]:
    over = ("started", "progressed", "stepped")
    await until(lambda: [one for one in bench.outcomes if one["kind"] not in over])
    (end,) = [one for one in bench.outcomes if one["kind"] not in over]
    return end


@pytest.mark.parametrize("handler", [on_loop, on_thread])
async def test_a_handler_remembers_its_step_and_sleeps(handler: Any) -> None:
    async with bench_of(handler) as bench:
        bench.take(pack_of((handler.__name__, {"day": "monday"})))
        end = await ended(bench)
        assert end["kind"] == "suspended"
        assert end["waits"] == {"kind": "sleep", "name": "nap", "for_ms": 600_000}
        assert [one["kind"] for one in bench.outcomes] == ["started", "stepped", "suspended"]
        found = stepped_of(bench)
        assert (found["name"], found["result"]) == ("load", {"day": "monday"})
        assert bench.settled == ["pack"]
        assert bench.room().free == bench.room().slots


@pytest.mark.parametrize("handler", [on_loop, on_thread])
async def test_what_is_remembered_comes_back_and_runs_nothing(handler: Any) -> None:
    memory = [["load", "step", {"day": "stored"}], ["nap", "sleep", None]]
    async with bench_of(handler) as bench:
        bench.take(pack_of((handler.__name__, {"day": "monday"}), memory=memory))
        end = await ended(bench)
    assert end["result"] == {"found": {"day": "stored"}, "key": "u/j0/load"}
    assert CALLS == []


async def test_a_step_returns_once_its_result_is_durable() -> None:
    passed: list[Any] = []

    async def waits(payload: dict[str, Any], ctx: Context) -> None:
        passed.append(await ctx.step("load", load, "x"))

    async with bench_of(waits, is_held=True) as bench:
        bench.take(pack_of(("waits", {})))
        await until(lambda: "started" in bench.kinds())
        assert not passed
        bench.sink.release()
        await ended(bench)
    assert passed == [{"day": "x"}]



async def test_coroutines_are_steps_and_steps_may_run_side_by_side() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    async def many(payload: dict[str, Any], ctx: Context) -> list[int]:
        calls = [ctx.step(f"double {n}", double, n) for n in range(5)]
        return list(await asyncio.gather(*calls))

    async with bench_of(many) as bench:
        bench.take(pack_of(("many", {})))
        end = await ended(bench)
    assert end["result"] == [0, 2, 4, 6, 8]


async def twice(payload: dict[str, Any], ctx: Context) -> None:
    await ctx.step("same", load, "a")
    await ctx.step("same", load, "b")


def twice_on_thread(payload: dict[str, Any], ctx: Context) -> None:
    ctx.step("same", load, "a")
    ctx.sleep("same", 1)


async def catches_all(payload: dict[str, Any], ctx: Context) -> str:
    try:
        await ctx.sleep("nap", "1h")
    except BaseException:  # noqa: BLE001, S110  # what this is about
        pass
    return "done"


def raises_another(payload: dict[str, Any], ctx: Context) -> None:
    try:
        ctx.sleep("nap", "1h")
    except BaseException:  # noqa: BLE001  # what this is about
        raise RuntimeError("mine") from None


async def side_by_side(payload: dict[str, Any], ctx: Context) -> None:
    await asyncio.gather(ctx.sleep("a", 1), ctx.sleep("b", 1), return_exceptions=True)


async def large(payload: dict[str, Any], ctx: Context) -> None:
    await ctx.step("large", lambda: "x" * STEP_BYTES_MAX)


async def all_too_large(payload: dict[str, Any], ctx: Context) -> None:
    for number in range(70):
        await ctx.step(f"part {number}", lambda: "x" * (STEP_BYTES_MAX - 2))


async def no_json(payload: dict[str, Any], ctx: Context) -> None:
    await ctx.step("odd", object)


async def nested(payload: dict[str, Any], ctx: Context) -> None:
    await ctx.step("outer", lambda: ctx.step("inner", load, "x"))


@pytest.mark.parametrize(
    ("handler", "code", "words"),
    [
        (twice, "NAME_USED_TWICE", "'same' is used twice"),
        (twice_on_thread, "NAME_USED_TWICE", "'same' is used twice"),
        (catches_all, "SUSPENSION_SWALLOWED", "catch Exception, not BaseException"),
        (raises_another, "SUSPENSION_SWALLOWED", "has raised RuntimeError"),
        (side_by_side, "SUSPENDED_SIDE_BY_SIDE", "one after the other"),
        (large, "STEP_TOO_LARGE", "step 'large'"),
        (all_too_large, "STEP_TOO_LARGE", "would remember"),
        (no_json, "RESULT_NOT_JSON", "step 'odd'"),
        (nested, "SUSPENDED_SIDE_BY_SIDE", "inside a step"),
    ],
)
async def test_what_breaks_the_rules_is_a_final_error(
    handler: Any, code: str, words: str
) -> None:
    async with bench_of(handler) as bench:
        bench.take(pack_of((handler.__name__, {})))
        end = await ended(bench)
    assert (end["kind"], end["error"]["code"], end["error"]["retryable"]) == ("failed", code, False)
    assert words in end["error"]["message"]


async def test_a_suspension_passes_through_a_task_group() -> None:
    async def grouped(payload: dict[str, Any], ctx: Context) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.sleep("nap", 5))

    async with bench_of(grouped) as bench:
        bench.take(pack_of(("grouped", {})))
        assert (await ended(bench))["kind"] == "suspended"


async def test_an_error_of_a_step_is_an_error_of_the_attempt_and_may_be_caught() -> None:
    async def tries(payload: dict[str, Any], ctx: Context) -> str:
        try:
            await ctx.step("bad", int, "no number")
        except ValueError:
            return "caught"
        return "no"

    async with bench_of(tries) as bench:
        bench.take(pack_of(("tries", {})))
        assert (await ended(bench))["result"] == "caught"


async def test_children_are_not_asked_for_inside_a_step() -> None:
    async def inside(payload: dict[str, Any], ctx: Context) -> None:
        await ctx.step("ask", lambda: ctx.enqueue("other"))

    async with bench_of(inside) as bench:
        bench.take(pack_of(("inside", {})))
        assert "outside" in (await ended(bench))["error"]["message"]


@pytest.mark.parametrize("given", ["soon", -1, 10**9, None])
async def test_a_wrong_duration_names_its_sleep(given: Any) -> None:
    async def sleeps(payload: dict[str, Any], ctx: Context) -> None:
        await ctx.sleep("nap", given)

    async with bench_of(sleeps) as bench:
        bench.take(pack_of(("sleeps", {})))
        assert "sleep 'nap'" in (await ended(bench))["error"]["message"]
