"""One handler for whatever turns out to be a valid request."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from tidemill import job


class Strict(BaseModel):
    """A payload with one required field."""

    n: int


@job("fuzz.ok", max_attempts=1)
async def ok(payload: dict[str, Any]) -> int:
    return len(payload)


@job("fuzz.strict", max_attempts=3)
async def strict(payload: Strict) -> int:
    return payload.n
