"""Records of jobs.dead as rows: whatever stands there becomes one that ClickHouse takes."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.unit.test_sink_records import Fake
from tidemill.agents.sink.dead_records import (
    COLUMNS,
    KEY_LENGTH_MAX,
    NAME_LENGTH_MAX,
    VALUE_LENGTH_MAX,
    encode_dead,
)
from tidemill.schemas.dead import dead_headers
from tidemill.schemas.rows import REFUSED_REQUESTS

NOW = 1_764_000_000_000
Headers = tuple[tuple[str, bytes | None], ...]


def headers_of(**given: Any) -> Headers:
    usual: dict[str, Any] = {
        "topic": "jobs.requested", "partition": 2, "offset": 7, "timestamp": NOW,
        "stage": "request", "code": "INVALID_FIELD", "message": "field 'x': no",
    }
    return tuple(dead_headers([], **{**usual, **given}))


def rows_of(*records: Fake) -> list[dict[str, Any]]:
    found = encode_dead(3, records, is_careful=False)
    assert not found.refused
    return [orjson.loads(row) for row in found.rows]


def test_a_refused_request_is_a_row() -> None:
    headers = headers_of(field="x", user_id="u", job_id="j")
    (row,) = rows_of(Fake(9, b'{"a":1}', NOW, b"key", headers))
    assert tuple(row) == COLUMNS == tuple(REFUSED_REQUESTS)
    assert (row["kafka_partition"], row["kafka_offset"]) == (3, 9)
    assert (row["source_topic"], row["source_partition"], row["source_offset"]) == (
        "jobs.requested", 2, 7
    )
    assert (row["user_id"], row["job_id"], row["field"]) == ("u", "j", "x")
    assert (row["key"], row["value"], row["value_bytes"]) == ("key", '{"a":1}', 7)
    assert row["refused_at"] == row["source_at"] == "2025-11-24T16:00:00.000Z"


def test_a_failed_job_is_none() -> None:
    assert not rows_of(Fake(1, b"{}", NOW, b"u", headers_of(stage="attempt")))


@pytest.mark.parametrize(
    ("headers", "value", "timestamp"),
    [
        ((), None, -1),
        ((), b"\xff\xfe", 2**62),
        ((("tidemill.dead.partition", b"-1"), ("tidemill.dead.offset", b"9" * 40)), b"", 0),
        ((("tidemill.dead.partition", b"\xc2\xb2"), ("tidemill.dead.offset", None)), b"", 0),
        ((("tidemill.dead.timestamp", b"99999999999999"),), b"", 0),
        ((("tidemill.dead.stage", b"\xff"), ("tidemill.dead.error.message", b"\x1b[2J")), b"x", 5),
        ((("tidemill.dead.user_id", "ü".encode() * 5_000),), "ü".encode() * 100_000, NOW),
    ],
    ids=range(7),
)
def test_whatever_a_stranger_wrote_is_bounded_and_safe(
    headers: Headers, value: bytes | None, timestamp: int
) -> None:
    (row,) = rows_of(Fake(1, value, timestamp, b"\x00" * 5_000, headers))
    assert row["source_partition"] is None
    assert row["source_offset"] is None
    assert row["source_at"] is None
    assert row["value_bytes"] == len(value or b"")
    assert len(row["key"]) == KEY_LENGTH_MAX
    assert len(row["value"]) <= VALUE_LENGTH_MAX
    for name in ("stage", "code", "field", "user_id", "job_id"):
        assert len(row[name]) <= NAME_LENGTH_MAX
    assert row["stage"]
    for text in row.values():
        if isinstance(text, str):
            assert text.isprintable(), ascii(text)
