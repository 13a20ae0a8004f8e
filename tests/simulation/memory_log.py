"""A Kafka in memory, as far as the engine can tell: topics, offsets with gaps, transactions.

Owns appending and reading. Refuses to know what is in a record. A committed transaction leaves a
control record in each partition that it wrote to, so that offsets have gaps as they do in Kafka.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from tests.chaos.rawlog import RawRecord
from tidemill.schemas.batch_builder import OutRecord

Place = tuple[str, int]
"""(topic, partition)"""


class MemoryLog:
    """All topics of one installation. Nothing uncommitted is ever visible."""

    def __init__(self) -> None:
        self._records: dict[Place, list[RawRecord]] = defaultdict(list)
        self._ends: dict[Place, int] = defaultdict(int)
        self.appended = 0  # grows with each record: tells whether anything moved

    def append(
        self,
        topic: str,
        partition: int,
        *,
        key: bytes | None,
        value: bytes | None,
        now_ms: int,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> RawRecord:
        """One acknowledged record outside any transaction."""
        place = (topic, partition)
        record = RawRecord(
            topic, partition, self._ends[place], now_ms, key, value, tuple(headers)
        )
        self._records[place].append(record)
        self._ends[place] += 1
        self.appended += 1
        return record

    def commit(self, records: Iterable[OutRecord], now_ms: int) -> None:
        """One transaction: all of it is there afterwards."""
        touched: set[Place] = set()
        for topic, partition, key, value, headers in records:
            self.append(
                topic, partition, key=key, value=value, now_ms=now_ms, headers=headers or ()
            )
            touched.add((topic, partition))
        for place in touched:
            self._ends[place] += 1  # the commit marker

    def read(self, place: Place, offset: int, most: int) -> list[RawRecord]:
        """Up to `most` records from `offset` on, or from the next one that there is."""
        found: list[RawRecord] = []
        records = self._records[place]
        # Offsets are nearly dense: the record of an offset cannot lie behind its number.
        index = min(offset, len(records))
        while index > 0 and records[index - 1].offset >= offset:
            index -= 1
        for record in records[index:]:
            if len(found) == most:
                break
            if record.offset >= offset:
                found.append(record)
        return found

    def end(self, place: Place) -> int:
        """The offset of the next record."""
        return self._ends[place]

    def topic(self, name: str) -> list[RawRecord]:
        """Every record of a topic, partition by partition, in order."""
        places = sorted(place for place in self._records if place[0] == name)
        return [record for place in places for record in self._records[place]]
