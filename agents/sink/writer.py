"""The sink's loop: choose an insert, write its intents down, insert it, ack it.

Owns the order of these steps and every repeat of them. Refuses to know how a row is made
(`records`), what goes in next (`inboxes`) and how intents are kept (`intents`).

One insert is on its way at a time: those of one process share one engine, and what waits
meanwhile makes the next one larger, which is cheaper. What waits is bounded in bytes; beyond that
the consumer fetches nothing more.

While a burst lasts, rows wait for some seconds: on a machine that it shares, what the sink takes
then is taken from the jobs, and the caches with it. It makes up for it afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from faust.types import TP

from tidemill.agents.clickhouse.engine import CHDB_SCHEME, Engine, EngineError
from tidemill.agents.crash import crash_point
from tidemill.agents.runtime.app import RoleApp
from tidemill.agents.runtime.chunk import Chunk, Record
from tidemill.agents.runtime.errors import RecoverableError
from tidemill.agents.runtime.failstop import fail_stop
from tidemill.agents.runtime.inputs import Gap
from tidemill.agents.runtime.producer import BatchProducer, CallThread
from tidemill.agents.sink.batches import Batch, BatchLimits, Insert
from tidemill.agents.sink.feeds import Feed
from tidemill.agents.sink.gaps import Gaps
from tidemill.agents.sink.inboxes import Inboxes
from tidemill.agents.sink.intents import Intents
from tidemill.agents.sink.records import INSERT_SETTINGS, Encoded
from tidemill.agents.sink.store import Store
from tidemill.schemas.batch_builder import OutRecord
from tidemill.schemas.codec import Refusal
from tidemill.schemas.dead import dead_headers

logger = logging.getLogger("tidemill.sink")

# The token holds in the views' tables as well: an insert cut short is completed there.
DEDUPLICATION: Final[dict[str, object]] = {
    "insert_deduplicate": 1,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "async_insert": 0,
}
# Waits between tries while ClickHouse is away: doubled from the first up to the last.
RETRY_SECONDS_MIN: Final = 0.1
RETRY_SECONDS_MAX: Final = 3.0
# At most one line in this time while it is away.
OUTAGE_LOG_SECONDS: Final = 10.0
# After intents that Kafka refused: a rebalance is under way, its chunks are about to go stale.
REFUSED_PAUSE_SECONDS: Final = 0.2
# How long a stop or a rebalance waits for the insert in flight; what is cut comes again.
FINISH_SECONDS_MAX: Final = 3.0


class Outage:
    """How long ClickHouse has been away, and when to say so."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._said_at = 0.0
        self._pause = RETRY_SECONDS_MIN

    @property
    def is_on(self) -> bool:
        """Whether the last call failed."""
        return self._since is not None

    def next_pause(self, error: Exception, now: float) -> float:
        """Seconds until the next try."""
        if self._since is None:
            self._since, self._said_at = now, float("-inf")
        if now - self._said_at >= OUTAGE_LOG_SECONDS:
            self._said_at = now
            logger.warning(
                "ClickHouse does not take rows since %.0f s, trying again; jobs are not "
                "affected: %s", now - self._since, error,
            )
        pause, self._pause = self._pause, min(self._pause * 2, RETRY_SECONDS_MAX)
        return pause

    def end(self, now: float) -> None:
        """It took rows."""
        if self._since is not None:
            logger.info("ClickHouse takes rows again after %.1f s", now - self._since)
        self._since, self._pause = None, RETRY_SECONDS_MIN


