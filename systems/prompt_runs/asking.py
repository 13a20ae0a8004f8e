"""What a model is asked, and which answer counts.

Owns the text, the schema and the models of this process. Refuses to know rows and jobs.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from systems.models import (
    Call,
    Completion,
    Message,
    Model,
    Price,
    complete_with_fallback,
    provider,
)
from systems.models.client import CONNECTIONS_MAX
from systems.prompt_runs.data import ModelRow
from systems.prompt_runs.settings import ANSWER_TOKENS_MAX, LOCAL_AT_ONCE, MODEL_SECONDS

# One example: small models go on with a pattern better than they follow an instruction.
EXAMPLE: Final = (
    "Answer the question in one sentence and list the entities that the answer names.\n"
    "Question: Which exchange should I use for Ethereum?\n"
    'JSON: {"answer":"Kraken is safe, and Binance is cheap but slow.","entities":'
    '[{"name":"Kraken","sentiment":"positive"},{"name":"Binance","sentiment":"negative"}]}\n'
)


class Entity(BaseModel):
    """Something with a name that an answer speaks of."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=40)
    sentiment: Literal["positive", "negative", "neutral"]


class PromptAnswer(BaseModel):
    """The strict schema of an answer."""

    model_config = ConfigDict(extra="forbid")

    answer: str = Field(min_length=1, max_length=160)
    entities: list[Entity] = Field(max_length=4)


_models: Final[dict[tuple[str, str, float | None, float | None], Model]] = {}
_calls: Final[ContextVar[list[Call]]] = ContextVar("calls")


async def ask(
    text: str, model: ModelRow, fallback: ModelRow | None, calls: list[Call]
) -> Completion[PromptAnswer]:
    """An answer that fits the schema, the fallback's when the model's does not.

    Each call is appended to `calls`, also when an error of `systems.models` is raised.
    """
    _calls.set(calls)
    messages: list[Message] = [{"role": "user", "content": f"{EXAMPLE}Question: {text}\nJSON:"}]
    second = None if fallback is None else _model(fallback)
    return await complete_with_fallback(
        _model(model), second, messages, PromptAnswer, max_tokens=ANSWER_TOKENS_MAX
    )


def _model(row: ModelRow) -> Model:
    key = (row.provider, row.name, row.input_usd, row.output_usd)
    if key not in _models:
        price = None
        if row.input_usd is not None and row.output_usd is not None:
            price = Price(row.input_usd, row.output_usd)
        _models[key] = Model(
            provider(row.provider), row.name, price=price, deadline_seconds=MODEL_SECONDS,
            on_call=lambda call: _calls.get().append(call),
            at_once=LOCAL_AT_ONCE if row.provider == "local" else CONNECTIONS_MAX,
        )
    return _models[key]
