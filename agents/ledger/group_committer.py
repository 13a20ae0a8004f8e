"""The group commit: which partitions decide when, and the order of a group's steps.

Owns when a group begins, which partitions are in it and what share each has. Refuses to know what
is decided (`tidemill.agents.ledger.runner`) and how a transaction is made
(`tidemill.agents.runtime.transaction`).

All partitions of a group share one transaction, because a transaction costs the broker much the
same whatever is in it. While it is in flight, arriving chunks wait in the inboxes, so a busy ledger
commits large groups and a quiet one small ones at once.

There are two producers, so that one group is decided while another one commits. A partition is in
one group at a time: its next decisions see those of a group that is committed, or undone. When all
partitions have much to do, each group takes its share of them and leaves the rest to the other.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Collection, Coroutine, Sequence
from importlib.metadata import version
from typing import Any, Final, NoReturn

from tidemill.agents import exit_codes
from tidemill.agents.crash import crash_point
from tidemill.agents.ledger.clock import LedgerClock
from tidemill.agents.ledger.runner import PartitionRunner
from tidemill.agents.runtime.errors import AbortableError
from tidemill.agents.runtime.failstop import fail_stop
from tidemill.agents.runtime.transaction import TransactionalProducer
from tidemill.schemas.batch_builder import OutGroup
from tidemill.streams.decision import NeedsNewer

logger = logging.getLogger("tidemill.ledger")

GROUP_RECORDS_MAX: Final = 2_000  # input records in one group: some 50 ms of deciding
GROUP_BYTES_MAX: Final = 524_288  # bytes of input in one group, unless it is a single chunk
SHARE_RECORDS_MIN: Final = 100  # of one partition in one group, however many others wait
# Input records from which on a group leaves partitions to the next one. Below that the transaction
# costs more than the deciding, and one for all is cheaper.
SHARED_OUT_RECORDS: Final = 400
# From the beginning of a group to that of the next one, unless much waits: twice as long as a
# transaction takes of late, within these. It has its price whatever is in it, and where it takes
# longer the processors are busy: what a job waits for here it gains by processors that are free
# (decision 0002).
GROUP_EVERY_SECONDS_MIN: Final = 0.008
GROUP_EVERY_SECONDS_MAX: Final = 0.025
TOOK_WEIGHT: Final = 0.1  # of the last transaction in "of late"
IDLE_SECONDS_MAX: Final = 0.5  # between two looks at the clock and the workers
ABORT_PAUSE_SECONDS: Final = 0.2  # before an aborted group is tried again


class GroupCommitter:
    """The loop that decides and commits for the partitions of this process."""

    def __init__(self, clock: LedgerClock) -> None:
        self._clock = clock
        self._producers: Sequence[TransactionalProducer] = ()
        self._begun_at = 0.0  # monotonic, the last group
        self._took_seconds = 0.0  # a transaction, of late
        self._free: asyncio.Queue[TransactionalProducer] = asyncio.Queue()
        self._runners: list[PartitionRunner] = []
        self._in_flight: set[PartitionRunner] = set()
        self._work = asyncio.Event()
        self._released = asyncio.Event()  # set, and another one put here, when a group ends
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def transactional_ids(self) -> tuple[str, ...]:
        """Whom the next owner of one of our partitions has to fence; none before `start`."""
        return tuple(producer.transactional_id for producer in self._producers)

    @property
    def pause_seconds(self) -> float:
        """From the beginning of a group to that of the next one, unless much waits."""
        wanted = max(self._took_seconds * 2, GROUP_EVERY_SECONDS_MIN)
        return min(wanted, GROUP_EVERY_SECONDS_MAX)

    async def start(self, producers: Sequence[TransactionalProducer]) -> None:
        """Fence a former process of the same name, then serve."""
        await asyncio.gather(*(producer.init() for producer in producers))
        self._producers = producers
        for producer in producers:
            self._free.put_nowait(producer)
        self._start(self._run())

    def join(self, runner: PartitionRunner) -> None:
        """The partition commits here from now on, once it is active."""
        self._runners.append(runner)

    def leave(self, runner: PartitionRunner) -> None:
        """The partition has gone elsewhere; it is not active any more."""
        self._runners.remove(runner)

    def wake(self) -> None:
        """Something arrived or changed."""
        self._work.set()

    async def quiesce(self, runners: Collection[PartitionRunner]) -> None:
        """Wait until none of these is in a group. Those that are not active join no new one."""
        while not self._in_flight.isdisjoint(runners):
            await self._released.wait()

    # --- the loop ---

    async def _run(self) -> None:
        while True:
            producer = await self._free.get()
            await self._let_gather()
            group = await self._next_group()
            self._begun_at = time.monotonic()
            await self._decide_group(producer, group)

    async def _let_gather(self) -> None:
        while sum(runner.waiting for runner in self._runners) < SHARED_OUT_RECORDS:
            left = self._begun_at + self.pause_seconds - time.monotonic()
            if left <= 0:
                return
            self._work.clear()
            await self._wait(left)

    async def _next_group(self) -> list[PartitionRunner]:
        """The partitions that have something to do and are in no group, or a share of them."""
        while True:
            self._work.clear()
            now = self._clock.now()
            idle = [runner for runner in self._runners if self._may_decide(runner)]
            due = [runner for runner in idle if runner.due_at() <= now]
            if due:
                return self._share_of(due)
            await self._wait(min((runner.due_at() for runner in idle), default=math.inf) - now)

    def _may_decide(self, runner: PartitionRunner) -> bool:
        return runner.is_active and runner not in self._in_flight

    def _share_of(self, due: list[PartitionRunner]) -> list[PartitionRunner]:
        """All that are due, or with much to do, so many that the other producers get theirs."""
        if sum(runner.waiting for runner in due) < SHARED_OUT_RECORDS:
            return due
        active = sum(runner.is_active for runner in self._runners)
        return due[: -(-active // len(self._producers))]

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(min(seconds, IDLE_SECONDS_MAX)):
                await self._work.wait()
        except TimeoutError:
            return  # a timer is due

    # --- a group ---

    async def _decide_group(
        self, producer: TransactionalProducer, group: list[PartitionRunner]
    ) -> None:
        self._in_flight.update(group)
        self._turn(group)
        # 1. Decide, partition by partition. State changes here; step 3 or an undo says for good.
        out = await self._decide(group)
        if out:
            # The next group is decided meanwhile.
            self._start(self._commit(producer, group, out))
        else:
            self._finish(producer, group)

    async def _commit(
        self,
        producer: TransactionalProducer,
        group: list[PartitionRunner],
        out: OutGroup,
    ) -> None:
        begun_at = time.monotonic()
        try:
            # 2. One transaction with everything that the group led to.
            crash_point("ledger.before_begin")
            await producer.send(out)
            crash_point("ledger.after_produce_before_commit")
            await producer.commit()
        except AbortableError as error:
            logger.warning("a group is decided again: %s", error)
            for runner in group:
                runner.rollback()
            await asyncio.sleep(ABORT_PAUSE_SECONDS)
            self._release(producer, group)
            return
        crash_point("ledger.after_commit_before_apply")
        took = time.monotonic() - begun_at
        self._took_seconds += (took - self._took_seconds) * TOOK_WEIGHT
        self._finish(producer, group)

    def _finish(self, producer: TransactionalProducer, group: list[PartitionRunner]) -> None:
        # 3. The decisions stand.
        for runner in group:
            runner.commit()
        crash_point("ledger.after_apply_before_ack")
        # 4. Only now the inputs are acked.
        for runner in group:
            runner.ack()
        self._release(producer, group)

    def _release(self, producer: TransactionalProducer, group: list[PartitionRunner]) -> None:
        self._in_flight.difference_update(group)
        released, self._released = self._released, asyncio.Event()
        released.set()
        self._free.put_nowait(producer)
        self._work.set()

    async def _decide(self, group: list[PartitionRunner]) -> OutGroup:
        """Decide partition by partition: the records of all."""
        out = OutGroup()
        taken = 0
        share = max(SHARE_RECORDS_MIN, GROUP_RECORDS_MAX // len(group))
        for number, runner in enumerate(group):
            left = GROUP_RECORDS_MAX - taken - share * (len(group) - number - 1)
            count, made = runner.decide(max(share, left), GROUP_BYTES_MAX // len(group))
            taken += count
            out.extend(made)
            if count >= SHARE_RECORDS_MIN:
                # What has arrived meanwhile is handed out.
                await asyncio.sleep(0)
        return out

    def _turn(self, group: list[PartitionRunner]) -> None:
        """Who is in a group is last next time: large shares go round."""
        for runner in group:
            self._runners.remove(runner)
            self._runners.append(runner)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, NeedsNewer):
            end_as_too_old(error)
        if error is not None:
            fail_stop("a group failed", error)


def end_as_too_old(error: NeedsNewer) -> NoReturn:
    """A final error: this version meets the same record or row again after each start."""
    fail_stop(f"{error}; this is {version('tidemill')}", code=exit_codes.TOO_OLD)
