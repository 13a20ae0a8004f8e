"""`ctx.gather` as handlers see it: what is said of members, and what comes back."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest

from tests.unit.worker_harness import Bench, bench_of, pack_of, until
from tidemill import CompletedJob, Request, job
from tidemill.agents.worker.context import Context
from tidemill.errors import MembersFailed
from tidemill.schemas.requests import (
    GATHER_MEMBERS_MAX,
    REQUEST_BYTES_MAX,
)

KINDS: Final = ("started", "progressed", "stepped", "members")


def asked(count: int, size: int = 0) -> list[Request]:
    payload = {"x": "x" * size} if size else {}
    return [Request(type="one", user_id="u", payload={**payload, "n": n}) for n in range(count)]


async def on_loop(payload: dict[str, Any], ctx: Context) -> Any:
    count, size = payload["count"], payload.get("size", 0)
    ends = await ctx.gather("runs", asked(count, size), parallel=2, tolerate="20%")
    return [[type(end) is CompletedJob, end.job_id, end.status, end.result] for end in ends]


def on_thread(payload: dict[str, Any], ctx: Context) -> Any:
    ends = ctx.gather("runs", asked(payload["count"], payload.get("size", 0)), 2, "20%")
    return [[type(end) is CompletedJob, end.job_id, end.status, end.result] for end in ends]


async def ended(bench: Bench) -> dict[str, Any]:
    await until(lambda: [one for one in bench.outcomes if one["kind"] not in KINDS])
    (end,) = [one for one in bench.outcomes if one["kind"] not in KINDS]
    return end


@pytest.mark.parametrize("handler", [on_loop, on_thread])
async def test_members_are_told_in_order_before_the_attempt_ends(handler: Any) -> None:
    async with bench_of(handler) as bench:
        bench.take(pack_of((handler.__name__, {"count": 900, "size": 1_000})))
        end = await ended(bench)
        parts = [one for one in bench.outcomes if one["kind"] == "members"]
        assert end["kind"] == "suspended"
        assert end["waits"] == {
            "kind": "gather", "name": "runs", "parts": len(parts), "members": 900, "parallel": 2,
            "tolerate": {"share": 0.2},
        }
        assert [one["kind"] for one in bench.outcomes] == [
            "started", *["members"] * len(parts), "suspended"
        ]
        assert [(one["name"], one["part"]) for one in parts] == [
            ("runs", number) for number in range(len(parts))
        ]
        requests = [each for one in parts for each in one["requests"]]
        assert [each["payload"]["n"] for each in requests] == list(range(900))
        assert requests[0] == {
            "type": "one", "user_id": "u", "payload": {"x": "x" * 1_000, "n": 0}
        }
        assert len(parts) == 4
        assert bench.settled == ["pack"]
        assert bench.room().free == bench.room().slots


async def test_the_attempt_ends_once_its_members_are_durable() -> None:
    async with bench_of(on_loop, is_held=True) as bench:
        bench.take(pack_of(("on_loop", {"count": 3})))
        await until(lambda: "started" in bench.kinds())
        assert "suspended" not in bench.kinds()
        bench.sink.release()
        assert (await ended(bench))["kind"] == "suspended"


def end_of(index: int, status: str = "succeeded", **facts: Any) -> list[Any]:
    return [index, {
        "job_id": f"j0.runs.{index}", "user_id": "u", "type": "one", "status": status,
        "finished_at": "2026-11-29T10:00:00.000Z", **facts,
    }]


def memory_of(*parts: list[list[Any]], is_tolerated: bool = True) -> list[list[Any]]:
    ends = [end for part in parts for end in part]
    failed = sum(end[1]["status"] in ("failed", "cancelled", "expired") for end in ends)
    head = {"members": len(ends), "failed": failed, "is_tolerated": is_tolerated}
    return [["runs", "gather", head], *(["runs", "ends", part] for part in parts)]


@pytest.mark.parametrize("handler", [on_loop, on_thread])
async def test_ends_come_back_in_the_order_of_the_requests(handler: Any) -> None:
    memory = memory_of(
        [end_of(2, result=2, requested_at="2026-11-29T09:00:00.000Z", attempts=1, sequence=5),
         end_of(0, result={"a": 1})],
        [end_of(1, "failed", error={"code": "E", "message": "m", "retryable": False})],
    )
    async with bench_of(handler) as bench:
        bench.take(pack_of((handler.__name__, {"count": 999}), memory=memory))
        end = await ended(bench)
    assert end["result"] == [
        [True, "j0.runs.0", "succeeded", {"a": 1}], [True, "j0.runs.1", "failed", None],
        [True, "j0.runs.2", "succeeded", 2],
    ]


async def test_more_failures_than_are_tolerated_are_a_final_error_that_names_them() -> None:
    error = {"code": "BROKEN", "message": "m", "retryable": False}
    memory = memory_of(
        [end_of(number, "failed", error=error) for number in range(11)],
        [end_of(11, "cancelled"), end_of(12, "expired"), end_of(13, "skipped"), end_of(14),
         end_of(15, "cancelled", reason="not_released")],
        is_tolerated=False,
    )
    async with bench_of(on_loop) as bench:
        bench.take(pack_of(("on_loop", {"count": 15}), memory=memory))
        end = await ended(bench)
    assert (end["error"]["code"], end["error"]["retryable"]) == ("MEMBERS_FAILED", False)
    assert end["error"]["message"].startswith("13 of 16 members of gather 'runs' failed")
    assert end["error"]["message"].endswith(
        "j0.runs.9 (BROKEN) and 3 more; 1 were not asked for any more"
    )


async def test_a_handler_may_catch_it_and_look_at_them() -> None:
    async def catches(payload: dict[str, Any], ctx: Context) -> list[Any]:
        try:
            await ctx.gather("runs", asked(2))
        except MembersFailed as error:
            return [[type(one) is CompletedJob, one.job_id, one.status] for one in error.failed]
        return []

    memory = memory_of([end_of(0), end_of(1, "expired")], is_tolerated=False)
    async with bench_of(catches) as bench:
        bench.take(pack_of(("catches", {}), memory=memory))
        assert (await ended(bench))["result"] == [[True, "j0.runs.1", "expired"]]


async def test_an_end_without_its_result_says_so() -> None:
    async def looks(payload: dict[str, Any], ctx: Context) -> list[Any]:
        ends = await ctx.gather("runs", asked(2))
        return [[one.result, one.result_omitted] for one in ends]

    memory = memory_of([end_of(0, result_omitted=True), end_of(1, result=1)])
    async with bench_of(looks) as bench:
        bench.take(pack_of(("looks", {}), memory=memory))
        assert (await ended(bench))["result"] == [[None, True], [1, False]]


async def test_nobody_to_wait_for_is_an_empty_list_at_once() -> None:
    async with bench_of(on_loop) as bench:
        bench.take(pack_of(("on_loop", {"count": 0})))
        assert (await ended(bench))["result"] == []


async def test_requests_of_a_typed_job_and_of_the_parents_own_user() -> None:
    @job("gather.typed")
    async def typed(payload: dict[str, int]) -> int:
        return payload["n"]

    async def asks(payload: dict[str, Any], ctx: Context) -> None:
        own = Request(type="one", user_id=None)  # type: ignore[arg-type]
        await ctx.gather("runs", (each for each in (typed.request({"n": 1}, user_id="v"), own)))

    async with bench_of(asks) as bench:
        bench.take(pack_of(("asks", {})))
        await ended(bench)
        (part,) = [one for one in bench.outcomes if one["kind"] == "members"]
    assert part["requests"] == [
        {"type": "gather.typed", "user_id": "v", "payload": {"n": 1}},
        {"type": "one", "user_id": "u", "payload": {}},
    ]


ODD: Final = Request(type="one", user_id="u", payload={"n": object()})
WRONG: Final = [
    ({"requests": [*asked(2), ODD]}, "requests[2].payload"),
    ({"requests": [Request(type="no type", user_id="u")]}, "requests[0].type"),
    ({"requests": [Request(type="one", user_id="")]}, "requests[0].user_id"),
    ({"requests": [*asked(1), {"type": "one"}]}, "requests[1]: a dict is no tidemill.Request"),
    ({"requests": "runs"}, "requests: a str was given"),
    ({"requests": asked(GATHER_MEMBERS_MAX + 1)}, "requests: 20001 were given"),
    ({"requests": asked(40, 500_000)}, "at most 16777216 are taken"),
    ({"requests": asked(1, REQUEST_BYTES_MAX)}, "requests[0]"),
    ({"parallel": 0}, "parallel: 0"),
    ({"parallel": True}, "parallel: True"),
    ({"parallel": "5"}, "parallel: '5'"),
    ({"tolerate": -1}, "tolerate: -1"),
    ({"tolerate": "20"}, "tolerate: '20'"),
    ({"tolerate": "101%"}, "tolerate: '101%'"),
    ({"tolerate": 0.2}, "tolerate: 0.2"),
]


@pytest.mark.parametrize(("given", "words"), WRONG, ids=[words for _, words in WRONG])
async def test_what_cannot_be_gathered_names_its_field(given: dict[str, Any], words: str) -> None:
    async def asks(payload: dict[str, Any], ctx: Context) -> None:
        with pytest.raises(ValueError, match="gather 'runs': ") as caught:
            await ctx.gather("runs", **{"requests": asked(2), **given})
        raise RuntimeError(str(caught.value))

    async with bench_of(asks) as bench:
        bench.take(pack_of(("asks", {})))
        end = await ended(bench)
    assert words in end["error"]["message"]
    assert "members" not in bench.kinds()


@pytest.mark.parametrize(("tolerate", "said"), [
    (None, {"count": 0}), (7, {"count": 7}), ("20%", {"share": 0.2}), ("12.5 %", {"share": 0.125}),
    ("100%", {"share": 1.0}), ("0%", {"share": 0.0}),
])
async def test_tolerance_is_a_count_or_a_share(tolerate: Any, said: dict[str, Any]) -> None:
    async def asks(payload: dict[str, Any], ctx: Context) -> None:
        await ctx.gather("runs", asked(2), tolerate=tolerate)

    async with bench_of(asks) as bench:
        bench.take(pack_of(("asks", {})))
        end = await ended(bench)
    assert (end["waits"]["tolerate"], end["waits"]["parallel"]) == (said, None)


async def twice(payload: dict[str, Any], ctx: Context) -> None:
    await ctx.step("runs", len, "a")
    await ctx.gather("runs", asked(1))


async def swallows(payload: dict[str, Any], ctx: Context) -> str:
    try:
        await ctx.gather("runs", asked(1))
    except BaseException:  # noqa: BLE001  # what this is about
        return "done"
    return "no"


async def side_by_side(payload: dict[str, Any], ctx: Context) -> None:
    await asyncio.gather(ctx.gather("a", asked(1)), ctx.gather("b", asked(1)))


async def in_step(payload: dict[str, Any], ctx: Context) -> None:
    await ctx.step("outer", lambda: ctx.gather("runs", asked(1)))


async def of_a_step(payload: dict[str, Any], ctx: Context) -> None:
    await ctx.gather("known", asked(1))


@pytest.mark.parametrize(("handler", "code"), [
    (twice, "NAME_USED_TWICE"), (swallows, "SUSPENSION_SWALLOWED"),
    (side_by_side, "SUSPENDED_SIDE_BY_SIDE"), (in_step, "SUSPENDED_SIDE_BY_SIDE"),
    (of_a_step, "NAME_USED_TWICE"),
])
async def test_what_breaks_the_rules_is_a_final_error(handler: Any, code: str) -> None:
    async with bench_of(handler) as bench:
        bench.take(pack_of((handler.__name__, {}), memory=[["known", "step", 1]]))
        end = await ended(bench)
    assert (end["kind"], end["error"]["code"], end["error"]["retryable"]) == ("failed", code, False)


async def test_the_loop_turns_while_many_requests_are_checked_and_many_ends_are_read() -> None:
    turns: list[int] = []

    async def ticks() -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    async def asks(payload: dict[str, Any], ctx: Context) -> None:
        await ctx.gather("runs", asked(4_000))

    ticking = asyncio.create_task(ticks())
    async with bench_of(asks) as bench:
        bench.take(pack_of(("asks", {})))
        await ended(bench)
        assert len(turns) >= 19
        turns.clear()
        memory = memory_of([end_of(number) for number in range(4_000)])
        bench.take(pack_of(("asks", {}), memory=memory), "second")
        await until(lambda: "second" in bench.settled)
        assert len(turns) >= 19
    ticking.cancel()
