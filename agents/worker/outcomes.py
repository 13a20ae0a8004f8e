"""From what a handler returned or raised to the outcome's bytes.

Owns the wording and the codes of ends, and the bounds of a result. Refuses to know where the
handler ran: the loop, a thread and a child process give the same ends.

An end is a dict with the fields of `tidemill.schemas.wire.Outcome` beside the attempt's identity.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import orjson
from pydantic import ValidationError

from tidemill.agents.worker import results
from tidemill.agents.worker.context import Context, children_of, suspending_of, valid_text
from tidemill.agents.worker.errors import NonRetryable, Retry, Skip, Steer
from tidemill.agents.worker.failure_log import FAILURES
from tidemill.agents.worker.handlers import Handler
from tidemill.agents.worker.steering import causes_text, name_and_text, steering_word
from tidemill.agents.worker.suspending import as_json, suspension_in
from tidemill.agents.worker.traces import class_name
from tidemill.schemas.portable import DUMP_OPTIONS
from tidemill.schemas.requests import RESULT_BYTES_MAX, holds_nan
from tidemill.schemas.words import ErrorCode, Reason

MESSAGE_LENGTH_MAX: Final = 500  # characters of an error's message

Outcome = dict[str, Any]

logger = logging.getLogger("tidemill.worker")


def failure(
    code: str,
    message: str,
    *,
    retryable: bool,
    retry_after_ms: int | None = None,
    trace: str | None = None,
) -> Outcome:
    """A failed attempt. The message is cut and made valid UTF-8: any exception's text may come."""
    text = valid_text(message)[:MESSAGE_LENGTH_MAX]
    said: dict[str, Any] = {"code": valid_text(code), "message": text, "retryable": retryable}
    if trace is not None:
        said["trace"] = trace
    end: Outcome = {"kind": "failed", "error": said}
    if retry_after_ms is not None:
        end["retry_after_ms"] = retry_after_ms
    return end


def timed_out(timeout_ms: int, note: str = "", stack: str | None = None) -> Outcome:
    """The attempt's time is over; another attempt may be quicker. `stack`: where it stood."""
    return failure(
        ErrorCode.TIMEOUT, f"did not end within {timeout_ms / 1000:g} s{note}", retryable=True,
        trace=stack,
    )


def cancelled() -> Outcome:
    """A person or a policy asked to stop, and it stopped."""
    return failure(ErrorCode.CANCELLED, "stopped by a cancel command", retryable=False)


def died(how: str) -> Outcome:
    """A child process ended by itself in the middle of an attempt."""
    return failure(
        ErrorCode.PROCESS_DIED,
        f"the process of the handler died: {how}; look for a crash, os._exit or too little memory",
        retryable=True,
    )


def returned(reason: Reason, detail: str | None = None, holder: str | None = None) -> Outcome:
    """Given back: no attempt is spent. `detail`: more about the reason, for the job's story."""
    end: Outcome = {"kind": "returned", "reason": reason.value}
    if detail is not None:
        end["detail"] = detail
    if holder is not None:
        end["holder"] = holder
    return end


def result(value: Any, context: Context | None, handler: Handler | None = None) -> Outcome:
    """The handler returned `value`. Whether it is JSON shows when it is encoded."""
    swallowed = None if context is None else _swallowed(context, "returned")
    if swallowed is not None:
        return swallowed
    end: Outcome = {"kind": "succeeded"}
    if handler is not None and handler.writer is not None:
        value = handler.writer(value)
    if value is not None:
        end["result"] = value
    children = children_of(context)
    if children:
        end["children"] = children
    return end


