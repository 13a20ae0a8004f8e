"""The topics of one engine, in memory.

Owns appending, reading, and what compaction leaves of the state topic. Refuses to know what is in a
record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tidemill.schemas.batch_builder import OutRecord

Headers = Sequence[tuple[str, bytes | None]]


class Record(NamedTuple):
    """One record; `timestamp` in epoch ms."""

    topic: str
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int


class Log:
    """All topics, each of one partition. `state` is kept as compaction would leave it."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._topics: defaultdict[str, list[Record]] = defaultdict(list)
        self.rows: dict[bytes, bytes] = {}
        #: Grows with each record.
        self.appended = 0

    def append(
        self, topic: str, value: bytes | None, now_ms: int, key: bytes | None = None,
        headers: Headers = (),
    ) -> Record:
        """One record at the end of its topic."""
        records = self._topics[topic]
        record = Record(topic, len(records), key, value, headers, now_ms)
        records.append(record)
        self.appended += 1
        return record

    def commit(self, records: Iterable[OutRecord], now_ms: int) -> None:
        """What one transaction has written."""
        for topic, _, key, value, headers in records:
            if topic != self._state:
                self.append(topic, value, now_ms, key, headers or ())
            elif value is None:
                self.rows.pop(key or b"", None)
            else:
                self.rows[key or b""] = value

    def read(self, topic: str, offset: int = 0) -> list[Record]:
        """All records from `offset` on."""
        return self._topics[topic][offset:]

    def end(self, topic: str) -> int:
        """The offset of the next record."""
        return len(self._topics[topic])
