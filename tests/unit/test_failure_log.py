"""A storm of failures leaves some traces and a count, not a trace of each."""

from __future__ import annotations

import logging

import pytest

from tidemill.agents.tally import KIND_SECONDS
from tidemill.agents.worker.failure_log import TRACES_A_SECOND, TRACES_KEPT_A_SECOND, FailureLog

JOB = {"attempt": 1, "job_id": "j", "type": "t", "user_id": "u"}


def raised(kind: type[Exception] = ValueError) -> Exception:
    try:
        raise kind("no")
    except Exception as error:  # noqa: BLE001  # with its trace
        return error


class Now:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_the_first_are_told_whole_and_the_others_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = Now()
    log = FailureLog(now)
    for _ in range(TRACES_A_SECOND + 40):
        log.note(raised(), JOB)
    assert len(caplog.records) == TRACES_A_SECOND
    assert all(record.exc_info for record in caplog.records)
    caplog.clear()
    log.tell_rest()
    assert not caplog.records
    now.seconds += KIND_SECONDS
    log.tell_rest()
    log.tell_rest()
    assert len(caplog.records) == 1
    told = caplog.records[0].getMessage()
    assert told.startswith("40 more attempts of t raised ValueError at ")
    assert "test_failure_log.py:" in told
    assert told.endswith("within 1.0 s; what each of them said is in its event")
    # A new second begins.
    caplog.clear()
    log.note(raised(), JOB)
    assert len(caplog.records) == 1


def test_kinds_do_not_hide_each_other(caplog: pytest.LogCaptureFixture) -> None:
    log = FailureLog()
    for _ in range(20):
        log.note(raised(), JOB)
    caplog.clear()
    log.note(raised(KeyError), JOB)
    log.note(raised(), JOB | {"type": "other"})
    log.note(ValueError("never raised"), JOB)
    assert len(caplog.records) == 3


def test_what_was_counted_is_told_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    log = FailureLog()
    for _ in range(TRACES_A_SECOND + 1):
        log.note(ValueError("never raised"), JOB)
    caplog.clear()
    log.tell_rest(is_last=True)
    assert "1 more attempts of t raised ValueError at an unknown place" in caplog.text


def test_events_keep_some_traces_of_a_storm_and_the_place_of_the_others() -> None:
    now = Now()
    log = FailureLog(now)
    kept = [log.note(raised(), JOB) or "" for _ in range(TRACES_KEPT_A_SECOND + 2)]
    whole = [text for text in kept if "Traceback" in text]
    assert len(whole) == TRACES_KEPT_A_SECOND
    assert "test_failure_log.py:" in kept[-1]
    assert len(kept[-1]) < 700
    now.seconds += KIND_SECONDS
    log.tell_rest()
    assert "Traceback" in (log.note(raised(), JOB) or "")


def test_traces_can_be_switched_off() -> None:
    log = FailureLog()
    log.keeps_traces = False
    assert log.note(raised(), JOB) is None
    assert log.trace_of(raised(), JOB) is None
    of_a_child = {"code": "X", "retryable": True, "trace": "secret"}
    log.note_end(JOB, of_a_child)
    assert "trace" not in of_a_child


@pytest.mark.parametrize(
    ("code", "retryable", "is_told"),
    [
        ("INVALID_PAYLOAD", False, True), ("TIMEOUT", True, True), ("PROCESS_DIED", True, True),
        ("RESULT_NOT_JSON", False, True), ("RESULT_TOO_LARGE", False, True),
        ("HANDLER_ERROR", False, True),  # NonRetryable
        ("CARD_DECLINED", False, True), ("BUSY", True, False),  # a retry that was asked for
        ("HANDLER_ERROR", True, False), ("CANCELLED", False, False),
    ],
)
def test_an_end_without_a_trace_gets_a_line(
    code: str, *, retryable: bool, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    job = JOB | {"job_id": "a\x1b[2Jb", "payload": {"card": "4111"}}
    FailureLog().note_end(job, {"code": code, "message": "4111", "retryable": retryable})
    assert bool(caplog.records) is is_told
    for record in caplog.records:
        said = vars(record)
        assert said["job"] == "a\ufffd[2Jb"
        assert (said["user"], said["type"], said["attempt"], said["code"]) == ("u", "t", 1, code)
        assert "4111" not in repr(said)


def test_a_storm_of_ends_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = Now()
    log = FailureLog(now)
    for _ in range(1_000):
        log.note_end(JOB, {"code": "INVALID_PAYLOAD", "message": "", "retryable": False})
    assert len(caplog.records) == TRACES_A_SECOND
    now.seconds += KIND_SECONDS
    log.tell_rest()
    assert "995 more attempts of t failed with INVALID_PAYLOAD" in caplog.text


def test_a_child_process_leaves_ends_to_its_parent(caplog: pytest.LogCaptureFixture) -> None:
    log = FailureLog()
    log.tells_ends = False
    log.note_end(JOB, {"code": "INVALID_PAYLOAD", "message": "", "retryable": False})
    assert not caplog.records
