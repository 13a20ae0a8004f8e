"""What goes in where: the topics that the sink reads, and the table that each one fills.

Owns the pairs. Refuses to know how rows get in. Each topic has inserts of its own: a flood of the
one leaves the other alone, and a token names records of one topic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tidemill.agents.runtime.chunk import Record
from tidemill.agents.sink import dead_records, records
from tidemill.agents.sink.records import Encoded
from tidemill.schemas.topics import Topics


class Encode(Protocol):
    """Makes rows of the records of one partition."""

    def __call__(
        self, partition: int, records: Sequence[Record], /, *, is_careful: bool
    ) -> Encoded: ...


@dataclass(frozen=True, slots=True)
class Feed:
    """One topic and its table."""

    topic: str
    table: str
    columns: tuple[str, ...]
    encode: Encode
    #: Columns by which a row is known as that of a record.
    identity: tuple[str, ...]
    #: Whether what was there before the sink's first start is missing when it is gone.
    is_history: bool


def events_of(topics: Topics) -> Feed:
    """The log of transitions."""
    return Feed(
        topics.events, "job_events", records.COLUMNS, records.encode, ("event_id",), True
    )


def refused_of(topics: Topics) -> Feed:
    """The records that were refused."""
    return Feed(
        topics.dead, "refused_requests", dead_records.COLUMNS, dead_records.encode_dead,
        ("source_topic", "source_partition", "source_offset", "value_bytes"), False,
    )