class SinkWriter:
    """Takes chunks of one topic, gives rows to ClickHouse. Those of a process share `intents`, and
    `thread`, in which one insert is made at a time."""

    def __init__(
        self,
        app: RoleApp,
        engine: Engine,
        batch_producer: BatchProducer,
        feed: Feed,
        *,
        intents: Intents,
        store: Store,
        thread: CallThread,
        dead_topic: str,
        partitions: int,
        limits: BatchLimits,
    ) -> None:
        self._app = app
        self._engine = engine
        self._batch_producer = batch_producer
        self._feed = feed
        self._topic = topic = feed.topic
        self._dead_topic = dead_topic
        self._partitions = partitions
        self._intents = intents
        self._store = store
        self._thread = thread
        self._outage = Outage()
        self._inboxes = Inboxes(
            limits,
            is_joint=engine.dsn.startswith(CHDB_SCHEME),
            passed_to=lambda partition: app.chunks.passed_to(topic, partition),
        )
        self._gaps = Gaps(feed)
        self._assignments = 0
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_stopping = False
        #: Rows that were inserted, for the log and for tests.
        self.rows_total = 0
        self._working = asyncio.create_task(self._work())
        self._working.add_done_callback(_on_work_end)

    @property
    def topic(self) -> str:
        """What it reads."""
        return self._topic

    # -- in ------------------------------------------------------------------------------------

    def add(self, chunk: Chunk) -> None:
        """Take a chunk that the agent received."""
        if chunk.is_stale:
            return
        self._notice_rebalance()
        self._inboxes.add(chunk, time.monotonic(), time.time())
        self._arrived.set()

    def credit(self, partition: int) -> int:
        """How many more records of a partition may come now.

        Who makes it grow wakes the consumer.
        """
        self._notice_rebalance()
        return self._inboxes.credit(partition, time.monotonic())

    def note_gap(self, gap: Gap) -> None:
        """Records were gone before they were read: told before anything behind them goes in."""
        self._gaps.note(gap, is_lost=self._store.has_lost(TP(gap.topic, gap.partition)))
        self._arrived.set()

    def may_pass(self, partition: int) -> bool:
        """Whether a position behind all that went in may be committed: nothing depends on it."""
        self._notice_rebalance()
        if not self._inboxes.is_known:
            self._arrived.set()  # the loop asks what was begun
        return not self._gaps and self._inboxes.is_settled(partition)

    def _notice_rebalance(self) -> None:
        # Not the generation of the group: one who joins again may get the same.
        assignments = self._app.chunks.assignments
        if assignments != self._assignments:
            self._assignments = assignments
            self._intents.forget(self._topic)
            self._inboxes.forget()
            self._app.chunks.wake()

    # -- life ----------------------------------------------------------------------------------

    async def finish(self) -> None:
        """Wait for the batch in flight, so that its offsets are committed before a hand-over."""
        try:
            async with asyncio.timeout(FINISH_SECONDS_MAX):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("an insert outlasts the hand-over; the next owner makes it again")

    async def stop(self) -> None:
        """Begin no further batch and finish the one in flight."""
        self._is_stopping = True
        self._arrived.set()
        await self.finish()
        self._working.cancel()

    # -- the loop ------------------------------------------------------------------------------

    async def _work(self) -> None:
        while not self._is_stopping:
            if self._gaps and not await self._tell_gaps():
                continue
            insert = await self._next_insert()
            if insert is None:
                await self._wait()
                continue
            self._idle.clear()
            try:
                await self._insert(insert)
            finally:
                self._idle.set()
                self._app.chunks.wake()

    async def _tell_gaps(self) -> bool:
        """Write down what is missing; False when ClickHouse is away, after a pause."""
        try:
            await self._thread.call(partial(self._gaps.tell, self._engine))
        except EngineError as error:
            if not error.is_retryable:
                fail_stop(f"ClickHouse refuses the row of a gap: {error}", error)
            await asyncio.sleep(self._outage.next_pause(error, time.monotonic()))
            return False
        self._outage.end(time.monotonic())
        return True

    async def _wait(self) -> None:
        """Until a chunk arrives, or the oldest one may have waited long enough."""
        pause = self._inboxes.pause_seconds(time.monotonic())
        self._arrived.clear()
        try:
            async with asyncio.timeout(pause):
                await self._arrived.wait()
        except TimeoutError:
            return

    async def _next_insert(self) -> Insert | None:
        self._notice_rebalance()
        if not self._assignments or (self._inboxes.is_empty and self._inboxes.is_known):
            return None
        if not self._inboxes.is_known:
            assignments = self._assignments
            mine = {tp for tp in self._app.chunks.assignment() if tp.topic == self._topic}
            if not mine:
                return None
            begun = await self._intents.read(mine)
            self._notice_rebalance()
            if assignments != self._assignments:
                return None
            self._inboxes.know({tp.partition: found for tp, found in begun.items()})
            self._app.chunks.wake()  # the rest of what was begun may come now, whatever waits
        return self._inboxes.next_insert(time.monotonic())

    async def _insert(self, insert: Insert) -> None:
        # 1. Rows in memory; nothing is known outside.
        encoded = await self._thread.call(self._encoding(insert, is_careful=False))
        await self._store.renew()
        crash_point("sink.before_intents")
        # 2. The intents are durable before anything can be seen of the rows.
        while not await self._intents.write(insert):
            if insert.is_stale or self._is_stopping:
                return
            await asyncio.sleep(REFUSED_PAUSE_SECONDS)
        self._inboxes.begin(insert)
        crash_point("sink.after_intents_before_insert")
        # 3. Rows in, once for this token, in the table and in those of its views.
        inserted = await self._insert_rows(insert, encoded)
        if inserted is None:
            return
        # 4. What could not become a row is kept for a person.
        for batch, found in zip(insert.batches, inserted, strict=True):
            if not await self._send_dead(insert, batch, found.refused):
                return
        crash_point("sink.after_insert_before_commit")
        # 5. The offsets may be committed; the runtime does it soon, or the next intents do.
        self._inboxes.finish(insert)
        self.rows_total += sum(len(found.rows) for found in inserted)

    def _encoding(self, insert: Insert, *, is_careful: bool) -> Callable[[], list[Encoded]]:
        """What encodes each batch, for a thread."""
        return lambda: [
            self._feed.encode(batch.partition, batch.records, is_careful=is_careful)
            for batch in insert.batches
        ]

    async def _insert_rows(self, insert: Insert, encoded: list[Encoded]) -> list[Encoded] | None:
        """Insert until it is in; None when all of it was revoked meanwhile."""
        is_careful = False
        while True:
            try:
                if self._outage.is_on:
                    # It may come back as another store, such as an older copy.
                    await self._thread.call(self._store.verify)
                await self._thread.call(partial(self._insert_once, insert.token, encoded))
            except EngineError as error:
                if not error.is_retryable and not is_careful:
                    # Some record is not what it seems: read each one, refuse the wrong ones.
                    logger.warning("%s: ClickHouse refused it, checking: %s", insert.token, error)
                    is_careful = True
                    encoded = await self._thread.call(self._encoding(insert, is_careful=True))
                    continue
                if not error.is_retryable:
                    # Not the records' fault; a start anew migrates, and says what is wrong.
                    fail_stop(f"ClickHouse refuses {insert.token}: {error}", error)
                pause = self._outage.next_pause(error, time.monotonic())
            else:
                self._outage.end(time.monotonic())
                return encoded
            await asyncio.sleep(pause)
            if insert.is_stale or self._is_stopping:
                return None

    def _insert_once(self, token: str, encoded: list[Encoded]) -> None:
        rows = [row for found in encoded for row in found.rows]
        if not rows:
            return
        self._engine.insert_bytes(
            self._feed.table,
            b"\n".join(rows),
            columns=self._feed.columns,
            settings={**INSERT_SETTINGS, **DEDUPLICATION, "insert_deduplication_token": token},
        )

    async def _send_dead(
        self, insert: Insert, batch: Batch, refused: list[tuple[Record, Refusal]]
    ) -> bool:
        """Refused records to the dead letters, acknowledged; False when all was revoked."""
        if not refused:
            return True
        records = [self._dead_letter(batch, record, refusal) for record, refusal in refused]
        while True:
            try:
                await self._batch_producer.send_many(records)
            except RecoverableError as error:
                logger.warning("dead letters not written, trying again: %s", error)
            else:
                logger.warning("%s: %s records to %s", batch.token, len(records), self._dead_topic)
                return True
            if insert.is_stale:
                return False
            await asyncio.sleep(RETRY_SECONDS_MAX)

    def _dead_letter(self, batch: Batch, record: Record, refusal: Refusal) -> OutRecord:
        headers = dead_headers(
            list(record.headers),
            topic=batch.topic,
            partition=batch.partition,
            offset=record.offset,
            timestamp=record.timestamp,
            stage="event",
            code=refusal.code,
            message=refusal.message,
            field=refusal.field,
            user_id=refusal.user_id,
            job_id=refusal.job_id,
        )
        partition = batch.partition % self._partitions
        return (self._dead_topic, partition, record.key, record.value, headers)


def _on_work_end(working: asyncio.Task[None]) -> None:
    if not working.cancelled() and working.exception() is not None:
        fail_stop("the sink's loop raised", working.exception())
