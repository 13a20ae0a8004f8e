"""Ends and their encoding: every outcome fits the contract, whatever a handler did."""

from __future__ import annotations

import datetime
import decimal
import uuid
from dataclasses import dataclass
from enum import Enum
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, ValidationError

from tidemill.agents.worker import outcomes
from tidemill.agents.worker.errors import NonRetryable, Retry, Skip
from tidemill.agents.worker.handlers import build_handler
from tidemill.schemas.requests import RESULT_BYTES_MAX
from tidemill.schemas.wire import Outcome
from tidemill.schemas.words import Reason

JOB = {"user_id": "u", "job_id": "null", "run": 1, "attempt": 2, "epoch": 3, "type": "t"}


class Colour(Enum):
    RED = "red"


class Point(BaseModel):
    x: int
    at: datetime.date | None = None


@dataclass
class Pair:
    left: int


def encoded(end: outcomes.Outcome) -> dict[str, Any]:
    value = outcomes.encode(JOB, end, 10, 20)
    Outcome.model_validate_json(value)
    outcome: dict[str, Any] = orjson.loads(value)
    return outcome


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"a": [1, "x", None, True, 1.5]}, {"a": [1, "x", None, True, 1.5]}), ("text", "text"),
        (0, 0), (False, False), ([], []), ((1, 2), [1, 2]), (2**64 - 1, 2**64 - 1),
        (Point(x=1), {"x": 1, "at": None}),
        ([Point(x=1, at=datetime.date(2026, 1, 2))], [{"x": 1, "at": "2026-01-02"}]),
        (Pair(3), {"left": 3}), (Colour.RED, "red"), (uuid.UUID(int=1), str(uuid.UUID(int=1))),
        ({1: "one", 2: "two"}, {"1": "one", "2": "two"}), ({"n": None}, {"n": None}),
        ({1, 2}, [1, 2]), (b"bytes", "bytes"), (decimal.Decimal("1.5"), "1.5"),
        ({(1, 2): 3}, {"1,2": 3}),
    ],
    ids=repr,
)
def test_results_that_are_json(result: Any, expected: Any) -> None:
    outcome = encoded(outcomes.result(result, None))
    assert outcome["kind"] == "succeeded"
    assert outcome["result"] == expected
    assert (outcome["started_at"], outcome["finished_at"]) == (10, 20)


def test_no_result_is_left_out() -> None:
    assert "result" not in encoded(outcomes.result(None, None))


@pytest.mark.parametrize(
    "result",
    [object(), 2**64, "\ud800", {"f": len}, {1: "one", "1": "two"}, {2: {"f": len}},
     float("nan"), [float("inf")], {"deep": {"x": [float("nan")]}}, {float("nan")}],
    # A bare object's repr is another one in each process.
    ids=lambda result: "an object" if type(result) is object else repr(result),
)
def test_results_that_are_not_json_fail_for_good(result: Any) -> None:
    outcome = encoded(outcomes.result(result, None))
    assert outcome["kind"] == "failed"
    assert outcome["error"]["code"] == "RESULT_NOT_JSON"
    assert not outcome["error"]["retryable"]
    assert "result" not in outcome


def test_a_result_that_holds_itself_fails_for_good() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert encoded(outcomes.result(loop, None))["error"]["code"] == "RESULT_NOT_JSON"


def test_the_largest_result_passes_and_one_byte_more_does_not() -> None:
    fits = "x" * (RESULT_BYTES_MAX - 2)
    assert encoded(outcomes.result(fits, None))["result"] == fits
    outcome = encoded(outcomes.result(fits + "x", None))
    assert outcome["error"]["code"] == "RESULT_TOO_LARGE"
    assert str(RESULT_BYTES_MAX) in outcome["error"]["message"]


