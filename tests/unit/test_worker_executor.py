"""Attempts on the loop and in threads: ends, time-outs, cancels, hand-backs, stop."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from tests.unit.worker_harness import Bench, bench_of, pack_of, until
from tidemill.agents.worker import async_lane, early_cancels
from tidemill.agents.worker import executor as executor_module
from tidemill.agents.worker.context import Context
from tidemill.agents.worker.errors import NonRetryable, Skip
from tidemill.schemas.wire import OutcomePack
from tidemill.schemas.words import Reason

LONG_SECONDS = 300.0  # longer than any test
word: contextvars.ContextVar[str] = contextvars.ContextVar("word", default="clean")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short periods, so that the tier stays short; their proportions are kept."""
    for name, seconds in {
        "SWEEP_SECONDS": 0.01, "LATE_START_SECONDS": 0.05, "PROGRESS_SECONDS": 0.05,
        "GIVE_UP_SECONDS": 0.1, "TERM_GRACE_SECONDS": 0.1,
        "STOP_FORCE_SECONDS": 0.1,
        # On a busy machine a test would lose what waits there for its slot: see `hands_back`.
        "HANDBACK_SECONDS": LONG_SECONDS, "COMING_SECONDS": LONG_SECONDS,
    }.items():
        monkeypatch.setattr(executor_module, name, seconds)


