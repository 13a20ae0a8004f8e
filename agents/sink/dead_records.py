"""From records of `jobs.dead` to rows of `refused_requests`.

Owns the reading of a dead letter's headers and the bounds of what is kept of the record. Refuses to
know batches and Kafka. Whatever stands on the topic becomes a row that ClickHouse takes, so nothing
here is refused a second time. A failed job is no refused record: its story is in `jobs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson

from tidemill.agents.runtime.chunk import Record
from tidemill.agents.sink.records import Encoded
from tidemill.schemas.codec import COUNT_MAX, INTEGER_MAX
from tidemill.schemas.dead import PREFIX
from tidemill.schemas.instants import instant_text
from tidemill.schemas.safe_text import safe_text

COLUMNS: Final = (
    "kafka_partition", "kafka_offset", "refused_at", "stage", "code", "message", "field",
    "source_topic", "source_partition", "source_offset", "source_at", "user_id", "job_id", "key",
    "value", "value_bytes",
)
KEY_LENGTH_MAX: Final = 256  # characters of a record's key: whose it was
VALUE_LENGTH_MAX: Final = 8_192  # of its value: what somebody sees at once; the record has all
TEXT_LENGTH_MAX: Final = 2_000  # of a message, as in events
NAME_LENGTH_MAX: Final = 512  # of ids, codes and names
INSTANT_MS_MAX: Final = 7_258_118_399_999  # the end of 2199, which DateTime64 holds
FAILED_JOB: Final = b"attempt"
UNKNOWN_STAGE: Final = "unknown"  # of a record that no part of ours wrote

_STAGE: Final = f"{PREFIX}stage"


def encode_dead(partition: int, records: Sequence[Record], *, is_careful: bool) -> Encoded:
    """Rows of `records`, in their order."""
    found = Encoded()
    for record in records:
        headers = dict(record.headers)
        if headers.get(_STAGE) != FAILED_JOB:
            found.rows.append(row_of(partition, record, headers))
    return found


def row_of(partition: int, record: Record, headers: dict[str, bytes | None]) -> bytes:
    """The row of a refused record, as JSON."""

    def text(name: str, length_max: int = NAME_LENGTH_MAX) -> str:
        return _text(headers.get(PREFIX + name), length_max)

    value = record.value or b""
    return orjson.dumps(
        {
            "kafka_partition": partition,
            "kafka_offset": record.offset,
            "refused_at": _instant(record.timestamp) or instant_text(0),
            "stage": text("stage") or UNKNOWN_STAGE,
            "code": text("error.code"),
            "message": text("error.message", TEXT_LENGTH_MAX),
            "field": text("error.field"),
            "source_topic": text("topic"),
            "source_partition": _number(headers.get(f"{PREFIX}partition"), COUNT_MAX),
            "source_offset": _number(headers.get(f"{PREFIX}offset"), INTEGER_MAX),
            "source_at": _instant(_number(headers.get(f"{PREFIX}timestamp"), INSTANT_MS_MAX)),
            "user_id": text("user_id"),
            "job_id": text("job_id"),
            "key": _text(record.key, KEY_LENGTH_MAX),
            "value": _text(value, VALUE_LENGTH_MAX),
            "value_bytes": len(value),
        }
    )


def _text(value: bytes | None, length_max: int) -> str:
    # A character has four bytes at most: the rest of a large value is not looked at.
    return safe_text((value or b"")[: 4 * length_max].decode("utf-8", "replace"))[:length_max]


def _number(value: bytes | None, most: int) -> int | None:
    if value is None or not value.isdigit() or len(value) > len(str(most)):
        return None
    number = int(value)
    return number if number <= most else None


def _instant(epoch_ms: int | None) -> str | None:
    if epoch_ms is None or not 0 <= epoch_ms <= INSTANT_MS_MAX:
        return None
    return instant_text(epoch_ms)
