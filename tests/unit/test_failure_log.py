"""A storm of failures leaves some traces and a count, not a trace of each."""

from __future__ import annotations

import logging

import pytest

from agents.worker.failure_log import KIND_SECONDS, TRACES_A_SECOND, FailureLog

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
    assert [bool(record.exc_info) for record in caplog.records] == [True] * TRACES_A_SECOND
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