@pytest.fixture
def hands_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is given back soon."""
    monkeypatch.setattr(executor_module, "HANDBACK_SECONDS", 0.15)


async def test_a_job_that_never_waits_ends_in_the_same_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A busy machine must not end the turn between the two jobs.
    monkeypatch.setattr(async_lane, "TURN_SECONDS", 60.0)

    async def echo(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
        return {**payload, "attempt": ctx.attempt}

    async with bench_of(echo) as bench:
        bench.take(pack_of(("echo", {"n": 1}), ("echo", {"n": 2})))
        assert (await bench.last("j0"))["result"] == {"n": 1, "attempt": 1}
        assert (await bench.last("j1"))["result"] == {"n": 2, "attempt": 1}
        await bench.writer.drain()
        assert bench.settled == ["pack"]
        assert bench.executor.running == 0
        # Both travelled in one record, to the partition that the pack named, in the fixed shape.
        [(partition, value)] = bench.sink.records
        assert partition == 3
        pack = OutcomePack.model_validate_json(value)
        assert (pack.worker_id, pack.incarnation) == ("w", 7)
        assert pack.outcomes[0].epoch == 5


async def test_jobs_that_wait_run_side_by_side_within_the_slots() -> None:
    gate = asyncio.Event()
    running: list[int] = []

    async def wait(payload: dict[str, int]) -> None:
        running.append(payload["n"])
        await gate.wait()

    async with bench_of(wait, concurrency=3) as bench:
        bench.take(pack_of(*(("wait", {"n": n}) for n in range(5))))
        await until(lambda: len(running) == 3)
        assert bench.room().free == 0
        gate.set()
        await until(lambda: len(bench.outcomes) == 5)
        assert running == [0, 1, 2, 3, 4]
        assert bench.room().free == 3


async def test_context_variables_do_not_leak_between_jobs() -> None:
    async def leak(payload: dict[str, Any]) -> str:
        before = word.get()
        word.set("dirty")
        if payload:
            await asyncio.sleep(0)
            assert word.get() == "dirty"
        return before

    async with bench_of(leak, concurrency=1) as bench:
        bench.take(pack_of(("leak", {}), ("leak", {"wait": 1}), ("leak", {"wait": 1})))
        for job_id in ("j0", "j1", "j2"):
            assert (await bench.last(job_id))["result"] == "clean"


async def test_asyncio_timeout_and_task_group_work_in_a_handler() -> None:
    async def inner(payload: dict[str, Any]) -> str:
        async def add(found: list[int], number: int) -> None:
            found.append(number)

        found: list[int] = []
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(add(found, number))
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return f"{found} timed out"
        return "never"

    async with bench_of(inner, concurrency=1) as bench:
        bench.take(pack_of(("inner", {}), ("inner", {})))
        for job_id in ("j0", "j1"):
            assert (await bench.last(job_id))["result"] == "[0, 1, 2] timed out"


async def test_a_cancel_that_a_handler_leaves_behind_hurts_no_other_job() -> None:
    async def odd(payload: dict[str, Any]) -> None:
        task = asyncio.current_task()
        assert task is not None
        if payload:
            await asyncio.sleep(0)
        task.cancel()

    async def plain(payload: dict[str, Any]) -> str:
        return "fine"

    async with bench_of(odd, plain, concurrency=1) as bench:
        bench.take(pack_of(("odd", {"wait": 1}), ("plain", {}), ("odd", {})))
        await until(lambda: len(bench.outcomes) == 3)
        bench.take(pack_of(("plain", {})), "second")
        await until(lambda: bench.settled == ["pack", "second"])
        assert (await bench.last("j1"))["result"] == "fine"


async def test_time_out_on_the_loop_cancels_and_frees_the_slot() -> None:
    cleaned: list[str] = []

    async def hang(payload: dict[str, Any]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("yes")

    async with bench_of(hang, concurrency=1) as bench:
        bench.take(pack_of(("hang", {}), timeout_ms=80))
        end = await bench.last()
        assert (end["error"]["code"], end["error"]["retryable"]) == ("TIMEOUT", True)
        assert cleaned == ["yes"]
        assert bench.kinds() == ["started", "failed"]
        assert bench.room().free == 1


async def test_a_swallowed_cancel_is_given_up_on_and_its_slot_counted() -> None:
    gate = asyncio.Event()

    async def stubborn(payload: dict[str, Any]) -> None:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue

    async with bench_of(stubborn, concurrency=2) as bench:
        bench.take(pack_of(("stubborn", {}), timeout_ms=20))
        end = await bench.last()
        assert end["error"]["code"] == "TIMEOUT"
        assert "still holds its slot" in end["error"]["message"]
        assert bench.executor.stuck == 1
        assert bench.room().slots == 1
        assert bench.executor.should_recycle
        gate.set()
        await until(lambda: bench.executor.stuck == 0)
        assert bench.kinds() == ["started", "failed"]


async def test_a_thread_that_hangs_fails_at_once_and_keeps_its_slot() -> None:
    gate = threading.Event()

    def hang(payload: dict[str, Any]) -> None:
        gate.wait(30)

    def quick_one(payload: dict[str, Any]) -> str:
        return threading.current_thread().name

    async with bench_of(hang, quick_one, threads=2) as bench:
        bench.take(pack_of(("hang", {}), ("quick_one", {}), timeout_ms=60))
        assert (await bench.last("j0"))["error"]["code"] == "TIMEOUT"
        assert "tidemill-job" in (await bench.last("j1"))["result"]
        assert (bench.executor.stuck, bench.room().slots) == (1, 1)
        gate.set()
        await until(lambda: bench.executor.stuck == 0)


async def test_started_is_told_once_and_settles_the_record_early() -> None:
    gate = asyncio.Event()

    async def wait(payload: dict[str, Any], ctx: Context) -> None:
        for percent in (10, 20, 20):
            ctx.progress(percent, stage="work")
        await gate.wait()

    async with bench_of(wait) as bench:
        bench.take(pack_of(("wait", {})))
        await until(lambda: bench.kinds() == ["started", "progressed"])
        # The job still runs, and its record may be committed already.
        await until(lambda: bench.settled == ["pack"])
        assert bench.outcomes[1]["progress"] == {"percent": 20.0, "stage": "work"}
        gate.set()
        await bench.last()
        await bench.writer.drain()
        assert bench.settled == ["pack"]
        assert bench.kinds() == ["started", "progressed", "succeeded"]


async def test_nothing_is_settled_before_it_is_durable() -> None:
    async def noop(payload: dict[str, Any]) -> None:
        pass

    async with bench_of(noop, is_held=True) as bench:
        bench.take(pack_of(("noop", {})))
        await until(lambda: bench.sink.records)
        assert bench.settled == []
        bench.sink.release()
        assert bench.settled == ["pack"]


@pytest.mark.usefixtures("hands_back")
async def test_what_cannot_start_within_a_second_is_given_back() -> None:
    gate = asyncio.Event()

    async def wait(payload: dict[str, Any]) -> None:
        await gate.wait()

    async with bench_of(wait, concurrency=1) as bench:
        bench.take(pack_of(("wait", {}), ("wait", {}), ("unknown", {})))
        for job_id, reason in (("j1", "no_free_slot"), ("j2", "type_not_run")):
            end = await bench.last(job_id)
            assert (end["kind"], end["reason"]) == ("returned", reason)
            assert "started_at" not in end
        assert bench.executor.room("default") == 64
        gate.set()
        assert (await bench.last("j0"))["kind"] == "succeeded"


async def test_who_was_sent_before_goes_first() -> None:
    gate = asyncio.Event()
    began: list[str] = []

    async def wait(payload: dict[str, str]) -> None:
        began.append(payload["is"])
        await gate.wait()

    async with bench_of(wait, concurrency=1) as bench:
        bench.take(pack_of(("wait", {"is": "running"}), epoch=1, user_id="a"))
        await until(lambda: began)
        bench.take(pack_of(("wait", {"is": "new 1"}), ("wait", {"is": "new 2"}), epoch=1))
        bench.take(pack_of(("wait", {"is": "rescued 1"}), epoch=2, user_id="b"))
        bench.take(pack_of(("wait", {"is": "rescued 2"}), epoch=3, user_id="c"))
        gate.set()
        await until(lambda: len(bench.outcomes) == 5)
        assert began == ["running", "rescued 1", "rescued 2", "new 1", "new 2"]


@pytest.mark.usefixtures("hands_back")
async def test_who_waits_behind_a_later_arrival_is_given_back_in_time() -> None:
    gate = asyncio.Event()

    async def wait(payload: dict[str, Any]) -> None:
        await gate.wait()

    async with bench_of(wait, concurrency=1) as bench:
        bench.take(pack_of(("wait", {}), epoch=1, user_id="a"))
        bench.take(pack_of(("wait", {}), epoch=1, user_id="old"))
        sent = 0

        def keeps_coming() -> bool:
            # There is always one in front that arrived a moment ago.
            nonlocal sent
            sent += 1
            bench.take(pack_of(("wait", {}), epoch=2, user_id=f"again-{sent}"))
            return any(outcome["user_id"] == "old" for outcome in bench.outcomes)

        await until(keeps_coming)
        gate.set()


async def test_cancel_of_a_waiting_an_early_and_a_running_job() -> None:
    gate = asyncio.Event()

    async def wait(payload: dict[str, Any]) -> None:
        await gate.wait()

    async def look(payload: dict[str, Any], ctx: Context) -> str:
        while not ctx.cancelled:  # noqa: ASYNC110  # what a polling handler does
            await asyncio.sleep(0.01)
        return "stopped early"

    async def finish(payload: dict[str, Any], ctx: Context) -> str:
        await gate.wait()
        return "kept"

    async with bench_of(wait, look, finish, concurrency=3) as bench:
        bench.executor.cancel("u", "j4", 1, 5)
        bench.take(
            pack_of(("wait", {}), ("look", {}), ("finish", {}), ("wait", {}), ("wait", {}))
        )
        await until(lambda: bench.executor.running == 3)
        for number in range(4):
            bench.executor.cancel("u", f"j{number}", 1, 5)
        gate.set()
        for job_id in ("j0", "j1", "j3", "j4"):
            end = await bench.last(job_id)
            assert (end["error"]["code"], end["error"]["retryable"]) == ("CANCELLED", False)
        # It never looked and was done within the grace: its work is not thrown away.
        assert (await bench.last("j2"))["result"] == "kept"


async def test_cancel_of_another_epoch_changes_nothing() -> None:
    gate = asyncio.Event()

    async def wait(payload: dict[str, Any]) -> None:
        await gate.wait()

    async with bench_of(wait) as bench:
        bench.take(pack_of(("wait", {})))
        await until(lambda: bench.executor.running == 1)
        bench.executor.cancel("u", "j0", 1, 4)
        gate.set()
        assert (await bench.last())["kind"] == "succeeded"


async def test_stop_finishes_what_it_can_and_gives_back_the_rest() -> None:
    gate = asyncio.Event()
    in_thread = threading.Event()

    async def short(payload: dict[str, Any]) -> str:
        await gate.wait()
        return "done"

    async def long(payload: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    def blocking(payload: dict[str, Any]) -> None:
        in_thread.wait(30)

    async with bench_of(short, long, blocking, concurrency=2) as bench:
        bench.take(pack_of(("short", {}), ("long", {}), ("blocking", {}), ("long", {})))
        await until(lambda: bench.executor.running == 3)
        stopping = asyncio.create_task(bench.executor.stop(2))
        await until(lambda: bench.executor.is_stopping)
        # What is on the way is fetched, to be given back at once and not at the end of the stop.
        assert bench.room().free == 0
        assert bench.executor.room("default") > 0
        bench.take(pack_of(("short", {})), "too late")
        assert bench.executor.room("default") > 0
        await until(lambda: "too late" in bench.settled)
        assert not stopping.done()
        gate.set()
        await stopping
        await bench.writer.drain()
        in_thread.set()
        assert sorted(bench.settled) == ["pack", "too late"]
        by_id = {(o["job_id"], o["kind"]): o for o in bench.outcomes}
        assert by_id["j0", "succeeded"]["result"] == "done"
        # What ran is told apart from what never began.
        reasons = [by_id[job_id, "returned"]["reason"] for job_id in ("j1", "j2", "j3")]
        assert reasons == ["interrupted", "interrupted", "worker_stopping"]
        assert bench.executor.room("default") == 0


async def test_a_rebalance_drops_the_untouched_and_settles_the_rest() -> None:
    gate = asyncio.Event()

    async def wait(payload: dict[str, Any]) -> None:
        await gate.wait()

    async with bench_of(wait, concurrency=1) as bench:
        touched = bench.take(pack_of(("wait", {}), ("wait", {})), "touched")
        untouched = bench.take(pack_of(("wait", {}), ("wait", {})), "untouched")
        await until(lambda: bench.executor.running == 1)
        assert touched is not None
        assert untouched is not None
        assert bench.executor.untouched([touched, untouched]) == {untouched}
        bench.executor.drop([touched, untouched], forget={untouched})
        await bench.writer.drain()
        # The one that ran said so, the one behind it was given back: the record can be committed.
        assert bench.settled == ["touched"]
        assert sorted(outcome["kind"] for outcome in bench.outcomes) == ["returned", "started"]
        # The record comes again: nothing runs twice, the new delivery is acked at once.
        touched.rebind(lambda: bench.settled.append("touched again"))
        assert bench.settled == ["touched", "touched again"]
        gate.set()
        await until(lambda: "succeeded" in bench.kinds())
        assert len(bench.outcomes) == 3


@pytest.mark.parametrize(
    "value", [None, b"", b"{", b"[]", b"{}", b'{"schema_version": 99}'], ids=repr
)
async def test_a_record_that_is_no_pack_is_left_out_and_settled(value: bytes | None) -> None:
    async def noop(payload: dict[str, Any]) -> None:
        pass

    async with bench_of(noop) as bench:
        assert bench.take(value) is None
        assert bench.settled == ["pack"]


async def test_room_is_free_slots_and_one_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_lane, "TURN_SECONDS", 60.0)
    gate = asyncio.Event()
    asked: list[int] = []

    async def wait(payload: dict[str, Any]) -> None:
        await gate.wait()

    async with bench_of(wait, concurrency=4) as bench:
        bench.executor._on_room = lambda: asked.append(bench.executor.room("default"))
        assert bench.executor.room("default") == 68
        bench.take(pack_of(*[("wait", {})] * 68))
        await until(lambda: bench.executor.running == 4)
        assert bench.executor.room("default") == 0
        assert bench.room().free == 0
        gate.set()
        await until(lambda: bench.executor.ended_total == 68)
        # Asked for more when half a pack was left, and again when nothing was; three ran then.
        assert asked == [33, 65]


async def test_an_old_word_to_cancel_is_not_for_a_later_job_of_its_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def quick(payload: dict[str, Any]) -> str:
        return "ran"

    async with bench_of(quick) as bench:
        bench.executor.cancel("u", "j0", 1, 5)
        bench.take(pack_of(("quick", {})))
        assert (await bench.last("j0"))["error"]["code"] == "CANCELLED"
        # A word is used once, and only for so long.
        bench.take(pack_of(("quick", {}), ("quick", {})))
        monkeypatch.setattr(early_cancels, "CANCEL_WORD_SECONDS", 0.0)
        bench.executor.cancel("u", "j7", 1, 5)
        bench.take(pack_of(*[("quick", {})] * 8))
        await until(lambda: len(bench.outcomes) == 11)
        assert bench.kinds("j7") == ["succeeded"]
        assert bench.kinds("j0") == ["failed", "succeeded", "succeeded"]


async def test_a_handler_that_cancels_its_task_and_ends_harms_no_other() -> None:
    async def rude(payload: dict[str, Any]) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "left"

    async def polite(payload: dict[str, Any]) -> str:
        await asyncio.sleep(0)
        return "slept"

    async with bench_of(rude, polite, concurrency=1) as bench:
        bench.take(pack_of(("rude", {}), ("polite", {}), ("rude", {}), ("polite", {})))
        for job_id, result in (("j0", "left"), ("j1", "slept"), ("j2", "left"), ("j3", "slept")):
            assert (await bench.last(job_id)).get("result") == result


async def test_what_a_rebalance_drops_waits_no_longer() -> None:
    gate = asyncio.Event()

    async def wait(payload: dict[str, Any]) -> None:
        await gate.wait()

    async with bench_of(wait, concurrency=1) as bench:
        bench.take(pack_of(("wait", {})))
        await until(lambda: bench.executor.running == 1)
        room = bench.executor.room("default")
        for _ in range(3):
            again = bench.take(pack_of(*[("wait", {})] * 40))
            assert again is not None
            bench.executor.drop([again], forget=bench.executor.untouched([again]))
        assert bench.executor.room("default") == room
        gate.set()


class Fussy(BaseModel):
    """A model whose validator fails in its own way."""

    size: str

    @field_validator("size")
    @classmethod
    def _look_up(cls, value: str) -> str:
        return {"small": "S"}[value]


async def test_a_validator_that_raises_anything_is_a_failed_attempt() -> None:
    async def on_the_loop(payload: Fussy) -> str:
        return payload.size

    def in_a_thread(payload: Fussy) -> str:
        return payload.size

    wrong, right = {"size": "huge"}, {"size": "small"}
    async with bench_of(on_the_loop, in_a_thread, concurrency=1) as bench:
        bench.take(
            pack_of(
                ("on_the_loop", wrong), ("in_a_thread", wrong),
                ("on_the_loop", right), ("in_a_thread", right),
            )
        )
        for job_id in ("j0", "j1"):
            assert (await bench.last(job_id))["error"]["code"] == "HANDLER_ERROR"
        # The slots are as good as before.
        for job_id in ("j2", "j3"):
            assert (await bench.last(job_id))["result"] == "S"
        await bench.writer.drain()
        assert bench.settled == ["pack"]


class Declined(NonRetryable):
    """A class of a user's that leaves out what its base does."""

    def __init__(self, order: int) -> None:
        self.order = order


