"""From what a handler returned or raised to the outcome's bytes.

Owns the wording and the codes of ends, and the bounds of a result. Refuses to know where the
handler ran: the loop, a thread and a child process give the same ends.

An end is a dict with the fields of `schemas.wire.Outcome` beside the attempt's identity.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import orjson
from pydantic import BaseModel, ValidationError

from agents.worker.context import Context, children_of, valid_text
from agents.worker.errors import NonRetryable, Retry, Skip
from agents.worker.failure_log import FAILURES
from agents.worker.handlers import Handler
from schemas.requests import RESULT_BYTES_MAX, holds_nan
from schemas.words import ErrorCode, Reason

MESSAGE_LENGTH_MAX: Final = 500  # characters of an error's message

End = dict[str, Any]

logger = logging.getLogger("tidemill.worker")


def failure(
    code: str,
    message: str,
    *,
    retryable: bool,
    retry_after_ms: int | None = None,
    trace: str | None = None,
) -> End:
    """A failed attempt. The message is cut and made valid UTF-8: any exception's text may come."""
    text = valid_text(message)[:MESSAGE_LENGTH_MAX]
    said: dict[str, Any] = {"code": valid_text(code), "message": text, "retryable": retryable}
    if trace is not None:
        said["trace"] = trace
    end: End = {"kind": "failed", "error": said}
    if retry_after_ms is not None:
        end["retry_after_ms"] = retry_after_ms
    return end


def timed_out(timeout_ms: int, note: str = "") -> End:
    """The attempt's time is over; another attempt may be quicker."""
    return failure(
        ErrorCode.TIMEOUT, f"did not end within {timeout_ms / 1000:g} s{note}", retryable=True
    )


def cancelled() -> End:
    """A person or a policy asked to stop, and it stopped."""
    return failure(ErrorCode.CANCELLED, "stopped by a cancel command", retryable=False)


def died(how: str) -> End:
    """A child process ended by itself in the middle of an attempt."""
    return failure(
        ErrorCode.PROCESS_DIED,
        f"the process of the handler died: {how}; look for a crash, os._exit or too little memory",
        retryable=True,
    )


def returned(reason: Reason) -> End:
    """Given back: no attempt is spent."""
    return {"kind": "returned", "reason": reason.value}


def result(value: Any, context: Context | None) -> End:
    """The handler returned `value`. Whether it is JSON shows when it is encoded."""
    end: End = {"kind": "succeeded"}
    if value is not None:
        end["result"] = value
    children = children_of(context)
    if children:
        end["children"] = children
    return end


