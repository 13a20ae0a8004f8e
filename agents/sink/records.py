"""From records of `jobs.events` to the bytes of one insert, or to a refusal.

Owns the form of a row on its way in, and the check of an event. Refuses to know batches and Kafka.

ClickHouse takes the record's JSON nearly as it is: only partition and offset are put in front, and
the table's EPHEMERAL columns take what is nested. So the usual event is not parsed in Python, which
would cost as much as everything else. One record that ClickHouse cannot take makes it refuse the
whole insert; then, and only then, every record of it is read and checked (`is_careful`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import orjson
from pydantic import ValidationError

from tidemill.agents.runtime.chunk import Record
from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.codec import (
    COUNT_MAX,
    EVENT_DEPTH_MAX,
    INTEGER_MAX,
    Refusal,
    owner_of,
    parse_json,
)
from tidemill.schemas.events import JobEvent
from tidemill.schemas.first_problem import first_problem
from tidemill.schemas.instants import instant_text
from tidemill.schemas.requests import INSTANT_MAX, INSTANT_MIN
from tidemill.schemas.words import ErrorCode, EventKind

COLUMNS: Final = (
    "kafka_partition", "kafka_offset", "schema_version", "event_id", "event", "job_id", "user_id",
    "type", "queue", "priority", "incarnation", "run", "sequence", "attempt", "epoch",
    "occurred_at", "state_before", "state_after", "reason", "error", "worker_id", "due_at",
    "wait_ms", "run_ms", "cause", "data", "tags", "batch_id", "parent_job_id",
)
"""What an insert names: the position, and the fields of `JobEvent` as they are."""

INSERT_SETTINGS: Final[dict[str, object]] = {
    "date_time_input_format": "best_effort",  # RFC 3339 with Z
    "input_format_null_as_default": 1,
    "input_format_json_read_objects_as_strings": 1,  # `data` stays JSON text
    # A ledger may be newer than its sink, and its events then have more fields.
    "input_format_skip_unknown_fields": 1,
    "input_format_json_ignore_unknown_keys_in_named_tuple": 1,
    # An insert is one block: all of it or nothing, and one token.
    "max_insert_block_size": 1_048_576,
    "input_format_parallel_parsing": 0,
}

_PLACE: Final = COLUMNS[:2]  # not the event's own
_FIELDS: Final = frozenset(COLUMNS[2:])

# What nearly every value begins with: `EventWriter` puts the version first.
_USUAL_START: Final = b'{"schema_version":%d,' % SCHEMA_VERSION
_ROW: Final = b'{"kafka_partition":%d,"kafka_offset":%d,%b'

# Whole numbers that ClickHouse would cut without a word.
_BOUNDS: Final = {
    "incarnation": INTEGER_MAX, "run": COUNT_MAX, "sequence": COUNT_MAX, "attempt": COUNT_MAX,
    "epoch": COUNT_MAX, "wait_ms": INTEGER_MAX, "run_ms": INTEGER_MAX,
}
_NOT_EMPTY: Final = ("event_id", "job_id", "user_id")
# Events that may tell of a job that nobody has asked for: it has no state.
_STATELESS: Final = frozenset(
    {
        EventKind.CANCEL_KEPT.value, EventKind.SIGNAL_KEPT.value,
        EventKind.COMMAND_REFUSED.value,
    }
)
# A row's `occurred_at` is later than this instant by a constraint of the table.
_NO_INSTANT: Final = INSTANT_MIN


@dataclass(slots=True)
class Encoded:
    """Records as they go in, and those that cannot."""

    rows: list[bytes] = field(default_factory=list)
    refused: list[tuple[Record, Refusal]] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        """The rows as they stand in the body of an insert."""
        return b"\n".join(self.rows)


def encode(partition: int, records: Sequence[Record], *, is_careful: bool) -> Encoded:
    """Rows of `records`; with `is_careful` no row is left that ClickHouse would refuse."""
    found = Encoded()
    add = found.rows.append
    for record in records:
        value = record.value
        if not is_careful and value is not None and value.startswith(_USUAL_START):
            add(_ROW % (partition, record.offset, value[1:]))
            continue
        checked = check(value)
        if isinstance(checked, Refusal):
            found.refused.append((record, checked))
        else:
            add(_ROW % (partition, record.offset, _json(checked)[1:]))
    if not is_careful and not _is_text(found.data):
        return encode(partition, records, is_careful=True)
    return found


def _json(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # a result may be as deep as orjson goes, and the event is around it
        return json.dumps(body, separators=(",", ":")).encode()


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def check(value: bytes | None) -> dict[str, Any] | Refusal:
    """An event's fields when it may go in, else why not. Never raises."""
    body = parse_json(value, EVENT_DEPTH_MAX)
    if isinstance(body, Refusal):
        return body
    if not isinstance(body, dict):
        return Refusal(ErrorCode.NOT_AN_OBJECT, "the event is not a JSON object")
    user_id, job_id, type_name = owner_of(body)

    def refuse(code: ErrorCode, message: str, field: str) -> Refusal:
        return Refusal(
            code, message, field=field, user_id=user_id, job_id=job_id, type=type_name
        )

    version = body.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool | float):
        text = repr(version)[:40]
        return refuse(
            ErrorCode.UNKNOWN_VERSION,
            f"schema_version {text} is not known, this sink reads {SCHEMA_VERSION}; upgrade it and "
            "produce the record again",
            "schema_version",
        )
    try:
        # What is in `data` is anybody's, and may be nested deeper than pydantic reads.
        flat = body if not isinstance(body.get("data"), dict) else {**body, "data": {}}
        JobEvent.model_validate_json(_json(flat), strict=True)
    except ValidationError as error:
        first = first_problem(error)
        name = first.path or "value"
        return refuse(ErrorCode.INVALID_FIELD, f"field {name!r}: {first.message}", name)
    for name in _PLACE:
        if name in body:
            return refuse(
                ErrorCode.INVALID_FIELD, f"field {name!r}: it is the record's place in Kafka", name
            )
    body = {name: value for name, value in body.items() if name in _FIELDS}
    wrong = _wrong_value(body)
    if wrong is not None:
        return refuse(ErrorCode.INVALID_FIELD, f"field {wrong[0]!r}: {wrong[1]}", wrong[0])
    return body