def invalid_payload(handler: Handler, error: ValidationError) -> Outcome:
    """The payload does not fit the handler's model: no attempt can succeed."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    first = problems[0]
    name = ".".join(["payload", *(str(part) for part in first["loc"])])
    others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    model = handler.reader.name if handler.reader is not None else "dict"
    return failure(
        ErrorCode.INVALID_PAYLOAD,
        f"field {name!r}: {first['msg']}{others}; send what {model} of job type {handler.type!r} "
        "takes",
        retryable=False,
    )


def _swallowed(context: Context, what: str) -> Outcome | None:
    """The end of a handler that has broken the rules of waiting, whatever it did then."""
    suspending = suspending_of(context)
    if suspending is None:
        return None
    if suspending.misuse is not None:
        return failure(suspending.misuse.code, str(suspending.misuse), retryable=False)
    if suspending.suspended is None:
        return None
    return failure(
        ErrorCode.SUSPENSION_SWALLOWED,
        f"the handler {suspending.suspended} and has caught the exception that ends its attempt "
        f"({what}): catch Exception, not BaseException, and let the rest pass",
        retryable=False,
    )


def error(
    raised: BaseException, job: Mapping[str, Any], context: Context | None = None
) -> Outcome:
    """The handler raised. Steering words are ends of their own; the rest is a failed attempt.

    The stack trace goes to the log and, bounded, beside the error: `failure_log`. Whatever an
    exception does when it is asked for its words, raising SystemExit too, the attempt ends.
    """
    try:
        if context is not None:
            suspended = suspension_in(raised)
            rules = suspending_of(context)
            if suspended is not None and (rules is None or rules.misuse is None):
                return as_json(suspended.waits)
            swallowed = _swallowed(context, f"and has raised {class_name(raised)}")
            if swallowed is not None:
                return swallowed
        return _error(raised, job)
    except BaseException as problem:  # noqa: BLE001
        name, other = class_name(raised), class_name(problem)
        return failure(
            ErrorCode.HANDLER_ERROR, f"{name} (its words cannot be read: {other})",
            retryable=not issubclass(type(raised), NonRetryable),
        )


def _error(raised: BaseException, job: Mapping[str, Any]) -> Outcome:
    word = steering_word(raised)
    try:
        end = None if word is None else _steered(word, raised, job)
    except Exception:
        # A user's class may lack what its base has, or hold something else there.
        logger.exception("a %s of job %s says not what it wants", type(word), job["job_id"])
        is_final = isinstance(word, NonRetryable)
        return failure(
            ErrorCode.HANDLER_ERROR, _words_of(raised), retryable=not is_final,
            trace=FAILURES.trace_of(raised, job),
        )
    if end is not None:
        return end
    trace = FAILURES.note(raised, job)
    return failure(ErrorCode.HANDLER_ERROR, _words_of(raised), retryable=True, trace=trace)


def _steered(word: Steer, raised: BaseException, job: Mapping[str, Any]) -> Outcome | None:
    """The end that `word` asks for, which `raised` is or holds."""
    if isinstance(word, Skip):
        return {"kind": "skipped", "reason": valid_text(word.reason)}
    text = str(word)
    others = causes_text(raised, but=word)
    message = f"{text} ({others})" if others else text
    if isinstance(word, NonRetryable):
        return failure(
            word.code, message, retryable=False, trace=FAILURES.trace_of(raised, job)
        )
    if isinstance(word, Retry):
        after = word.after_seconds
        after_ms = None if after is None else round(after * 1000)
        return failure(
            word.code, message, retryable=True, retry_after_ms=after_ms,
            trace=FAILURES.trace_of(raised, job),
        )
    return None


def _words_of(raised: BaseException) -> str:
    others = causes_text(raised, but=raised)
    return f"{name_and_text(raised)} ({others})" if others else name_and_text(raised)


# --- encoding -------------------------------------------------------------------------------------


def encode(job: Mapping[str, Any], end: Outcome, started_ms: int, finished_ms: int) -> bytes:
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
        encoded = orjson.dumps(outcome, results.as_json, DUMP_OPTIONS)
        if "result" in end and b"null" in encoded and holds_nan(end["result"]):
            encoded = _encode_odd(outcome, end["result"])
    except results.NotJson as error:
        return _refuse_result(job, error, started_ms, finished_ms)
    except (TypeError, ValueError, RecursionError):
        if "result" not in end:
            raise
        try:
            encoded = _encode_odd(outcome, end["result"])
        except results.NotJson as error:
            return _refuse_result(job, error, started_ms, finished_ms)
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


def _encode_odd(outcome: dict[str, Any], value: Any) -> bytes:
    """Of a result that needs a second look: keys that are not text, NaN, or no JSON at all."""
    return orjson.dumps({**outcome, "result": orjson.Fragment(results.write(value))})


def _refuse_result(
    job: Mapping[str, Any], error: results.NotJson, started_ms: int, finished_ms: int
) -> bytes:
    return _refuse(
        job, ErrorCode.RESULT_NOT_JSON,
        f"the result is not JSON: {error}; return a dict, list, text, number, None or a pydantic "
        "model", started_ms, finished_ms,
    )


def _check_size(
    job: Mapping[str, Any], end: Outcome, encoded: bytes, started_ms: int, finished_ms: int
) -> bytes:
    size = len(results.write(end["result"])) if "result" in end else 0
    children = end.get("children")
    if children:
        size += len(orjson.dumps(children))
    if size <= RESULT_BYTES_MAX:
        return encoded
    return too_large(job, started_ms, finished_ms, size)
