"""Gaps in what the sink reads, told in `log_gaps` before anything behind them is committed.

Owns which gaps wait to be told and their rows. Refuses to know how one is noticed
(`tidemill.agents.runtime.transport`). A gap means rows that will never be there: retention took
records before the sink had read them.
"""

from __future__ import annotations

import logging
from typing import Final

import orjson

from tidemill.agents.clickhouse.engine import Engine
from tidemill.agents.runtime.inputs import Gap
from tidemill.agents.sink.feeds import Feed

logger = logging.getLogger("tidemill.sink")

TABLE: Final = "log_gaps"
COLUMNS: Final = ("topic", "kafka_partition", "first_offset", "last_offset")


class Gaps:
    """The gaps of one feed that are in no row yet."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._waiting: list[tuple[Gap, bool]] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def note(self, gap: Gap, *, is_lost: bool = False) -> None:
        """One was noticed; the same one may be noticed again and again, and is one row.

        `is_lost`: rows of it went into a store that is gone, so from the start of the log on it is
        missing whatever the feed.

        A topic that was made again, or cut, lacks nothing that was to be read.
        """
        if gap.wanted < gap.start:
            self._waiting.append((gap, is_lost))

    def tell(self, engine: Engine) -> None:
        """Write the rows of all that wait; blocks. Raises EngineError, then they wait on."""
        while self._waiting:
            gap, is_lost = self._waiting[0]
            first = self._first_of(gap, engine, is_lost=is_lost)
            if first is not None:
                self._insert(engine, gap, first)
            self._waiting.pop(0)

    def _first_of(self, gap: Gap, engine: Engine, *, is_lost: bool) -> int | None:
        """The first missing offset; None when nothing is missing.

        Where it is 0, or Kafka has forgotten how far this group had read, the rows say it. What
        follows the last one may be the marker of its transaction, which is no record.
        """
        if gap.wanted:
            return gap.wanted
        row = engine.query(
            f"SELECT count() AS rows, max(kafka_offset) AS last FROM {self._feed.table}"
            " WHERE kafka_partition = {partition:UInt32}",
            {"partition": gap.partition},
        )[0]
        if not int(row["rows"]):
            return 0 if self._feed.is_history or is_lost else None
        first = int(row["last"]) + 1
        return first if first < gap.start - 1 else None

    def _insert(self, engine: Engine, gap: Gap, first: int) -> None:
        row = {
            "topic": self._feed.topic, "kafka_partition": gap.partition,
            "first_offset": first, "last_offset": gap.start - 1,
        }
        engine.insert_bytes(TABLE, orjson.dumps(row), columns=COLUMNS)
        logger.error(
            "offsets %d to %d of %s, partition %d, were deleted before they were read: their rows "
            "are missing in %s; lengthen the topic's retention", first, gap.start - 1,
            self._feed.topic, gap.partition, self._feed.table,
        )