class OddCode(NonRetryable):
    """A code that is no text."""

    def __init__(self) -> None:
        super().__init__(code="X")
        self.code = 402  # type: ignore[assignment]  # what is tried here


@pytest.mark.parametrize("raised", [Declined(1), OddCode()], ids=repr)
async def test_a_steering_word_of_a_users_own_ends_its_attempt_alone(
    raised: NonRetryable,
) -> None:
    async def decline(payload: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        raise raised

    async def fine(payload: dict[str, Any]) -> str:
        await asyncio.sleep(0)
        return "fine"

    async with bench_of(decline, fine, concurrency=2) as bench:
        bench.take(pack_of(("decline", {})))
        assert (await bench.last("j0"))["error"]["retryable"] is False
        # The lane is awake for the next ones, however often it has slept.
        for number in range(1, 4):
            bench.take(pack_of(("fine", {}), ("fine", {}), ("fine", {})))
            await until(partial(_has_ends, bench, 1 + 3 * number))


def _has_ends(bench: Bench, count: int) -> bool:
    return len(bench.outcomes) == count


async def test_half_a_pair_of_a_file_name_travels_as_a_question_mark() -> None:
    name = "caf\udce9"

    async def leave_out(payload: dict[str, Any]) -> None:
        raise Skip(reason=f"no {name}")

    gate = asyncio.Event()

    async def tell(payload: dict[str, Any], ctx: Context) -> str:
        ctx.progress(5, stage=name, message=name)
        await gate.wait()
        return "told"

    async with bench_of(leave_out, tell, concurrency=2) as bench:
        bench.take(pack_of(("leave_out", {}), ("tell", {})))
        assert (await bench.last("j0"))["reason"] == "no caf?"
        await until(lambda: "progressed" in bench.kinds("j1"))
        gate.set()
        assert (await bench.last("j1"))["result"] == "told"


async def test_a_settled_pack_lets_go_of_its_record() -> None:
    async def noop(payload: dict[str, Any]) -> None:
        pass

    class Chunk:
        def ack(self) -> None:
            pass

    chunk = Chunk()
    left = weakref.ref(chunk)
    async with bench_of(noop) as bench:
        pack = bench.executor.take(pack_of(("noop", {})), chunk.ack)
        await bench.last()
        await bench.writer.drain()
        del chunk
        await until(lambda: left() is None)
        assert pack is not None


@pytest.mark.parametrize(
    "wrong", [{"type": []}, {"epoch": "x"}, {"timeout_ms": "soon"}], ids=repr
)
async def test_a_pack_with_a_field_of_another_kind_is_left_out(wrong: dict[str, Any]) -> None:
    async def noop(payload: dict[str, Any]) -> None:
        pass

    async with bench_of(noop) as bench:
        assert bench.take(pack_of(("noop", {}), **wrong), "rubbish") is None
        assert bench.settled == ["rubbish"]


SLOW_START = """
import time
from tidemill import job

time.sleep(1)

@job("in_child", process=True)
def in_child(payload):
    return payload["n"]
"""


def in_child(payload: dict[str, int]) -> int:
    return payload["n"]


@pytest.mark.usefixtures("hands_back")
async def test_a_job_is_not_handed_back_while_the_child_for_it_starts(tmp_path: Path) -> None:
    module = tmp_path / "slow_start.py"
    module.write_text(SLOW_START)
    async with bench_of(in_child, process=True, modules=[str(module)]) as bench:
        bench.take(pack_of(*(("in_child", {"n": n}) for n in range(3))))
        # One child starts: one job waits for it, the others may find a slot elsewhere.
        for other in ("j1", "j2"):
            assert (await bench.last(other))["reason"] == Reason.NO_FREE_SLOT
        assert (await bench.last("j0"))["result"] == 0


def throw_at(thread: int | None) -> None:
    """As tools do that end a thread from outside, when they come too late."""
    assert thread is not None
    thrown = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(SystemExit)
    )
    assert thrown == 1


async def test_a_thread_lives_on_when_something_is_thrown_at_it() -> None:
    seen: list[int] = []

    def stays(payload: dict[str, Any]) -> str:
        seen.append(threading.get_ident())
        return "here"

    async with bench_of(stays, threads=1) as bench:
        for number in range(4):
            bench.take(pack_of(("stays", {}), user_id=f"u{number}"))
            await until(partial(_has_ends, bench, number + 1))
            assert bench.outcomes[-1]["result"] == "here"
            throw_at(seen[-1])
        assert len(set(seen)) == 1
