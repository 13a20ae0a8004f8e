"""What a request becomes before it is a job: its policy filled in, and why it may be skipped.

Owns the reading of a request into a `Spec` and the checks at the door. Refuses to make events:
`tidemill.streams.decisions` does.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Final, Protocol

import orjson

from tidemill.schemas.codec import Refusal
from tidemill.schemas.requests import TYPE_LENGTH_MAX
from tidemill.schemas.words import PRIORITY_TEXT, ErrorCode, Reason
from tidemill.streams import limits
from tidemill.streams.commands import Refuse, Submit
from tidemill.streams.job import Job, JobKey, Spec
from tidemill.streams.policy import Policy
from tidemill.streams.store.finished import Ended
from tidemill.streams.store.kept_cancels import KeptCancel

_Fragment: Final = orjson.Fragment  # constants of this module: compiled code need not look them up
_intern: Final = sys.intern
TRACEPARENT_LENGTH_MAX: Final = 128  # W3C's has 55; a later version may append
UNIQUE_BY_USER_PREFIX: Final = "\x1ftype:"  # cannot collide: ids hold no control characters


class Situation(Protocol):
    """What `decide` may look at beside the job itself."""

    @property
    def accepted(self) -> int: ...
    @property
    def interruptions_max(self) -> int: ...
    def policy(self, type: str) -> Policy | None: ...
    def policy_for_new(self, type: str) -> Policy | None: ...
    def unique_holder(self, user_id: str, unique_key: str) -> JobKey | None: ...
    def limit_state(self, user_id: str, type: str) -> limits.LimitState: ...
    def kept_cancel(self, key: JobKey) -> KeptCancel | None: ...
    def ended(self, key: JobKey) -> Ended | None: ...


def spec_of(command: Submit, now: int, number: int, policy: Policy | None) -> Spec:
    """The request as the ledger keeps it, with the handler's policy where that is known."""
    decoded = command.decoded
    request = decoded.request
    queue, max_attempts = request.queue or "", request.max_attempts or 0
    timeout_ms = math.ceil(request.timeout_seconds * 1000) if request.timeout_seconds else 0
    unique_key, type_name = request.unique_key, request.type
    if policy is not None:
        type_name = policy.type  # one string for all of its jobs
        queue = queue or policy.queue
        max_attempts = max_attempts or policy.max_attempts
        timeout_ms = timeout_ms or policy.timeout_ms
        unique_key = unique_key_of(unique_key, policy)
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


def unique_key_of(asked: str | None, policy: Policy) -> str | None:
    """The request's own key, or the one that `unique_by` gives."""
    if asked is None and policy.is_unique_by_user:
        return UNIQUE_BY_USER_PREFIX + policy.type
    return asked


def resolved(spec: Spec, policy: Policy) -> Spec:
    """A deferred job's spec, now that its type is known."""
    return spec.resolved(
        spec.queue or policy.queue,
        spec.max_attempts or policy.max_attempts,
        spec.timeout_ms or policy.timeout_ms,
        unique_key_of(spec.unique_key, policy),
    )


def is_expired(spec: Spec, now: int) -> bool:
    return spec.expires_at is not None and spec.expires_at <= now


def is_too_late(job: Job, now: int) -> bool:
    """Whether the job has expired. What was dispatched once never does."""
    return job.epoch == 0 and is_expired(job.spec, now)


def is_duplicate(spec: Spec, situation: Situation) -> bool:
    """Whether another live job of the user has the same unique key."""
    if spec.unique_key is None:
        return False
    holder = situation.unique_holder(spec.user_id, spec.unique_key)
    return holder is not None and holder != spec.key


def reason_to_skip(
    spec: Spec, policy: Policy | None, now: int, situation: Situation
) -> Reason | None:
    """Why the job is not needed, as far as its type is known."""
    if is_duplicate(spec, situation):
        return Reason.DUPLICATE
    if policy is not None and policy.limits:
        used = situation.limit_state(spec.user_id, spec.type)
        if limits.is_over_skip(policy.limits, used, now):
            return Reason.RATE_LIMITED
    return None


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


def unknown_type_error(spec: Spec) -> dict[str, Any]:
    """The error of a job whose type no worker told of in time."""
    where = f"no living worker of queue {spec.queue!r}" if spec.queue else "no worker"
    return {
        "code": ErrorCode.UNKNOWN_TYPE.value,
        "message": f"{where} runs jobs of type {spec.type!r}; start one that has it, or correct "
        "the type, and redrive the job",
        "retryable": False,
    }
