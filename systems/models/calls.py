"""What a call used and cost.

Owns the record of one call and the sum of its price. Refuses to know where records are kept: who
makes a `Model` hands it a function that keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

TOKENS_PER_PRICE: Final = 1_000_000  # providers state prices for a million tokens


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens."""

    input_usd: float
    output_usd: float

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """US dollars of one call."""
        spent = input_tokens * self.input_usd + output_tokens * self.output_usd
        return spent / TOKENS_PER_PRICE


FREE: Final = Price(0.0, 0.0)  # a model on this machine


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider counted them. `cost_usd` None: it gave no cost."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call, answered or not.

    `outcome` is "ok" or the error's code. Token counts are 0 where the provider gave none, as for a
    call that failed. `cost_usd` None: the price is not known. `first_token_ms` is for streams.
    """

    provider: str
    model: str
    asked_at: datetime
    duration_ms: int
    outcome: str
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    first_token_ms: int | None = None


def usage_of(answer: Mapping[str, Any]) -> Usage | None:
    """The `usage` of an answer or of a stream's last chunk; None where there is none."""
    usage = answer.get("usage")
    if not isinstance(usage, Mapping):
        return None
    cost = usage.get("cost")  # OpenRouter says it, in US dollars
    return Usage(
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        float(cost) if isinstance(cost, int | float) else None,
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def cost_of(usage: Usage, price: Price | None) -> float | None:
    """What the provider said; else the sum by the price; None when neither is known."""
    if usage.cost_usd is not None:
        return usage.cost_usd
    return None if price is None else price.of(usage.input_tokens, usage.output_tokens)
