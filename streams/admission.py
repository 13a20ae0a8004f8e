"""What a request becomes before it is a job: what its type says filled in.

Owns the reading of a request into a `Spec` and what the first events tell of it. Refuses to make
events: `tidemill.streams.decisions` does.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Final

import orjson

from tidemill.schemas.codec import Refusal
from tidemill.schemas.requests import TYPE_LENGTH_MAX
from tidemill.schemas.words import PRIORITY_TEXT
from tidemill.streams.commands import Refuse, Submit
from tidemill.streams.job import Spec
from tidemill.streams.job_type import JobType
from tidemill.streams.policies.uniqueness import unique_key_of

_Fragment: Final = orjson.Fragment  # constants of this module: compiled code need not look them up
_intern: Final = sys.intern
TRACEPARENT_LENGTH_MAX: Final = 128  # W3C's has 55; a later version may append


def spec_of(command: Submit, now: int, number: int, job_type: JobType | None) -> Spec:
    """The request as the ledger keeps it, with what its type says where that is known."""
    decoded = command.decoded
    request = decoded.request
    queue, max_attempts = request.queue or "", request.max_attempts or 0
    timeout_ms = math.ceil(request.timeout_seconds * 1000) if request.timeout_seconds else 0
    unique_key, type_name = request.unique_key, request.type
    if job_type is not None:
        type_name = job_type.type  # one string for all of its jobs
        queue = queue or job_type.queue
        max_attempts = max_attempts or job_type.max_attempts
        timeout_ms = timeout_ms or job_type.timeout_ms
        unique_key = unique_key_of(unique_key, job_type)
    run_at, expires_at = request.run_at, request.expires_at
    return Spec(
        _intern(request.user_id), command.job_id, type_name, queue,
        PRIORITY_TEXT[request.priority],
        decoded.payload_json, now, decoded.fingerprint, number, max_attempts, timeout_ms,
        unique_key,
        None if run_at is None else int(run_at.timestamp() * 1000),
        None if expires_at is None else int(expires_at.timestamp() * 1000),
        request.source, request.tags, request.batch_id, request.parent_job_id,
        _traceparent_of(decoded.traceparent), command.row_key,
    )


def _traceparent_of(given: str | None) -> str | None:
    """A header is as long as its sender likes, and every record of the job would carry it."""
    return given if given is None or len(given) <= TRACEPARENT_LENGTH_MAX else None


def resolved(spec: Spec, job_type: JobType) -> Spec:
    """A deferred job's spec, now that its type is known."""
    return spec.resolved(
        spec.queue or job_type.queue,
        spec.max_attempts or job_type.max_attempts,
        spec.timeout_ms or job_type.timeout_ms,
        unique_key_of(spec.unique_key, job_type),
    )


def requested_data(spec: Spec, *, holds_limit: bool) -> dict[str, Any]:
    data: dict[str, Any] = {
        "payload": _Fragment(spec.payload),
        "fingerprint": spec.fingerprint,
        "max_attempts": spec.max_attempts,
        "timeout_ms": spec.timeout_ms,
    }
    if holds_limit:
        data["holds_limit"] = True
    if spec.unique_key is not None:
        data["unique_key"] = spec.unique_key
    if spec.run_at is not None:
        data["run_at"] = spec.run_at
    if spec.expires_at is not None:
        data["expires_at"] = spec.expires_at
    if spec.source is not None:
        data["source"] = spec.source
    if spec.batch_id is not None:
        data["batch_id"] = spec.batch_id
    if spec.parent_job_id is not None:
        data["parent_job_id"] = spec.parent_job_id
    if spec.traceparent is not None:
        data["traceparent"] = spec.traceparent
    if spec.tags:
        data["tags"] = spec.tags
    return data


def refused_spec(command: Refuse, now: int, number: int) -> Spec:
    """What is kept of a request that cannot be taken. No payload: nobody can redrive it."""
    return Spec(
        command.user_id, command.job_id, (command.refusal.type or "")[:TYPE_LENGTH_MAX], "",
        "medium", b"", now, 0, number=number,
    )


def refusal_error(refusal: Refusal) -> dict[str, Any]:
    """The error of a job whose request cannot be taken."""
    return {"code": refusal.code.value, "message": refusal.message, "retryable": False}


def resolved_data(spec: Spec, *, holds_limit: bool) -> dict[str, Any]:
    """What a job's type brought to its request, once that is known."""
    return {
        "queue": spec.queue, "max_attempts": spec.max_attempts, "timeout_ms": spec.timeout_ms,
        "unique_key": spec.unique_key, "holds_limit": holds_limit,
    }
