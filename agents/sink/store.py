"""Whether committed offsets hold for the store at hand, and where it lacks rows if they do not.

Owns the marks: a store keeps each one in `sink_marks`, and the note beside a committed offset names
the one that was newest then. A mark that the store does not have tells that the rows went into
another one: this one is new, or was put back from an older copy. Its own rows then say where
reading goes on. Refuses to know how notes are committed (`intents`) and rows inserted (`writer`).

Nothing is remembered in this process alone. Until the first intents of a partition are committed
its old note stands, and each start comes to the same place; from then on note and offset are those
of this store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Final, TypeVar
from uuid import uuid4

import orjson
from faust.types import TP

from tidemill.agents import clocks
from tidemill.agents.clickhouse.engine import Engine, EngineError
from tidemill.agents.runtime.chunk import Record
from tidemill.agents.runtime.failstop import fail_stop
from tidemill.agents.runtime.producer import CallThread
from tidemill.agents.sink.batches import InsertIntent
from tidemill.agents.sink.feeds import Feed
from tidemill.agents.sink.notes import begun_of, mark_of

logger = logging.getLogger("tidemill.sink")

TABLE: Final = "sink_marks"
# A copy of the store that is older than its newest mark is told from the store itself.
RENEW_SECONDS: Final = 600.0
# Between two tries while ClickHouse is away: nothing can be read before it has answered.
RETRY_SECONDS: Final = 2.0
PLACES_SHOWN: Final = 8  # partitions named in one line
# Offsets before a batch at which the log has no record, but the markers of transactions: so many
# are looked at, one by one.
MARKERS_MAX: Final = 16

#: Reads one record of the log by topic, partition and offset; None when there is none just there.
ReadRecord = Callable[[str, int, int], Record | None]

T = TypeVar("T")


class Store:
    """The store that all writers of this process fill. `thread` makes the calls that block."""

    def __init__(
        self, engine: Engine, feeds: Iterable[Feed], thread: CallThread, read_record: ReadRecord
    ) -> None:
        self._engine = engine
        self._feeds = {feed.topic: feed for feed in feeds}
        self._thread = thread
        self._read_record = read_record
        #: The newest mark of this process; "" before the first.
        self.mark = ""
        self._renewed_at = 0.0
        self._known: set[str] = set()
        # Partition -> the note beside its committed offset, which does not hold here.
        self._refused: dict[TP, str] = {}
        self._lost: set[TP] = set()

    # -- what holds ----------------------------------------------------------------------------

    def holds(self, tp: TP, note: str | None) -> bool:
        """Whether an offset with this note tells how far this store is; asked after `places`."""
        return self._refused.get(tp) != (note or "")

    def has_lost(self, tp: TP) -> bool:
        """Whether rows of a partition went into a store that is gone: its gaps are a loss."""
        return tp in self._lost

    async def places(
        self, committed: Mapping[TP, tuple[int, str]], wanted: Collection[TP]
    ) -> dict[TP, int]:
        """Where reading goes on in those of `wanted` whose committed offset does not hold here.

        Behind the last row that this store has of the partition; 0, the log's start, without one.
        Waits while ClickHouse is away.
        """
        await self._patiently(partial(self._learn, [note for _, note in committed.values()]))
        foreign = {
            tp for tp, (_, note) in committed.items()
            if (mark := mark_of(note)) is not None and mark not in self._known
        }
        # Once one is foreign, no other is believed: a note may be younger than the copy and name a
        # mark that is older. Rows always tell how far they reach.
        asked = set(wanted) if foreign else {
            tp for tp in wanted if tp not in committed or mark_of(committed[tp][1]) is None
        }
        found = await self._patiently(partial(self._behind_rows, asked)) if asked else {}
        begun_here: set[TP] = set()
        if foreign:
            begun_here = await self._patiently(partial(self._begun_here, committed, found))
        places = {
            tp: found.get(tp, 0) for tp in asked - begun_here
            # A note of an earlier version is believed where this store has rows.
            if foreign or (tp in found) != (tp in committed)
        }
        # Offset 0 holds everywhere.
        places = {tp: at for tp, at in places.items() if at or committed.get(tp, (0, ""))[0]}
        self._refused = {tp: committed[tp][1] for tp in places if tp in committed}
        self._lost = foreign
        if self._refused:
            self._tell(places)
            # What is committed from here on has a mark that no note has yet.
            await self._patiently(self._make_mark)
        return places

    def _tell(self, places: Mapping[TP, int]) -> None:
        told = sorted(places.items())
        words = ", ".join(
            f"{tp.topic}-{tp.partition} from {place or 'the start'}"
            for tp, place in told[:PLACES_SHOWN]
        )
        more = len(told) - PLACES_SHOWN
        logger.warning(
            "%s is not the store that the committed offsets tell of: it is new, or an older copy. "
            "Its rows are made again as far as the log reaches back: %s%s",
            self._engine.dsn, words, f" and {more} more" if more > 0 else "",
        )

    # -- marks ---------------------------------------------------------------------------------

    async def renew(self) -> None:
        """A new mark when it is time; asked before intents are written. A failure waits."""
        if clocks.monotonic() - self._renewed_at < RENEW_SECONDS:
            return
        try:
            await self._thread.call(self._make_mark)
        except EngineError as error:
            logger.debug("no new mark, the former one stays: %s", error)

    def verify(self) -> None:
        """Ends the process when the store was replaced under it; blocks, raises EngineError."""
        if self.mark and not self._marks_there([self.mark]):
            fail_stop(
                f"{self._engine.dsn} is not the store into which rows went before; starting anew "
                "to see what this one has"
            )

    def _learn(self, notes: Collection[str]) -> None:
        if not self.mark:
            self._make_mark()
        unknown = {mark for note in notes if (mark := mark_of(note)) is not None} - self._known
        if unknown:
            self._known |= self._marks_there(sorted(unknown))

    def _marks_there(self, marks: list[str]) -> set[str]:
        rows = self._engine.query(
            f"SELECT mark FROM {TABLE} WHERE mark IN {{marks:Array(String)}}", {"marks": marks}
        )
        return {str(row["mark"]) for row in rows}

    def _make_mark(self) -> None:
        mark = uuid4().hex
        self._engine.insert_bytes(TABLE, orjson.dumps({"mark": mark}), columns=("mark",))
        self.mark, self._renewed_at = mark, clocks.monotonic()
        self._known.add(mark)

    # -- rows ----------------------------------------------------------------------------------

    def _behind_rows(self, tps: Collection[TP]) -> dict[TP, int]:
        """Behind the last row of each partition; those without a row of this log are left out."""
        found: dict[TP, int] = {}
        for topic, feed in self._feeds.items():
            partitions = sorted(tp.partition for tp in tps if tp.topic == topic)
            if not partitions:
                continue
            rows = self._engine.query(
                f"SELECT kafka_partition, max(kafka_offset) AS last FROM {feed.table}"
                " WHERE kafka_partition IN {partitions:Array(UInt32)} GROUP BY kafka_partition",
                {"partitions": partitions},
            )
            for row in rows:
                partition, last = int(row["kafka_partition"]), int(row["last"])
                if self._is_of_this_log(feed, partition, last):
                    found[TP(topic, partition)] = last + 1
        return found

    def _is_of_this_log(self, feed: Feed, partition: int, offset: int) -> bool:
        """Whether the log has the record of a row, or has deleted it: a topic that was made again
        has others at its offsets."""
        record = self._read_record(feed.topic, partition, offset)
        if record is None:
            return True
        names = ", ".join(feed.identity)
        rows = self._engine.query(
            f"SELECT {names} FROM {feed.table} WHERE kafka_partition = {{partition:UInt32}}"
            " AND kafka_offset = {offset:UInt64}",
            {"partition": partition, "offset": offset},
        )
        made = feed.encode(partition, [record], is_careful=True).rows
        wanted = _identity(orjson.loads(made[0]), feed) if made else None
        return any(_identity(row, feed) == wanted for row in rows)

    def _begun_here(
        self, committed: Mapping[TP, tuple[int, str]], found: Mapping[TP, int]
    ) -> set[TP]:
        """Partitions whose note tells of an insert that was begun in this very store.

        It may have been cut between the table and those of its views. The rows of the table do not
        tell that: the insert must be made again with its token.
        """
        begun = {
            tp: told for tp, (offset, note) in committed.items()
            if mark_of(note) in self._known and (told := begun_of(note)) is not None
            and self._reaches(tp, offset, told, found.get(tp, 0))
        }
        # The notes of one insert are believed together, or none of them.
        return {
            tp for tp, told in begun.items()
            if not any(
                (other := TP(tp.topic, partition)) not in begun
                and _token(committed.get(other)) == told.token
                for partition in told.partitions
            )
        }

    def _reaches(self, tp: TP, offset: int, begun: InsertIntent, behind: int) -> bool:
        """Whether the rows end within the batch or right before it: those of an older copy of this
        store end further ahead."""
        if behind >= offset:
            return behind <= begun.last + 1
        return behind >= offset - MARKERS_MAX and all(
            self._read_record(tp.topic, tp.partition, between) is None
            for between in range(behind, offset)
        )

    async def _patiently(self, call: Callable[[], T]) -> T:
        while True:
            try:
                return await self._thread.call(call)
            except EngineError as error:
                if not error.is_retryable:
                    fail_stop(f"ClickHouse does not tell what it has: {error}", error)
                logger.warning("ClickHouse does not tell what it has, trying again: %s", error)
            await asyncio.sleep(RETRY_SECONDS)


def _identity(row: Mapping[str, Any], feed: Feed) -> list[str]:
    return [str(row.get(name)) for name in feed.identity]


def _token(committed: tuple[int, str] | None) -> str | None:
    """Of the insert that a note tells of."""
    begun = begun_of(committed[1]) if committed is not None else None
    return None if begun is None else begun.token