def test_what_a_handler_raises() -> None:
    retry = encoded(outcomes.error(Retry("later", after_seconds=1.5, code="BUSY"), JOB))
    assert retry["error"].pop("trace") == "tidemill.agents.worker.errors.Retry: later"
    assert retry["error"] == {"code": "BUSY", "message": "later", "retryable": True}
    assert retry["retry_after_ms"] == 1_500
    assert "retry_after_ms" not in encoded(outcomes.error(Retry(), JOB))
    gone = encoded(outcomes.error(NonRetryable(code="GONE"), JOB))
    assert gone["error"].pop("trace").startswith("tidemill.agents.worker.errors.NonRetryable: ")
    assert gone["error"] == {
        "code": "GONE", "message": "the handler gave up with GONE", "retryable": False
    }
    skip = encoded(outcomes.error(Skip(reason="stale"), JOB))
    assert (skip["kind"], skip["reason"]) == ("skipped", "stale")


def test_any_other_exception_is_a_failed_attempt_with_its_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    try:
        raise ValueError("bad \ud800 text" + "x" * 1_000)
    except ValueError as error:
        outcome = encoded(outcomes.error(error, JOB))
    assert outcome["error"]["code"] == "HANDLER_ERROR"
    assert outcome["error"]["message"].startswith("ValueError: bad ? text")
    assert len(outcome["error"]["message"]) == outcomes.MESSAGE_LENGTH_MAX
    assert "Traceback" in caplog.text
    assert outcome["error"]["trace"].startswith("Traceback")
    assert encoded(outcomes.error(Odd(), JOB))["error"]["message"].startswith("Odd (")
    assert encoded(outcomes.error(KeyError(), JOB))["error"]["message"] == "KeyError"


def test_an_invalid_payload_names_the_field_and_the_model() -> None:
    async def handle(payload: Point) -> None: ...

    handler = build_handler("draw", handle, local_names={"Point": Point})
    with pytest.raises(ValidationError) as caught:
        handler.read_payload({"x": "one", "at": 5.5})
    error = encoded(outcomes.invalid_payload(handler, caught.value))["error"]
    assert (error["code"], error["retryable"]) == ("INVALID_PAYLOAD", False)
    assert "'payload.x'" in error["message"]
    assert "1 more" in error["message"]
    assert "Point" in error["message"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Retry(after_seconds=-1), "after_seconds"),
        (lambda: Retry(after_seconds=float("nan")), "after_seconds"),
        (lambda: Skip(""), "reason"), (lambda: Skip(5), "reason"),
        (lambda: NonRetryable(code=""), "code"),
    ],
)
def test_steering_words_check_what_they_are_given(make: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_other_ends_fit_the_contract() -> None:
    for end in (
        outcomes.timed_out(1_500), outcomes.cancelled(), outcomes.died("exit code 9"),
        outcomes.returned(Reason.NO_FREE_SLOT), {"kind": "started"},
        {"kind": "progressed", "progress": {"percent": 1.0}},
    ):
        assert encoded(end)["kind"] == end["kind"]
    assert "1.5 s" in outcomes.timed_out(1_500)["error"]["message"]


class _NoWords(Exception):
    """Cannot be worded: its text raises what is given."""

    def __init__(self, problem: BaseException) -> None:
        super().__init__()
        self._problem = problem

    def __str__(self) -> str:
        raise self._problem

    __repr__ = __str__


class _FinalNoWords(NonRetryable):
    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize(
    "problem", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), RecursionError(),
                GeneratorExit()], ids=lambda each: type(each).__name__,
)
def test_an_exception_that_cannot_be_worded_is_a_failed_attempt(problem: BaseException) -> None:
    end = outcomes.error(_NoWords(problem), JOB)
    assert end["kind"] == "failed"
    assert end["error"]["code"] == "HANDLER_ERROR"
    assert "_NoWords" in end["error"]["message"]
    assert end["error"]["retryable"]


def test_a_final_error_that_cannot_be_worded_stays_final() -> None:
    end = outcomes.error(_FinalNoWords("x"), JOB)
    assert end["kind"] == "failed"
    assert not end["error"]["retryable"]
