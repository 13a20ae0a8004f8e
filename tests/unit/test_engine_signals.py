"""Signals in `tidemill.testing.Engine`: early, in time, late, and through each door of a test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from tidemill import Client, Context, InvalidRequest, SignalTimeout, job
from tidemill.testing import Engine


class Word(BaseModel):
    text: str


@job("signals.wait")
async def waits(payload: dict[str, Any], ctx: Context) -> str:
    try:
        found: Word = await ctx.wait("word", Word, timeout="1h")
    except SignalTimeout:
        return "late"
    return found.text


@job("signals.in_thread")
def in_thread(payload: dict[str, Any], ctx: Context) -> list[Any]:
    return [ctx.wait("first"), ctx.wait("second", int)]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as made:
        yield made


def test_a_signal_in_time(engine: Engine) -> None:
    found = engine.enqueue("signals.wait")
    engine.run()
    assert (found.status, found.reason) == ("awaiting", "signal_awaited")
    engine.restart_ledger()
    engine.restart_worker()
    engine.signal(found, "word", Word(text="go"), actor="ada")
    engine.signal(found, "word", {"text": "too late"})
    engine.run()
    assert (found.status, found.result, found.attempts) == ("succeeded", "go", 1)
    assert "command_refused" in found.events


def test_an_early_signal(engine: Engine) -> None:
    engine.signal(("test-user", "j"), "word", {"text": "early"})
    engine.run()
    engine.restart_ledger()
    found = engine.enqueue("signals.wait", job_id="j")
    engine.run()
    assert found.result == "early"
    assert found.events[0] == "signal_kept"


def test_no_signal_and_one_that_is_too_late(engine: Engine) -> None:
    found = engine.enqueue("signals.wait")
    engine.advance("59min")
    assert found.status == "awaiting"
    engine.advance("61s")
    assert found.result == "late"
    engine.signal(found, "word", {"text": "x"})
    engine.run()
    assert found.story[-1].reason == "already_ended"


def test_a_kept_signal_is_given_up_after_a_day(engine: Engine) -> None:
    engine.signal(("u", "j"), "word", {"text": "x"})
    engine.advance("25h")
    assert engine.job(("u", "j")).events == ["signal_kept", "command_refused"]


def test_two_waits_in_a_thread_and_any_order_of_signals(engine: Engine) -> None:
    found = engine.enqueue("signals.in_thread")
    engine.signal(found, "second", 2)
    engine.advance("3d")
    assert found.status == "awaiting"
    engine.signal(found, "first", {"a": 1})
    engine.run()
    # The one that came early was kept for a day only.
    assert found.status == "awaiting"
    engine.signal(found, "second", 3)
    engine.run()
    assert found.result == [{"a": 1}, 3]


def test_a_value_that_does_not_fit(engine: Engine) -> None:
    found = engine.enqueue("signals.wait")
    engine.signal(found, "word", {"txt": "x"})
    engine.run()
    assert found.status == "failed"
    assert found.error is not None
    assert (found.error.code, "value.text" in found.error.message) == ("INVALID_SIGNAL", True)


async def test_the_client_and_its_handles(engine: Engine) -> None:
    client: Client = engine.client
    handle = client.enqueue("signals.wait", user_id="u", job_id="j")
    client.signal(user_id="u", job_id="j", name="word", value={"text": "client"}, actor="ada")
    assert (await handle.result(timeout=5)).result == "client"
    typed = await waits.enqueue({}, user_id="u", job_id="k")
    await typed.signal("word", Word(text="handle"))
    assert (await typed.result(timeout=5)).result == "handle"
    other = waits.enqueue_sync({}, user_id="u", job_id="l")
    other.signal_sync("word", {"text": "sync"})
    assert other.result_sync(timeout=5).result == "sync"
    with pytest.raises(InvalidRequest, match="'name'"):
        client.signal("u", "j", "a\nb")
