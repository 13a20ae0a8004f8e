"""`OutcomeSink` over Kafka: idempotent, acks=all, tried again for as long as it takes.

Owns the order in which outcomes go out, and the splitting of a batch that is too large. Refuses to
know what is in a record.

What is sent while a write is on its way joins the next one, and one write takes the records of all
partitions. So a quiet worker adds no delay, and a busy one asks the broker for little.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from tidemill.agents import clocks
from tidemill.agents.runtime.batch_writer import AWAY_SECONDS, BatchWriter, TooLarge, pauses
from tidemill.agents.runtime.batches_out import ZSTD, OutBatch
from tidemill.agents.runtime.errors import AbortableError, EngineError
from tidemill.agents.runtime.failstop import fail_stop
from tidemill.schemas.batch_builder import RecordPage

RECORD_BYTES_MAX: Final = 2 * 1_048_576  # as `tidemill.schemas.topics` makes the topic
LOG_SECONDS: Final = 10.0  # one line in this time about outcomes that cannot be written

Done = Callable[[bool], None]
#: A record's value, and whom to tell.
Item = tuple[bytes, Done]

logger = logging.getLogger("tidemill.worker")


class KafkaSink:
    """One producer for all partitions of `jobs.outcomes`. Make it on the loop."""

    def __init__(self, kafka: str, topic: str, client_id: str, *, codec: int = ZSTD) -> None:
        self._topic = topic
        self._codec = codec
        self._loop = asyncio.get_running_loop()
        self._writer = BatchWriter(kafka, client_id)
        self._waiting: dict[int, deque[Item]] = {}
        self._alone: dict[int, int] = {}  # partition -> how many of its next records go one by one
        self._arrived = asyncio.Event()
        self._logged_at = float("-inf")
        self._working = asyncio.create_task(self._work())
        self._working.add_done_callback(_on_work_end)

    def send(self, partition: int, value: bytes, done: Done) -> None:
        """Write a record; see `OutcomeSink`."""
        if len(value) > RECORD_BYTES_MAX:
            # On the loop's next turn: `send` promises to return before `done` is called.
            self._loop.call_soon(done, True)
            return
        self._waiting.setdefault(partition, deque()).append((value, done))
        self._arrived.set()

    async def close(self) -> None:
        """Stop writing; what is not delivered by now is dropped: drain first."""
        self._working.cancel()
        await asyncio.wait({self._working})
        await self._writer.close()

    async def _work(self) -> None:
        await self._writer.connect()
        await self._writer.introduce()
        for pause in pauses(AWAY_SECONDS):
            try:
                await self._writer.know_topics({self._topic})
                break
            except AbortableError as error:
                self._complain(error)
                await asyncio.sleep(pause)
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                await self._write_some()

    async def _write_some(self) -> None:
        """One write: of each partition what waits there, as far as a batch has room."""
        now_ms = clocks.wall_ms()
        taken: dict[int, list[Item]] = {}
        batches: list[OutBatch] = []
        for partition, waiting in self._waiting.items():
            page = RecordPage()
            most = 1 if self._alone.get(partition) else len(waiting)
            while page.count < most and page.append(None, waiting[page.count][0], None):
                pass
            batches.append(OutBatch((self._topic, partition), page, now_ms, codec=self._codec))
            taken[partition] = [waiting.popleft() for _ in range(page.count)]
        self._waiting = {number: items for number, items in self._waiting.items() if items}
        refused = {
            batch.target[1]: error for batch, error in await self._writer.write(batches)
        }
        for partition, items in taken.items():
            error = refused.get(partition)
            if isinstance(error, TooLarge) and len(items) > 1:
                self._alone[partition] = len(items)
                self._put_back(partition, items)
            elif error is None or isinstance(error, TooLarge):
                self._alone[partition] = max(0, self._alone.get(partition, 0) - 1)
                for _, done in items:
                    done(error is not None)
            else:
                self._complain(error)
                self._put_back(partition, items)
        if not all(isinstance(error, TooLarge) for error in refused.values()):
            await asyncio.sleep(AWAY_SECONDS[1])

    def _put_back(self, partition: int, items: list[Item]) -> None:
        """Before what has arrived meanwhile."""
        self._waiting.setdefault(partition, deque()).extendleft(reversed(items))

    def _complain(self, error: Exception) -> None:
        now = clocks.monotonic()
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            logger.warning("outcomes cannot be written to %s yet: %s", self._topic, error)


def _on_work_end(working: asyncio.Task[None]) -> None:
    if working.cancelled():
        return
    error = working.exception()
    if isinstance(error, EngineError):
        fail_stop(f"the producer of outcomes broke: {error}", error)
    fail_stop("the producer of outcomes ended", error)
