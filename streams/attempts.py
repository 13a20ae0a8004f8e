"""What a worker said of an attempt, made safe: instants, results and errors within bounds.

Owns the reading of an outcome's facts. Refuses to decide what they lead to:
`tidemill.streams.decisions`. Nothing in an outcome may stop a partition, so whatever is out of
bounds becomes a value within.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from tidemill.schemas.requests import RESULT_BYTES_MAX
from tidemill.schemas.words import ErrorCode, State
from tidemill.streams.job import Job

ERROR_MESSAGE_LENGTH_MAX: Final = 2_000  # characters of an error's message
ERROR_CODE_LENGTH_MAX: Final = 128  # characters
TRACE_LENGTH_MAX: Final = 8_192  # characters of a stack trace, in its event alone
REASON_LENGTH_MAX: Final = 500  # characters of a handler's own reason
ENDED_UNTOLD: Final = "its worker ended without a word"
# ms before a job goes again that a worker does not run: long enough for one to tell what it runs,
# doubled each time, up to the wait after which a type that nobody runs counts as unknown.
RETURN_MS: Final = 500
RETURN_MS_MAX: Final = 30_000


def times(job: Job, outcome: dict[str, Any], now: int) -> tuple[int, int, int]:
    """(started_at, wait_ms, run_ms) of an attempt: by the worker's clock, within the ledger's
    instants. It began no earlier than its dispatch, and what is told now is over by now."""
    earliest = job.dispatched_at or job.queued_at
    started_at, finished_at = outcome.get("started_at"), outcome.get("finished_at")
    if type(started_at) is not int or started_at <= 0:
        started_at = now
    if type(finished_at) is not int or finished_at <= 0:
        finished_at = now
    run_ms: int = finished_at - started_at
    if job.state is State.RUNNING and job.started_at is not None:
        started_at = job.started_at  # told before, and bounded then
        run_ms = max(0, min(run_ms, now - started_at))
    elif not (earliest <= started_at <= finished_at <= now):
        # A clock that is ahead or behind still tells how long something took.
        run_ms = max(0, min(run_ms, now - earliest))
        started_at = max(earliest, min(started_at, now - run_ms))
    return started_at, wait_ms(job, started_at), run_ms


def wait_ms(job: Job, started_at: int) -> int:
    """How long the run had waited when its attempt began."""
    return max(0, started_at - job.queued_at)


def _text(value: object, length_max: int) -> str | None:
    """The text, cut; None for anything else, which may be nested too deep to write."""
    return value[:length_max] if isinstance(value, str) else None


def reason_of(outcome: dict[str, Any]) -> str | None:
    """Why an attempt was skipped or given back, in the worker's words."""
    return _text(outcome.get("reason"), REASON_LENGTH_MAX)


def detail_of(outcome: dict[str, Any]) -> str | None:
    """More about why an attempt was given back."""
    return _text(outcome.get("detail"), REASON_LENGTH_MAX)


def progress_of(outcome: dict[str, Any]) -> dict[str, Any]:
    """How far an attempt is: percent, stage, message."""
    given = outcome.get("progress")
    if not isinstance(given, dict):
        given = {}
    percent = given.get("percent")
    return {
        "percent": percent if type(percent) in (int, float) else None,
        "stage": _text(given.get("stage"), REASON_LENGTH_MAX),
        "message": _text(given.get("message"), ERROR_MESSAGE_LENGTH_MAX),
    }


def error_of(outcome: dict[str, Any]) -> dict[str, Any]:
    """The error of a failed attempt: code, message, retryable."""
    given = outcome.get("error") or {}
    return {
        "code": _text(given.get("code"), ERROR_CODE_LENGTH_MAX) or ErrorCode.HANDLER_ERROR.value,
        "message": _text(given.get("message"), ERROR_MESSAGE_LENGTH_MAX) or "",
        "retryable": bool(given.get("retryable", True)),
    }


def trace_of(outcome: dict[str, Any]) -> dict[str, Any] | None:
    """The `data` of a failed attempt: where the handler raised; None when that is not known."""
    trace = _text((outcome.get("error") or {}).get("trace"), TRACE_LENGTH_MAX)
    return None if trace is None else {"trace": trace}


def return_delay_ms(returns: int) -> int:
    """How long a job waits that workers have handed back so often because they do not run it."""
    return min(RETURN_MS_MAX, RETURN_MS << min(max(0, returns - 1), 16))


def returned_data(returns: int, detail: str | None) -> dict[str, Any] | None:
    """What the event of a hand-back or a rescue tells: which hand-back of this run it is, and more
    about its reason."""
    if not returns and detail is None:
        return None
    data: dict[str, Any] = {"returns": returns} if returns else {}
    if detail is not None:
        data["detail"] = detail
    return data


def result_json(result: object) -> bytes | dict[str, Any]:
    """The result as JSON text, or the error when it cannot be kept."""
    try:
        text = b"null" if result is None else orjson.dumps(result)
    except (TypeError, ValueError) as error:
        return {
            "code": ErrorCode.RESULT_NOT_JSON.value,
            "message": f"the result cannot be written as JSON ({error}); return plain data",
            "retryable": False,
        }
    if len(text) > RESULT_BYTES_MAX:
        return {
            "code": ErrorCode.RESULT_TOO_LARGE.value,
            "message": f"the result has {len(text)} bytes, at most {RESULT_BYTES_MAX} are kept; "
            "store it elsewhere and return a reference",
            "retryable": False,
        }
    return text
