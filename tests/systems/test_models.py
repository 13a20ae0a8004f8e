"""The client of language models against a server with stated behaviours: each fault, its error."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict

from systems.models import (
    Call,
    Message,
    Model,
    ModelOutputInvalid,
    ModelRateLimited,
    ModelRefused,
    ModelTimeout,
    ModelUnavailable,
    Price,
    Provider,
    complete_with_fallback,
    provider,
)
from systems.models.client import retry_after_seconds
from tests.systems.protocol_server import Answer, ProtocolServer, protocol_server
from tidemill import NonRetryable, Retry

ASKED: list[Message] = [{"role": "user", "content": "Is it good?"}]
NOW = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)


class Mood(BaseModel):
    model_config = ConfigDict(extra="forbid")
    mood: Literal["good", "bad"]
    score: int


@pytest.fixture
def server() -> Iterator[ProtocolServer]:
    with protocol_server() as told:
        yield told


@pytest.fixture
def calls() -> list[Call]:
    return []


@pytest.fixture
async def model(server: ProtocolServer, calls: list[Call]) -> AsyncIterator[Model]:
    async with at(server, "m", calls) as made:
        yield made


def at(server: ProtocolServer, name: str, calls: list[Call], *, deadline: float = 10.0) -> Model:
    return Model(
        Provider("test", lambda: server.url, api_key="k-1"), name, price=Price(2.0, 10.0),
        on_call=calls.append, deadline_seconds=deadline,
    )


async def test_an_answer_has_its_tokens_and_its_cost(
    server: ProtocolServer, model: Model, calls: list[Call]
) -> None:
    server.says("m", Answer("Yes."))
    answer = await model.complete(ASKED, max_tokens=20, stop=["\n"])
    assert (answer.value, answer.model) == ("Yes.", "m")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (10, 5)
    assert answer.cost_usd == pytest.approx(10 * 2e-6 + 5 * 10e-6)
    assert server.keys == ["Bearer k-1"]
    assert server.bodies == [
        {"model": "m", "messages": ASKED, "temperature": 0, "max_tokens": 20, "stop": ["\n"]}
    ]
    (call,) = calls
    assert (call.provider, call.model, call.outcome) == ("test", "m", "ok")
    assert (call.input_tokens, call.output_tokens, call.cost_usd) == (10, 5, answer.cost_usd)


async def test_a_cost_that_the_provider_states_rules(server: ProtocolServer, model: Model) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "cost": 0.25}
    server.says("m", Answer("Yes.", usage=usage))
    assert (await model.complete(ASKED)).cost_usd == 0.25


async def test_a_cost_that_nobody_knows_is_none(server: ProtocolServer) -> None:
    server.says("m", Answer("Yes."))
    async with Model(Provider("test", lambda: server.url), "m") as model:
        assert (await model.complete(ASKED)).cost_usd is None
    assert server.keys == [None]


async def test_output_is_asked_for_and_read_by_a_schema(
    server: ProtocolServer, model: Model
) -> None:
    server.says("m", Answer('{"mood": "good", "score": 3}'))
    assert (await model.complete(ASKED, Mood)).value == Mood(mood="good", score=3)
    asked = server.bodies[0]["response_format"]
    assert asked["type"] == "json_schema"
    assert asked["json_schema"]["strict"] is True
    assert asked["json_schema"]["schema"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"mood": "fine", "score": 3}', "mood"),
        ('{"mood": "good", "score": "3"}', "score"),
        ('{"mood": "good"}', "score"),
        ('{"mood": "good", "score": 3, "x": 1}', "x"),
        ('{"mood": "good", "sco', "the whole"),
        ("Sure! It is good.", "the whole"),
    ],
)
async def test_output_that_breaks_the_schema_is_said(
    server: ProtocolServer, model: Model, calls: list[Call], text: str, told: str
) -> None:
    server.says("m", Answer(text))
    with pytest.raises(ModelOutputInvalid, match=f"does not fit Mood: {told}: ") as caught:
        await model.complete(ASKED, Mood)
    assert caught.value.text == text
    assert isinstance(caught.value, Retry)
    # The tokens were spent all the same.
    assert [(call.outcome, call.output_tokens) for call in calls] == [("MODEL_OUTPUT_INVALID", 5)]


async def test_the_fallback_answers_when_the_output_breaks_the_schema(
    server: ProtocolServer, model: Model, calls: list[Call]
) -> None:
    server.says("m", Answer("no JSON"))
    server.says("f", Answer('{"mood": "bad", "score": 1}'))
    async with at(server, "f", calls) as fallback:
        answer = await complete_with_fallback(model, fallback, ASKED, Mood)
        assert (answer.model, answer.value.mood) == ("f", "bad")
        server.says("f", Answer("none here either"))
        with pytest.raises(ModelOutputInvalid):
            await complete_with_fallback(model, fallback, ASKED, Mood)
        with pytest.raises(ModelOutputInvalid):
            await complete_with_fallback(model, None, ASKED, Mood)
    assert [call.model for call in calls] == ["m", "f", "m", "f", "m"]


async def test_the_fallback_is_not_asked_when_the_model_is_busy(
    server: ProtocolServer, model: Model, calls: list[Call]
) -> None:
    server.says("m", Answer(status=429, headers={"Retry-After": "7"}))
    server.says("f", Answer('{"mood": "bad", "score": 1}'))
    async with at(server, "f", calls) as fallback:
        with pytest.raises(ModelRateLimited) as caught:
            await complete_with_fallback(model, fallback, ASKED, Mood)
    assert (caught.value.after_seconds, caught.value.code) == (7.0, "MODEL_RATE_LIMITED")
    assert isinstance(caught.value, Retry)
    assert server.asked == {"m": 1}


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0), ("0", 0.0), ("Sat, 28 Nov 2026 12:00:30 GMT", 30.0),
        ("Sat, 28 Nov 2026 11:00:00 GMT", 0.0), ("soon", None), ("-3", None), ("", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, NOW) == seconds


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (408, ModelUnavailable, "MODEL_UNAVAILABLE"), (500, ModelUnavailable, "MODEL_UNAVAILABLE"),
        (503, ModelUnavailable, "MODEL_UNAVAILABLE"), (400, ModelRefused, "MODEL_REFUSED"),
        (401, ModelRefused, "MODEL_REFUSED"), (404, ModelRefused, "MODEL_REFUSED"),
    ],
)
async def test_each_status_is_an_error_that_steers_the_job(
    server: ProtocolServer, model: Model, calls: list[Call], status: int, error: type[Exception],
    code: str,
) -> None:
    server.says("m", Answer("out of order", status=status))
    with pytest.raises(error, match=f"m: HTTP {status}: out of order"):
        await model.complete(ASKED)
    assert [call.outcome for call in calls] == [code]
    assert issubclass(error, NonRetryable if code == "MODEL_REFUSED" else Retry)


NO_ANSWERS = (b"<html>busy</html>", b"[]", b'{"choices": []}', b'{"choices": 3}', b"")


@pytest.mark.parametrize("raw", NO_ANSWERS)
async def test_an_answer_that_is_none_is_said(
    server: ProtocolServer, model: Model, raw: bytes
) -> None:
    server.says("m", Answer(raw=raw))
    with pytest.raises(ModelUnavailable):
        await model.complete(ASKED)


async def test_an_answer_cut_in_its_body_is_said(server: ProtocolServer, model: Model) -> None:
    server.says("m", Answer("a long text", is_cut=True))
    with pytest.raises(ModelUnavailable):
        await model.complete(ASKED)


async def test_nobody_at_the_address(calls: list[Call]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    nobody = Provider("test", lambda: f"http://127.0.0.1:{port}/v1")
    async with Model(nobody, "m", on_call=calls.append) as model:
        with pytest.raises(ModelUnavailable, match="m: ConnectError"):
            await model.complete(ASKED)
    assert calls[0].outcome == "MODEL_UNAVAILABLE"


async def test_a_slow_answer_ends_at_the_deadline(
    server: ProtocolServer, calls: list[Call]
) -> None:
    server.says("m", Answer("Yes.", delay_seconds=30.0))
    async with at(server, "m", calls, deadline=0.3) as model:
        with pytest.raises(ModelTimeout, match=r"within 0\.3 s"):
            await model.complete(ASKED)
    assert calls[0].outcome == "MODEL_TIMEOUT"
    assert calls[0].duration_ms >= 290


async def test_a_stream_comes_in_pieces_and_tells_its_tokens(
    server: ProtocolServer, model: Model, calls: list[Call]
) -> None:
    server.says("m", Answer(pieces=("It ", "is ", "good.")))
    assert [piece async for piece in model.stream(ASKED)] == ["It ", "is ", "good."]
    assert server.bodies[0]["stream_options"] == {"include_usage": True}
    (call,) = calls
    assert (call.outcome, call.input_tokens, call.output_tokens) == ("ok", 10, 5)
    assert call.first_token_ms is not None


async def test_a_stream_that_is_cut_is_said_after_its_pieces(
    server: ProtocolServer, model: Model, calls: list[Call]
) -> None:
    server.says("m", Answer(pieces=("It ", "is "), is_cut=True))
    stream = model.stream(ASKED)
    assert [await anext(stream), await anext(stream)] == ["It ", "is "]
    with pytest.raises(ModelUnavailable, match="cut before its end"):
        await anext(stream)
    assert calls[0].outcome == "MODEL_UNAVAILABLE"


@pytest.mark.parametrize("delay", [0.1, 30.0])  # it trickles; it stands still
async def test_a_slow_stream_ends_at_the_deadline(
    server: ProtocolServer, calls: list[Call], delay: float
) -> None:
    server.says("m", Answer(pieces=("x",) * 50, delay_seconds=delay))
    async with at(server, "m", calls, deadline=0.5) as model:
        with pytest.raises(ModelTimeout):
            async for _ in model.stream(ASKED):
                pass
    assert calls[0].outcome == "MODEL_TIMEOUT"


async def test_a_busy_server_is_said_before_the_first_piece(
    server: ProtocolServer, model: Model
) -> None:
    server.says("m", Answer(status=429, headers={"Retry-After": "2"}))
    with pytest.raises(ModelRateLimited) as caught:
        await anext(model.stream(ASKED))
    assert caught.value.after_seconds == 2.0


def test_providers_are_settings() -> None:
    environ = {"OPENAI_API_KEY": "k-o", "OPENROUTER_API_KEY": "k-r", "OPENAI_BASE_URL": "http://x/v1"}
    assert (provider("openai", environ).address(), provider("openai", environ).api_key) == (
        "http://x/v1", "k-o",
    )
    assert provider("openrouter", environ).address() == "https://openrouter.ai/api/v1"
    assert provider("local", {"LOCAL_MODEL_URL": "http://y/v1"}).address() == "http://y/v1"
    with pytest.raises(ValueError, match="set OPENROUTER_API_KEY"):
        provider("openrouter", {})
    with pytest.raises(ValueError, match="the providers are local, openai, openrouter"):
        provider("acme", {})
    assert "k-o" not in repr(provider("openai", environ))
