"""Records of the log as rows: what goes in as it is, what is refused and why."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from benchmarks.event_log import make_events
from tidemill.agents.sink.records import check, encode
from tidemill.schemas.codec import Refusal

EVENTS = [value for _, _, value in make_events(200)]
EVENT: dict[str, Any] = orjson.loads(EVENTS[0])


@dataclass
class Fake:
    """A record as the fetcher holds it."""

    offset: int
    value: bytes | None
    timestamp: int = 0
    key: bytes | None = b"user"
    headers: tuple[tuple[str, bytes | None], ...] = ()


def _changed(**fields: Any) -> bytes:
    return json.dumps({**EVENT, **fields}).encode()


def test_the_ledgers_events_pass_both_ways_with_the_same_content() -> None:
    records = [Fake(10 + index, value) for index, value in enumerate(EVENTS)]
    quick = encode(3, records, is_careful=False)
    careful = encode(3, records, is_careful=True)
    assert not quick.refused
    assert not careful.refused
    for offset, (fast, slow, value) in enumerate(
        zip(quick.rows, careful.rows, EVENTS, strict=True), start=10
    ):
        wanted = {"kafka_partition": 3, "kafka_offset": offset, **orjson.loads(value)}
        assert orjson.loads(fast) == orjson.loads(slow) == wanted


def test_an_event_in_another_order_of_fields_is_read_in_python() -> None:
    value = json.dumps(dict(reversed(EVENT.items())), indent=1).encode()
    found = encode(0, [Fake(5, value)], is_careful=False)
    assert orjson.loads(found.rows[0]) == {"kafka_partition": 0, "kafka_offset": 5, **EVENT}


def test_fields_of_a_newer_ledger_are_passed_over() -> None:
    value = json.dumps({**dict(reversed(EVENT.items())), "new_in_2030": {"a": [1]}}).encode()
    found = encode(0, [Fake(5, value)], is_careful=True)
    assert not found.refused
    assert orjson.loads(found.rows[0]) == {"kafka_partition": 0, "kafka_offset": 5, **EVENT}


def test_neighbours_of_a_refused_record_go_in() -> None:
    records = [Fake(1, EVENTS[0]), Fake(2, b"{"), Fake(3, None), Fake(4, EVENTS[1])]
    found = encode(0, records, is_careful=False)
    assert [orjson.loads(row)["kafka_offset"] for row in found.rows] == [1, 4]
    assert [(record.offset, refusal.code) for record, refusal in found.refused] == [
        (2, "UNDECODABLE"), (3, "EMPTY_RECORD"),
    ]
    assert found.data.count(b"\n") == 1


def test_bytes_that_are_no_text_are_found_inside_a_usual_event() -> None:
    value = EVENTS[0].replace(b"hello", b"\xff\xfe")
    found = encode(0, [Fake(1, value), Fake(2, EVENTS[1])], is_careful=False)
    assert [refusal.code for _, refusal in found.refused] == ["UNDECODABLE"]
    assert len(found.rows) == 1


REFUSED: dict[str, tuple[bytes | None, str, str | None]] = {
    "tombstone": (None, "EMPTY_RECORD", None),
    "text": (b"hello", "UNDECODABLE", None),
    "number": (b"7", "NOT_AN_OBJECT", None),
    "two events": (_changed() + _changed(), "UNDECODABLE", None),
    "deep": (b"[" * 10_000, "TOO_DEEP", None),
    "huge integer": (_changed(attempt=10**30), "INTEGER_TOO_LARGE", None),
    "version 2": (_changed(schema_version=2), "UNKNOWN_VERSION", "schema_version"),
    "version true": (_changed(schema_version=True), "UNKNOWN_VERSION", "schema_version"),
    "version 1.0": (_changed(schema_version=1.0), "UNKNOWN_VERSION", "schema_version"),
    "no version": (b"{}", "UNKNOWN_VERSION", "schema_version"),
    "own offset": (_changed(kafka_offset=1), "INVALID_FIELD", "kafka_offset"),
    "unknown state": (_changed(state_after="limbo"), "INVALID_FIELD", "state_after"),
    "empty user": (_changed(user_id=""), "INVALID_FIELD", "user_id"),
    "empty job": (_changed(job_id=""), "INVALID_FIELD", "job_id"),
    "empty id": (_changed(event_id=""), "INVALID_FIELD", "event_id"),
    "string for a number": (_changed(run="1"), "INVALID_FIELD", "run"),
    "run beyond 32 bits": (_changed(run=2**32), "INVALID_FIELD", "run"),
    "negative sequence": (_changed(sequence=-1), "INVALID_FIELD", "sequence"),
    "no instant": (_changed(occurred_at="soon"), "INVALID_FIELD", "occurred_at"),
    "instant without zone": (_changed(occurred_at="2025-11-24T16:00:00"), "INVALID_FIELD",
                             "occurred_at"),
    "instant beyond the type": (_changed(due_at="9999-01-01T00:00:00Z"), "INVALID_FIELD", "due_at"),
    "cause out of range": (_changed(cause={"topic": "t", "partition": -1, "offset": 0}),
                           "INVALID_FIELD", "cause"),
    "data is a list": (_changed(data=[1]), "INVALID_FIELD", "data"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_code_and_field(name: str) -> None:
    value, code, field = REFUSED[name]
    found = check(value)
    assert isinstance(found, Refusal)
    assert (found.code, found.field) == (code, field)
    assert found.message


def test_a_refusal_knows_whose_job_it_was() -> None:
    found = check(_changed(schema_version=9))
    assert isinstance(found, Refusal)
    assert (found.user_id, found.job_id) == (EVENT["user_id"], EVENT["job_id"])
