"""The sink's loop: cut a batch, write its borders down, insert it, ack it.

Owns the order of these steps and every repeat of them. Refuses to know how a row is made
(`records`), where a batch ends (`batches`) and how borders are kept (`borders`).

One batch is on its way at a time: the inserts of one process share one engine, and what waits
meanwhile makes the next batch larger, which is cheaper. What waits is bounded in bytes; beyond that
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

from agents.clickhouse.engine import Engine, EngineError
from agents.crash import crash_point
from agents.runtime.app import RoleApp
from agents.runtime.chunk import Chunk, Record
from agents.runtime.errors import RecoverableError
from agents.runtime.failstop import fail_stop
from agents.runtime.producer import CallThread, OutboxProducer
from agents.sink.batches import Batch, BatchLimits, Flow, PartitionInbox
from agents.sink.borders import Borders
from agents.sink.records import COLUMNS, INSERT_SETTINGS, Encoded, encode
from schemas.codec import Refusal
from schemas.dead import dead_headers
from schemas.record_pages import OutRecord

logger = logging.getLogger("tidemill.sink")

TABLE: Final = "job_events"
# The tokens of a batch hold in the views' tables as well: a batch cut short is completed there.
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
# After borders that Kafka refused: a rebalance is under way, its chunks are about to go stale.
REFUSED_PAUSE_SECONDS: Final = 0.2
# All of what waits in this process; a partition has a bound of its own (`main`).
WAITING_BYTES_MAX: Final = 128 * 1024 * 1024
# How long a stop or a rebalance waits for the insert in flight; what is cut comes again.
FINISH_SECONDS_MAX: Final = 3.0
# Rows that wait here during a burst; reading them costs as well, so the others stay in the log.
HELD_ROWS: Final = 20_000
# The shortest time between two looks at what waits.
LOOK_SECONDS_MIN: Final = 0.01
# Between two looks whether a burst is over.
BURST_LOOK_SECONDS: Final = 0.25
# Records that one partition may have now when there is no bound to respect.
CREDIT_RECORDS: Final = 1_000_000


class Outage:
    """How long ClickHouse has been away, and when to say so."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._said_at = 0.0
        self._pause = RETRY_SECONDS_MIN

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
    """Takes chunks, gives rows to ClickHouse."""

    def __init__(
        self,
        app: RoleApp,
        engine: Engine,
        outbox: OutboxProducer,
        *,
        dead_topic: str,
        partitions: int,
        limits: BatchLimits,
    ) -> None:
        self._app = app
        self._engine = engine
        self._outbox = outbox
        self._dead_topic = dead_topic
        self._partitions = partitions
        self._limits = limits
        self._borders = Borders(app)
        self._thread = CallThread("sink-insert")
        self._outage = Outage()
        self._flow = Flow()
        self._inboxes: dict[TP, PartitionInbox] = {}
        # Partition -> where the batch that was begun there ends; None when none was. A partition
        # that is missing has not been looked up since the last rebalance.
        self._begun: dict[TP, int | None] = {}
        self._generation: int | None = None
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_stopping = False
        #: Rows that were inserted, for the log and for tests.
        self.rows_total = 0
        app.commit_offsets = self._borders.commit
        app.before_revoke = self.finish
        app.before_stop = self.stop
        self._working = asyncio.create_task(self._work())
        self._working.add_done_callback(_on_work_end)

    # -- in ------------------------------------------------------------------------------------

    def add(self, chunk: Chunk) -> None:
        """Take a chunk that the agent received."""
        if chunk.is_stale:
            return
        self._notice_rebalance()
        tp = TP(chunk.topic, chunk.partition)
        inbox = self._inboxes.get(tp)
        if inbox is None:
            inbox = self._inboxes[tp] = PartitionInbox(chunk.topic, chunk.partition)
        now, epoch_now = time.monotonic(), time.time()
        inbox.add(chunk, now, epoch_now - chunk.records[0].timestamp / 1000)
        self._flow.note(len(chunk), epoch_now - chunk.records[-1].timestamp / 1000, now)
        self._arrived.set()

    def credit(self, partition: int) -> int:
        """How many more records of a partition may come now.

        Who makes it grow wakes the consumer.
        """
        self._notice_rebalance()
        if not self._has_enough():
            return CREDIT_RECORDS
        # The rest of a batch that was begun must come, or it could never be inserted.
        begun = any(
            tp.partition == partition and last is not None for tp, last in self._begun.items()
        )
        return CREDIT_RECORDS if begun else 0

    def _has_enough(self) -> bool:
        """Whether what comes next is better left in the log for now."""
        inboxes = self._inboxes.values()
        if sum(inbox.size_bytes for inbox in inboxes) >= WAITING_BYTES_MAX:
            return True
        if sum(inbox.rows for inbox in inboxes) < HELD_ROWS:
            return False
        if not self._flow.is_burst(time.monotonic()):
            return False
        self._flow.hold()
        return True

    def _notice_rebalance(self) -> None:
        generation = self._app.consumer_generation_id
        if generation != self._generation:
            self._generation = generation
            self._begun.clear()
            self._borders.forget()
            self._flow.let_go()
            for inbox in self._inboxes.values():
                inbox.drop_stale()
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
        self._thread.close()

    # -- the loop ------------------------------------------------------------------------------

    async def _work(self) -> None:
        while not self._is_stopping:
            batch = await self._next_batch()
            if batch is None:
                await self._wait()
                continue
            self._idle.clear()
            try:
                await self._insert(batch)
            finally:
                self._idle.set()
                self._app.chunks.wake()

    async def _wait(self) -> None:
        """Until a chunk arrives, or the oldest one may have waited long enough."""
        now = time.monotonic()
        is_burst = self._flow.is_burst(now)
        # A batch that was begun and is not complete: only an arrival helps.
        due = [
            inbox.due_at(self._limits, is_burst=is_burst)
            for tp, inbox in self._inboxes.items() if inbox and self._begun.get(tp) is None
        ]
        pause = None
        if due:
            # A burst may end unseen by any arrival. What is due was not when it was looked at.
            longest = BURST_LOOK_SECONDS if is_burst else self._limits.seconds_max
            pause = max(LOOK_SECONDS_MIN, min(min(due) - now, longest))
        self._arrived.clear()
        try:
            async with asyncio.timeout(pause):
                await self._arrived.wait()
        except TimeoutError:
            return

    async def _next_batch(self) -> Batch | None:
        """The batch that is due, of the partition that has waited longest."""
        waiting = [(tp, inbox) for tp, inbox in self._inboxes.items() if inbox]
        for tp, inbox in sorted(waiting, key=lambda found: found[1].waits_since):
            inbox.drop_stale()
            if inbox and tp not in self._begun:
                generation = self._generation
                begun = await self._borders.read(tp)
                if generation != self._generation:
                    return None
                self._begun[tp] = begun
                if begun is not None:
                    self._app.chunks.wake()  # the rest of it may come now, whatever waits
            if not inbox:
                continue
            batch = self._cut(tp, inbox)
            if batch is not None:
                return batch
        return None

    def _cut(self, tp: TP, inbox: PartitionInbox) -> Batch | None:
        last = self._begun[tp]
        if last is not None and inbox.first_offset > last:
            # It was inserted whole, and only the commit behind it was lost.
            last = self._begun[tp] = None
        if last is None:
            now = time.monotonic()
            is_due = inbox.is_due(self._limits, now, is_burst=self._flow.is_burst(now))
            if not is_due:
                return None
            self._flow.let_go()
            return inbox.cut(self._limits)
        if not inbox.holds(last):
            return None
        logger.info("%s-%s: making the batch up to offset %s again", *tp, last)
        return inbox.cut_at(last)

    async def _insert(self, batch: Batch) -> None:
        tp = TP(batch.topic, batch.partition)
        # 1. Rows in memory; nothing is known outside.
        encoded = await self._thread.call(self._encoding(batch, is_careful=False))
        crash_point("sink.before_borders")
        # 2. The borders are durable before anything can be seen of the batch.
        while not await self._borders.write(tp, first=batch.first, last=batch.last):
            if batch.is_stale or self._is_stopping:
                return
            await asyncio.sleep(REFUSED_PAUSE_SECONDS)
        self._begun[tp] = batch.last
        crash_point("sink.after_borders_before_insert")
        # 3. Rows in, once for this token, in job_events and in the tables of its views.
        inserted = await self._insert_rows(batch, encoded)
        if inserted is None:
            return
        # 4. What could not become a row is kept for a person.
        if not await self._send_dead(batch, inserted.refused):
            return
        crash_point("sink.after_insert_before_commit")
        # 5. The offsets may be committed; the runtime does it soon, or the next borders do.
        if not batch.is_stale:
            self._begun[tp] = None
            batch.ack()
        self.rows_total += len(inserted.rows)

    def _encoding(self, batch: Batch, *, is_careful: bool) -> Callable[[], Encoded]:
        return partial(encode, batch.partition, batch.records, is_careful=is_careful)

    async def _insert_rows(self, batch: Batch, encoded: Encoded) -> Encoded | None:
        """Insert until it is in; None when the batch was revoked meanwhile."""
        is_careful = False
        while True:
            try:
                await self._thread.call(partial(self._insert_once, batch, encoded))
            except EngineError as error:
                if not error.is_retryable and not is_careful:
                    # Some record is not what it seems: read each one, refuse the wrong ones.
                    logger.warning("%s: ClickHouse refused it, checking: %s", batch.token, error)
                    is_careful = True
                    encoded = await self._thread.call(self._encoding(batch, is_careful=True))
                    continue
                if not error.is_retryable:
                    # Not the records' fault; a start anew migrates, and says what is wrong.
                    fail_stop(f"ClickHouse refuses {batch.token}: {error}", error)
                pause = self._outage.next_pause(error, time.monotonic())
            else:
                self._outage.end(time.monotonic())
                return encoded
            await asyncio.sleep(pause)
            if batch.is_stale or self._is_stopping:
                return None

    def _insert_once(self, batch: Batch, encoded: Encoded) -> None:
        if not encoded.rows:
            return
        self._engine.insert_bytes(
            TABLE,
            encoded.data,
            columns=COLUMNS,
            settings={
                **INSERT_SETTINGS, **DEDUPLICATION, "insert_deduplication_token": batch.token
            },
        )

    async def _send_dead(self, batch: Batch, refused: list[tuple[Record, Refusal]]) -> bool:
        """Refused records to the dead letters, acknowledged; False when the batch was revoked."""
        if not refused:
            return True
        records = [self._dead_letter(batch, record, refusal) for record, refusal in refused]
        while True:
            try:
                await self._outbox.send_many(records)
            except RecoverableError as error:
                logger.warning("dead letters not written, trying again: %s", error)
            else:
                logger.warning("%s: %s records to %s", batch.token, len(records), self._dead_topic)
                return True
            if batch.is_stale:
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
