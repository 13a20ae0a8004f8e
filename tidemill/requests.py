"""What a program asks for: `Request`, its check and its bytes, and the ids of new jobs.

Owns the way from Python values to a record's value on `jobs.requested`. The rules are those of
`schemas.requests`; none is repeated here. Refuses to know how records reach Kafka.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import orjson
from pydantic import BaseModel, ValidationError

from schemas.codec import DEPTH_MAX, depth_of
from schemas.requests import REQUEST_BYTES_MAX, Command, JobRequest, holds_nan

_RANDOM_BITS: Final = 62  # of a version 7 UUID, below the variant
_RANDOM_MASK: Final = (1 << _RANDOM_BITS) - 1

_check: Final = JobRequest.__pydantic_validator__.validate_python
_EMPTY: Final[dict[str, Any]] = {}


class ClientError(Exception):
    """Anything that a client could not do."""


class InvalidRequest(ClientError, ValueError):
    """A request that the engine would refuse. The text names field, reason and way out."""


@dataclass(slots=True, kw_only=True)
class Request:
    """One job to ask for. The fields mean what they mean on `jobs.requested`.

    `payload` is a dict or a pydantic model. `job_id` None: the client makes one, so that its own
    retries ask for one job only.
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


@dataclass(frozen=True, slots=True)
class JobHandle:
    """A job that Kafka has acknowledged: keep it to wait for its end.

    `partition` and `offset` say where the request is on `topic`; None after `enqueue_many`, which
    learns only of failures. `enqueued_at` is epoch milliseconds, just before it was sent.
    """

    job_id: str
    user_id: str
    type: str
    topic: str
    enqueued_at: int
    partition: int | None = None
    offset: int | None = None


class JobIds:
    """Version 7 UUIDs that grow by at least one: unique over processes, sortable within one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ms = 0
        self._random = 0

    def next(self) -> str:
        """A new id, such as 019a7c9e-3d5f-7b2e-9f31-…"""
        ms = time.time_ns() // 1_000_000
        with self._lock:
            if ms > self._ms:
                self._ms = ms
                # 12 bits stay free above, so that a burst within one millisecond can count up.
                self._random = int.from_bytes(os.urandom(9)) & ((1 << 70) - 1)
            else:
                ms = self._ms
            self._random += 1
            bits = self._random
        number = (
            (ms << 80)
            | (7 << 76)
            | ((bits >> _RANDOM_BITS & 0xFFF) << 64)
            | (2 << 62)
            | (bits & _RANDOM_MASK)
        )
        text = f"{number:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def body_of(request: Request, job_id: str) -> dict[str, Any]:
    """The JSON object of a request, only with what differs from the defaults.

    Raises InvalidRequest.
    """
    payload = request.payload
    if isinstance(payload, BaseModel):
        payload = payload.model_dump(mode="json")
    body: dict[str, Any] = {
        "type": request.type,
        "user_id": request.user_id,
        "job_id": job_id,
        "payload": _EMPTY if payload is None else payload,
    }
    if request.queue is not None:
        body["queue"] = request.queue
    if request.priority is not None:
        body["priority"] = request.priority
    if request.run_at is not None:
        body["run_at"] = _aware(request.run_at, "run_at")
    if request.expires_at is not None:
        body["expires_at"] = _aware(request.expires_at, "expires_at")
    if request.unique_key is not None:
        body["unique_key"] = request.unique_key
    if request.max_attempts is not None:
        body["max_attempts"] = request.max_attempts
    if request.timeout_seconds is not None:
        body["timeout_seconds"] = request.timeout_seconds
    if request.source is not None:
        body["source"] = request.source
    if request.tags:
        body["tags"] = _listed(request.tags)
    if request.batch_id is not None:
        body["batch_id"] = request.batch_id
    if request.parent_job_id is not None:
        body["parent_job_id"] = request.parent_job_id
    return body


def _listed(tags: Sequence[str]) -> list[str]:
    if isinstance(tags, str):
        raise InvalidRequest(f"field 'tags': {tags!r} is one text; give a list of texts")
    return list(tags)


def _aware(instant: object, name: str) -> datetime:
    if not isinstance(instant, datetime):
        raise InvalidRequest(
            f"field {name!r}: give a datetime with a time zone, not {type(instant).__name__}"
        )
    if instant.tzinfo is None:
        raise InvalidRequest(
            f"field {name!r}: {instant} has no time zone; use datetime.now(UTC) or .astimezone()"
        )
    return instant


def encode(request: Request, job_id: str) -> bytes:
    """The checked value of a record on `jobs.requested`. Raises InvalidRequest."""
    body = body_of(request, job_id)
    try:
        _check(body)
        value = orjson.dumps(body)
    except ValidationError as error:
        raise InvalidRequest(explain(error)) from None
    except (TypeError, RecursionError) as error:
        raise InvalidRequest(
            f"field 'payload': {error}; use JSON values, and text for what JSON has no form for"
        ) from None
    # `find`: `in` costs an exception more.
    if value.find(b"null") >= 0 and holds_nan(body["payload"]):
        raise InvalidRequest(
            "field 'payload': it holds NaN or infinity, which JSON has not; use None or a text"
        )
    _check_bounds(value)
    return value


def _check_bounds(value: bytes) -> None:
    if len(value) > REQUEST_BYTES_MAX:
        raise InvalidRequest(
            f"field 'payload': the request has {len(value)} bytes, at most {REQUEST_BYTES_MAX} are "
            "taken; store the data elsewhere and send a reference"
        )
    if value.count(b"[") + value.count(b"{") > DEPTH_MAX and depth_of(value) > DEPTH_MAX:
        raise InvalidRequest(
            f"field 'payload': nested more than {DEPTH_MAX} deep; flatten it or send it as text"
        )


def encode_command(command: Mapping[str, Any]) -> bytes:
    """The checked value of a record on `jobs.commands`. Raises InvalidRequest."""
    body = {name: value for name, value in command.items() if value is not None}
    try:
        Command.model_validate(body)
    except ValidationError as error:
        raise InvalidRequest(explain(error)) from None
    return orjson.dumps(body)


def explain(error: ValidationError) -> str:
    """The first problem of a pydantic error, as field and reason."""
    problem = error.errors(include_url=False, include_context=False)[0]
    name = ".".join(str(part) for part in problem["loc"]) or "value"
    given = repr(problem.get("input"))
    shown = given if len(given) <= 80 else f"{given[:77]}..."
    message = problem["msg"].removeprefix("Value error, ")
    return f"field {name!r}: {message} (given: {shown})"
