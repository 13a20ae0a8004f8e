"""Lines about dead letters: whose, which and why in fields, no payload, bounded in a storm."""

from __future__ import annotations

import pytest

from tests.chaos.rawlog import RawRecord
from tests.unit.core_kit import NOW
from tests.unit.partition_kit import Scene, decided, events_in, outcome, outcomes, plain, request
from tidemill.agents.ledger.dead_letter_log import DeadLetterLog
from tidemill.agents.tally import KIND_SECONDS, LINES_A_SECOND, Tally
from tidemill.streams.output import DeadLetter

FAILED = DeadLetter("attempt", "TIMEOUT", "u\x1b[2J", "j", "t", 3, "attempts_exhausted", "", "")
REFUSED = DeadLetter(
    "request", "INVALID_FIELD", "", "", "", 0, "", "priority", "jobs.requested/1/2"
)


def test_a_job_that_failed_for_good_is_named(caplog: pytest.LogCaptureFixture) -> None:
    DeadLetterLog().tell([FAILED])
    (record,) = caplog.records
    said = vars(record)
    assert record.getMessage() == "a job failed for good"
    assert (said["job"], said["user"], said["type"]) == ("j", "u\ufffd[2J", "t")
    assert (said["attempt"], said["code"], said["reason"]) == (3, "TIMEOUT", "attempts_exhausted")


def test_a_refused_record_is_named_by_its_place(caplog: pytest.LogCaptureFixture) -> None:
    DeadLetterLog().tell([REFUSED])
    (record,) = caplog.records
    said = vars(record)
    assert "a request was refused" in record.getMessage()
    assert (said["source"], said["field"]) == ("jobs.requested/1/2", "priority")
    assert "user" not in said


def test_a_storm_is_told_by_some_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    seconds = [0.0]
    log = DeadLetterLog(Tally(lambda: seconds[0]))
    log.tell([FAILED] * 1_000)
    log.tell([REFUSED])
    assert len(caplog.records) == LINES_A_SECOND + 1
    seconds[0] += KIND_SECONDS
    log.tell([])
    assert "995 more jobs of t failed for good with TIMEOUT" in caplog.text
    log.tell([])
    assert len(caplog.records) == LINES_A_SECOND + 2


def test_what_a_group_buried_is_known_until_it_is_settled() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j", payload={"card": "4111"}))
    error = {"code": "GONE", "message": "no", "retryable": False, "trace": "Traceback: here"}
    inputs = (outcomes(outcome(("u", "j"), "failed", error=error)), request("k", priority="x"))
    engine = scene.engine
    out = decided(
        engine, NOW + 1,
        [RawRecord(topic, 0, 7, NOW, b"k", value, ()) for topic, value in inputs],
        alive=scene.alive, rooms=scene.rooms, definitions=scene.definitions,
    )
    records, told = list(out), engine.dead_letters
    engine.commit()
    assert [(letter.stage, letter.code, letter.job_id) for letter in told] == [
        ("attempt", "GONE", "j"), ("request", "INVALID_FIELD", "k")
    ]
    assert told[1].field == "priority"
    assert not engine.dead_letters
    # The trace is in the event of the attempt alone.
    events = events_in(records)
    assert [event["data"] for event in events if event["event"] == "attempt_failed"] == [
        {"trace": "Traceback: here"}
    ]
    holding = [(topic, value) for topic, _, _, value, _ in records if b"here" in (value or b"")]
    assert len(holding) == 1


@pytest.mark.parametrize("trace", [7, {"a": 1}, None, "x" * 100_000], ids=repr)
def test_a_trace_of_any_form_is_kept_within_bounds(trace: object) -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j"))
    error = {"code": "GONE", "message": "no", "retryable": False, "trace": trace}
    events = events_in(scene.group(NOW, outcomes(outcome(("u", "j"), "failed", error=error))))
    (data,) = [event["data"] for event in events if event["event"] == "attempt_failed"]
    assert data is None or len(data["trace"]) == 8_192
