"""What a program asks for: `Request`, and its fields as they travel.

Owns the names of what a program may say of a job. Refuses to check anything: the rules are those of
the ledger (`tidemill.schemas.doors`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel

_OPTIONAL: Final = (
    "queue", "priority", "run_at", "expires_at", "unique_key", "max_attempts", "timeout_seconds",
    "source", "tags", "batch_id", "parent_job_id",
)


@dataclass(slots=True, kw_only=True)
class Request:
    """One job to ask for. The fields mean what they mean on `jobs.requested`.

    `payload` is a dict, a pydantic model or a dataclass. `job_id` None: the client makes one, so
    that its own retries ask for one job only.
    """

    type: str
    user_id: str
    payload: Mapping[str, Any] | BaseModel | None = None
    job_id: str | None = None
    queue: str | None = None
    priority: Literal["high", "medium", "low"] | None = None
    run_at: datetime | None = None
    expires_at: datetime | None = None
    unique_key: str | None = None
    max_attempts: int | None = None
    timeout_seconds: float | None = None
    source: str | None = None
    tags: Sequence[str] = ()
    batch_id: str | None = None
    parent_job_id: str | None = None


def body_of(request: Request, job_id: str | None) -> dict[str, Any]:
    """The fields of a request, only those that differ from the defaults; nothing is checked."""
    body: dict[str, Any] = {
        "type": request.type,
        "user_id": request.user_id,
        "job_id": job_id,
        "payload": request.payload,
    }
    for name in _OPTIONAL:
        value = getattr(request, name)
        if value is not None and value != ():
            body[name] = value
    return body