def invalid_payload(handler: Handler, error: ValidationError) -> End:
    """The payload does not fit the handler's model: no attempt can succeed."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    first = problems[0]
    name = ".".join(["payload", *(str(part) for part in first["loc"])])
    others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    model = handler.model.__name__ if handler.model is not None else "dict"
    return failure(
        ErrorCode.INVALID_PAYLOAD,
        f"field {name!r}: {first['msg']}{others}; send what {model} of job type {handler.type!r} "
        "takes",
        retryable=False,
    )


def error(raised: BaseException, job: Mapping[str, Any]) -> End:
    """The handler raised. Steering words are ends of their own; the rest is a failed attempt.

    The stack trace goes to the log and, bounded, beside the error: `failure_log`.
    """
    try:
        end = _steered(raised, job)
    except Exception:
        # A user's class may lack what its base has, or hold something else there.
        logger.exception("a %s of job %s says not what it wants", type(raised), job["job_id"])
        is_final = isinstance(raised, NonRetryable)
        return failure(
            ErrorCode.HANDLER_ERROR, _words_of(raised), retryable=not is_final,
            trace=FAILURES.trace_of(raised, job),
        )
    if end is not None:
        return end
    trace = FAILURES.note(raised, job)
    return failure(ErrorCode.HANDLER_ERROR, _words_of(raised), retryable=True, trace=trace)


def _steered(raised: BaseException, job: Mapping[str, Any]) -> End | None:
    if isinstance(raised, Skip):
        return {"kind": "skipped", "reason": valid_text(raised.reason)}
    if isinstance(raised, NonRetryable):
        return failure(
            raised.code, str(raised), retryable=False, trace=FAILURES.trace_of(raised, job)
        )
    if isinstance(raised, Retry):
        after = raised.after_seconds
        after_ms = None if after is None else round(after * 1000)
        return failure(
            raised.code, str(raised), retryable=True, retry_after_ms=after_ms,
            trace=FAILURES.trace_of(raised, job),
        )
    return None


def _words_of(raised: BaseException) -> str:
    name = type(raised).__name__
    try:
        text = str(raised)
    except Exception:  # noqa: BLE001  # a user's __str__ may do anything; the name is left
        return name
    return f"{name}: {text}" if text else name


# --- encoding -------------------------------------------------------------------------------------


def encode(job: Mapping[str, Any], end: End, started_ms: int, finished_ms: int) -> bytes:
    """The outcome as JSON. A result that cannot travel becomes a failure that says so."""
    kind = end["kind"]
    if kind == "failed":
        FAILURES.note_end(job, end["error"])
    outcome: dict[str, Any] = {
        "kind": kind,
        "user_id": job["user_id"],
        "job_id": job["job_id"],
        "run": job["run"],
        "attempt": job["attempt"],
        "epoch": job["epoch"],
    }
    if started_ms:
        outcome["started_at"] = started_ms
    if finished_ms:
        outcome["finished_at"] = finished_ms
    outcome.update(end)
    try:
        encoded = orjson.dumps(outcome, default=_as_json)
    except (TypeError, ValueError, RecursionError) as problem:
        return _encode_odd(job, end, started_ms, finished_ms, problem)
    if "result" in end and b"null" in encoded and holds_nan(end["result"]):
        return _refuse(
            job, ErrorCode.RESULT_NOT_JSON, "the result holds NaN or infinity, which JSON has not; "
            "return None or a text there", started_ms, finished_ms,
        )
    if len(encoded) > RESULT_BYTES_MAX:
        return _check_size(job, end, encoded, started_ms, finished_ms)
    return encoded


def too_large(job: Mapping[str, Any], started_ms: int, finished_ms: int, size: int) -> bytes:
    """The outcome in place of one that does not fit a record."""
    return _refuse(
        job, ErrorCode.RESULT_TOO_LARGE,
        f"the result and children have {size} bytes, at most {RESULT_BYTES_MAX} are taken; store "
        "the data elsewhere and return a reference", started_ms, finished_ms,
    )


def _refuse(
    job: Mapping[str, Any], code: ErrorCode, message: str, started_ms: int, finished_ms: int
) -> bytes:
    return encode(job, failure(code, message, retryable=False), started_ms, finished_ms)


def _check_size(
    job: Mapping[str, Any], end: End, encoded: bytes, started_ms: int, finished_ms: int
) -> bytes:
    size = len(orjson.dumps(end.get("result"), default=_as_json)) if "result" in end else 0
    children = end.get("children")
    if children:
        size += len(orjson.dumps(children))
    if size <= RESULT_BYTES_MAX:
        return encoded
    return too_large(job, started_ms, finished_ms, size)


def _encode_odd(
    job: Mapping[str, Any], end: End, started_ms: int, finished_ms: int, problem: Exception
) -> bytes:
    """Results that need a second look: keys that are not text, or no JSON at all."""
    if "result" not in end:
        raise problem
    try:
        plain = orjson.loads(
            orjson.dumps(end["result"], default=_as_json, option=orjson.OPT_NON_STR_KEYS)
        )
    except (TypeError, ValueError, RecursionError) as error:
        return _refuse(
            job, ErrorCode.RESULT_NOT_JSON,
            f"the result is not JSON: {error}; return a dict, list, text, number, None or a "
            "pydantic model", started_ms, finished_ms,
        )
    return encode(job, {**end, "result": plain}, started_ms, finished_ms)


def _as_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"a {type(value).__name__} is not JSON")
