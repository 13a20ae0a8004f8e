"""One producer and the partitions that commit through it: the group commit.

Owns when a group begins, what share of it each partition has, and the order of its steps. Refuses
to know what is decided (`agents.ledger.runner`) and how a transaction is made
(`agents.runtime.producer`).

While a transaction is in flight, arriving chunks wait in the inboxes and join the next group, so a
busy lane commits large groups and a quiet one small ones at once. All partitions of a lane share
one transaction, because a transaction costs the broker much the same whatever is in it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from agents.crash import crash_point
from agents.ledger.runner import PartitionRunner
from agents.runtime.errors import AbortableError
from agents.runtime.failstop import fail_stop
from agents.runtime.producer import TransactionalProducer
from streams.outbox import OutRecord

logger = logging.getLogger("tidemill.ledger")

GROUP_RECORDS_MAX: Final = 2_000  # input records in one group: some 50 ms of deciding
GROUP_BYTES_MAX: Final = 524_288  # bytes of input in one group, unless it is a single chunk
SHARE_RECORDS_MIN: Final = 100  # of one partition in one group, however many others wait
IDLE_SECONDS_MAX: Final = 0.5  # between two looks at the clock and the workers
# A large group's records are sent while the next partition is decided. A small group's go together:
# the client asks the coordinator to add their partitions, and two questions take twice the time.
SENT_AHEAD_RECORDS: Final = 1_000
ABORT_PAUSE_SECONDS: Final = 0.2  # before an aborted group is tried again


class Lane:
    """The loop that commits for some partitions of this process."""

    def __init__(self, producer: TransactionalProducer) -> None:
        self.producer = producer
        self._runners: list[PartitionRunner] = []
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Fence a former process of the same name, then serve."""
        await self.producer.init()
        self._loop = asyncio.create_task(self._run())
        self._loop.add_done_callback(_on_loop_end)

    def join(self, runner: PartitionRunner) -> None:
        """The partition commits here from now on, once it is active."""
        self._runners.append(runner)

    def leave(self, runner: PartitionRunner) -> None:
        """The partition has gone elsewhere; it is not active any more."""
        self._runners.remove(runner)

    def wake(self) -> None:
        """Something arrived or changed."""
        self._work.set()

    async def quiesce(self) -> None:
        """Wait until no group is in flight. Partitions that are not active join no new one."""
        await self._idle.wait()

    # --- the loop ---

    async def _run(self) -> None:
        while True:
            await self._wait_for_work()
            self._work.clear()
            self._idle.clear()
            try:
                await self._one_group()
            finally:
                self._idle.set()

    async def _wait_for_work(self) -> None:
        due_in = min((runner.due_at() for runner in self._active()), default=0.0) - time.time()
        has_partitions = any(self._active())
        if not has_partitions or due_in > 0:
            timeout = min(due_in, IDLE_SECONDS_MAX) if has_partitions else IDLE_SECONDS_MAX
            try:
                async with asyncio.timeout(timeout):
                    await self._work.wait()
            except TimeoutError:
                pass  # a timer is due
        # The time in which the last transaction settles is well spent collecting.
        await self.producer.settled()

    def _active(self) -> list[PartitionRunner]:
        return [runner for runner in self._runners if runner.is_active]

    async def _one_group(self) -> None:
        now = time.time()
        due = [runner for runner in self._active() if runner.due_at() <= now]
        if not due:
            return
        self._turn(due[0])
        decided: list[PartitionRunner] = []
        try:
            written = await self._decide(due, decided)
            if written:
                # 3. One transaction with everything that the group led to.
                crash_point("ledger.after_produce_before_commit")
                await self.producer.commit()
        except AbortableError as error:
            logger.warning("a group is decided again: %s", error)
            for runner in decided:
                runner.undo()
            await asyncio.sleep(ABORT_PAUSE_SECONDS)
            return
        crash_point("ledger.after_commit_before_apply")
        # 4. The decisions stand.
        for runner in decided:
            runner.settle()
        crash_point("ledger.after_apply_before_ack")
        # 5. Only now the inputs are acked.
        for runner in decided:
            runner.ack()

    async def _decide(self, due: list[PartitionRunner], decided: list[PartitionRunner]) -> int:
        """Decide partition by partition and hand the records over; returns how many."""
        written = taken = 0
        waiting: list[OutRecord] = []
        share = max(SHARE_RECORDS_MIN, GROUP_RECORDS_MAX // len(due))
        for number, runner in enumerate(due):
            left = GROUP_RECORDS_MAX - taken - share * (len(due) - number - 1)
            decided.append(runner)
            count, records = runner.decide(max(share, left), GROUP_BYTES_MAX // len(due))
            taken += count
            waiting += records
            is_last = number == len(due) - 1
            if waiting and (is_last or len(waiting) >= SENT_AHEAD_RECORDS):
                await self._send(waiting, is_first=not written)
                written += len(waiting)
                waiting = []
        return written

    async def _send(self, records: list[OutRecord], *, is_first: bool) -> None:
        if is_first:
            crash_point("ledger.before_begin")
            await self.producer.begin()
        await self.producer.add(records)
        # What has arrived meanwhile is handed out.
        await asyncio.sleep(0)

    def _turn(self, first: PartitionRunner) -> None:
        """Who was first is last next time: large shares go round."""
        self._runners.remove(first)
        self._runners.append(first)


def _on_loop_end(done: asyncio.Task[None]) -> None:
    if not done.cancelled():
        fail_stop("a lane's loop ended", done.exception())
