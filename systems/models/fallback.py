"""A second model for answers that do not fit their schema.

Owns when the fallback is asked: only then. A model that is away or busy is the job's retry, not
another model's answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel

from systems.models.client import Completion, Message, Model
from systems.models.errors import ModelOutputInvalid

T = TypeVar("T", bound=BaseModel)


async def complete_with_fallback(
    model: Model,
    fallback: Model | None,
    messages: Sequence[Message],
    schema: type[T],
    *,
    max_tokens: int | None = None,
) -> Completion[T]:
    """The first answer that fits `schema`; `Completion.model` says whose it is.

    Raises what `Model.complete` raises, ModelOutputInvalid when the fallback's answer is wrong too.
    """
    try:
        return await model.complete(messages, schema, max_tokens=max_tokens)
    except ModelOutputInvalid:
        if fallback is None:
            raise
    return await fallback.complete(messages, schema, max_tokens=max_tokens)
