"""What a model is asked, and which answer counts.

Owns the text, the schema and the models of this process. Refuses to know rows and jobs.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Final, Literal
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, Field

from systems.models import (
    Call,
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


class Answered(BaseModel):
    """An answer that fits the schema, as it is remembered: whose, its text, and what it cost."""

    model: str
    text: str
    value: PromptAnswer
    cost_usd: float | None
    calls: list[Call]

    @property
    def mentions(self) -> list[tuple[str, str]]:
        """Each entity once for each sentiment."""
        return sorted({(entity.name, entity.sentiment) for entity in self.value.entities})


Known = dict[tuple[str, str, float | None, float | None], Model]
# A model's connections are of one event loop; a worker has one for its whole life.
_models: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, Known]] = WeakKeyDictionary()
_calls: Final[ContextVar[list[Call]]] = ContextVar("calls")


async def ask(
    text: str, model: ModelRow, fallback: ModelRow | None, calls: list[Call]
) -> Answered:
    """An answer that fits the schema, the fallback's when the model's does not.

    Each call is appended to `calls`, also when an error of `systems.models` is raised.
    """
    _calls.set(calls)
    messages: list[Message] = [{"role": "user", "content": f"{EXAMPLE}Question: {text}\nJSON:"}]
    second = None if fallback is None else _model(fallback)
    done = await complete_with_fallback(
        _model(model), second, messages, PromptAnswer, max_tokens=ANSWER_TOKENS_MAX
    )
    return Answered(
        model=done.model, text=done.text, value=done.value, cost_usd=done.cost_usd, calls=calls
    )


def _model(row: ModelRow) -> Model:
    models = _models.setdefault(asyncio.get_running_loop(), {})
    key = (row.provider, row.name, row.input_usd, row.output_usd)
    if key not in models:
        price = None
        if row.input_usd is not None and row.output_usd is not None:
            price = Price(row.input_usd, row.output_usd)
        models[key] = Model(
            provider(row.provider), row.name, price=price, deadline_seconds=MODEL_SECONDS,
            on_call=lambda call: _calls.get().append(call),
            at_once=LOCAL_AT_ONCE if row.provider == "local" else CONNECTIONS_MAX,
        )
    return models[key]
