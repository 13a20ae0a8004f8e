"""Dead letters: the headers that tell a record's origin and the cause, all of them strings.

Owns the header names, after Kafka Connect's. The record's own key, value and headers stay as they
were. Refuses to know who writes the record.
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "tidemill.dead."
HEADER_MEANINGS: Final = {
    "tidemill.dead.topic": "Topic of the original record.",
    "tidemill.dead.partition": "Its partition, decimal.",
    "tidemill.dead.offset": "Its offset, decimal.",
    "tidemill.dead.timestamp": "Its timestamp, epoch ms, decimal.",
    "tidemill.dead.stage": "request, command, outcome, event, message or attempt: what failed.",
    "tidemill.dead.error.code": "A word of `tidemill.schemas.words.ErrorCode`, or a handler's own.",
    "tidemill.dead.error.message": "What is wrong and what to do, for a person.",
    "tidemill.dead.error.field": "The field at fault; absent when there is none.",
    "tidemill.dead.user_id": "Whose job; absent when not known.",
    "tidemill.dead.job_id": "Which job; absent when not known.",
    "tidemill.dead.attempts": "stage attempt: attempts that were made, decimal.",
}
"""Every header that a dead letter may carry beside the original ones."""

ORIGINAL_HEADERS_MAX: Final = 64  # headers of the original that are kept; more would be an attack


def dead_headers(
    original: list[tuple[str, bytes | None]],
    *,
    topic: str,
    partition: int,
    offset: int,
    timestamp: int,
    stage: str,
    code: str,
    message: str,
    field: str | None = None,
    user_id: str | None = None,
    job_id: str | None = None,
    attempts: int | None = None,
) -> list[tuple[str, bytes | None]]:
    """The original headers and ours after them."""
    values: dict[str, str | None] = {
        "topic": topic,
        "partition": str(partition),
        "offset": str(offset),
        "timestamp": str(timestamp),
        "stage": stage,
        "error.code": code,
        "error.message": message,
        "error.field": field,
        "user_id": user_id,
        "job_id": job_id,
        "attempts": None if attempts is None else str(attempts),
    }
    ours: list[tuple[str, bytes | None]] = [
        (PREFIX + name, value.encode("utf-8", "replace"))
        for name, value in values.items()
        if value is not None
    ]
    return original[:ORIGINAL_HEADERS_MAX] + ours
