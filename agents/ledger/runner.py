"""One owned partition at work: collect, decide, commit, and only then ack.

Owns the group commit of a partition and its numbered steps. Refuses to know what is decided
(`streams.partition`) and how a transaction is made (`agents.runtime.producer`).

While a transaction is in flight, arriving chunks wait in the inbox and join the next group, so a
busy partition commits large groups and a quiet one small ones at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from agents.crash import crash_point
from agents.ledger.workers import WorkerBook
from agents.runtime.batches import size_of
from agents.runtime.chunk import Chunk
from agents.runtime.errors import AbortableError
from agents.runtime.failstop import fail_stop
from agents.runtime.producer import TransactionalProducer
from streams.outbox import OutRecord
from streams.partition import Partition

logger = logging.getLogger("tidemill.ledger")

GROUP_RECORDS_MAX: Final = 1_000  # input records in one group: some 50 ms of deciding
GROUP_BYTES_MAX: Final = 262_144  # bytes of input in one group, unless it is a single chunk
IDLE_TICK_SECONDS_MAX: Final = 0.5  # seconds between two looks at the clock and the workers
# A group that wrote this many records is one of many: waiting a little makes the next one larger,
# and a transaction costs the broker the same whatever is in it. Quiet partitions never wait.
BUSY_RECORDS_MIN: Final = 500
BUSY_LINGER_SECONDS: Final = 0.015
ABORT_PAUSE_SECONDS: Final = 0.2  # seconds before an aborted group is tried again


class PartitionRunner:
    """The loop of one partition."""

    def __init__(
        self,
        partition: Partition,
        producer: TransactionalProducer,
        book: WorkerBook,
        input_topics: tuple[str, ...],
        passed_to: Callable[[str, int], int | None],
    ) -> None:
        self.partition = partition
        self.producer = producer
        self._book = book
        self._passed_to = passed_to
        self._inbox: dict[str, deque[Chunk]] = {topic: deque() for topic in input_topics}
        self._work = asyncio.Event()
        self._may_commit = asyncio.Event()
        self._is_busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.create_task(self._run())
        self._loop.add_done_callback(_on_loop_end)

    # --- what the owner and the agents tell ---

    def add(self, chunk: Chunk) -> None:
        """A chunk of one of the inputs, in the order of its topic."""
        self._inbox[chunk.topic].append(chunk)
        self._work.set()

    def wake(self) -> None:
        """Workers or definitions changed."""
        self._work.set()

    def resume(self) -> None:
        """The partition is ours: groups may be committed."""
        self._may_commit.set()

    async def quiesce(self) -> None:
        """No group is in flight when this returns, and none begins until `resume`."""
        self._may_commit.clear()
        await self._idle.wait()

    async def close(self) -> None:
        """The partition has gone elsewhere."""
        self._loop.cancel()
        await self.producer.close()

    # --- the loop ---

    async def _run(self) -> None:
        while True:
            await self._wait_for_work()
            await self._may_commit.wait()
            self._idle.clear()
            try:
                await self._one_group()
            finally:
                self._idle.set()

    async def _wait_for_work(self) -> None:
        now = time.time()
        due_in = self.partition.next_tick_at() / 1000 - now
        timeout = min(max(due_in, 0.0), IDLE_TICK_SECONDS_MAX)
        if not self._work.is_set():
            try:
                async with asyncio.timeout(timeout):
                    await self._work.wait()
            except TimeoutError:
                pass  # a timer is due
        if self._is_busy:
            await asyncio.sleep(BUSY_LINGER_SECONDS)
        # The time in which the last transaction settles is well spent collecting.
        await self.producer.settled()

    async def _one_group(self) -> None:
        # 1. Collect what has arrived, the most urgent input first.
        self._work.clear()
        chunks = self._collect()
        # 2. Decide. State changes here; step 5 or an undo says for good.
        records = self._decide(chunks)
        self._is_busy = len(records) >= BUSY_RECORDS_MIN
        if not records:
            self.partition.settle()
            for chunk in chunks:
                chunk.ack()
            return
        # 3. One transaction with everything that the group led to.
        crash_point("ledger.before_begin")
        try:
            await self.producer.commit_group(
                records, lambda: crash_point("ledger.after_produce_before_commit")
            )
        except AbortableError as error:
            logger.warning("partition %s: %s; again", self.partition.number, error)
            self._put_back(chunks)
            await asyncio.sleep(ABORT_PAUSE_SECONDS)
            return
        crash_point("ledger.after_commit_before_apply")
        # 4. The decisions stand.
        self.partition.settle()
        crash_point("ledger.after_apply_before_ack")
        # 5. Only now the inputs are acked; their offsets are a hint, the applied positions rule.
        for chunk in chunks:
            chunk.ack()

    def _collect(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        records = size = 0
        for inbox in self._inbox.values():
            while inbox and records < GROUP_RECORDS_MAX and size < GROUP_BYTES_MAX:
                chunk = inbox.popleft()
                if chunk.is_stale:
                    continue
                chunks.append(chunk)
                records += len(chunk)
                size += size_of(chunk.records)
            if inbox:
                self._work.set()
        return chunks

    def _decide(self, chunks: list[Chunk]) -> list[OutRecord]:
        partition = self.partition
        partition.begin(int(time.time() * 1000))
        partition.set_workers(self._book.alive())
        partition.set_capacity(self._book.capacity())
        for definition in list(self._book.definitions.values()):
            partition.define(definition)
        for chunk in chunks:
            topic, number = chunk.topic, chunk.partition
            for record in chunk.records:
                partition.take(topic, number, record)
        # A topic that has nothing out has been read up to here, markers of transactions included.
        for topic in self._inbox:
            passed = self._passed_to(topic, partition.number)
            if passed is not None:
                partition.pass_over(topic, passed)
        partition.tick()
        return partition.seal()

    def _put_back(self, chunks: list[Chunk]) -> None:
        self.partition.undo()
        for chunk in reversed(chunks):
            self._inbox[chunk.topic].appendleft(chunk)
        self._work.set()


def _on_loop_end(done: asyncio.Task[None]) -> None:
    if not done.cancelled():
        fail_stop("a partition's loop ended", done.exception())