def _wrong_value(body: dict[str, Any]) -> tuple[str, str] | None:
    """The first field whose value ClickHouse would refuse or change, and what is wrong with it."""
    for name in _NOT_EMPTY:
        if not body[name]:
            return name, "must not be empty"
    for name, most in _BOUNDS.items():
        number = body[name]
        if number is not None and not 0 <= number <= most:
            return name, f"must be 0 to {most}"
    cause = body["cause"]
    if cause is not None and not (
        0 <= cause["partition"] <= COUNT_MAX and 0 <= cause["offset"] <= INTEGER_MAX
    ):
        return "cause", "its partition or offset is out of range"
    is_stateless = body["sequence"] is None and body["event"] in _STATELESS
    if body["state_after"] is None and not is_stateless:
        return "state_after", "must be a state"
    for name in ("occurred_at", "due_at"):
        if body[name] is None:
            continue
        moment = _instant(body[name])
        if moment is None or (name == "occurred_at" and moment == _NO_INSTANT):
            return name, (
                "must be RFC 3339, as in 2025-11-24T16:00:00.000Z, between the years 1970 and 2299"
            )
        # As the ledger writes it: ISO 8601 has forms that ClickHouse does not read.
        body[name] = instant_text((moment - INSTANT_MIN) // timedelta(milliseconds=1))
    return None


def _instant(text: str) -> datetime | None:
    """The instant when every row can hold it."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    is_held = moment.tzinfo is not None and INSTANT_MIN <= moment <= INSTANT_MAX
    return moment if is_held else None
