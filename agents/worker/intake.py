"""Ready records in: a Faust agent per queue, bounded by what the slots can take.

Owns which record becomes which pack, when it is acked, and what a rebalance does to it. Refuses to
know how a job runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from tidemill.agents.runtime.app import RoleApp
from tidemill.agents.runtime.chunk import Chunk, Record
from tidemill.agents.runtime.commits import is_member
from tidemill.agents.runtime.handover import Handover
from tidemill.agents.runtime.inputs import InputPolicy
from tidemill.agents.worker.attempts import Pack
from tidemill.agents.worker.executor import Executor
from tidemill.agents.worker.writer import OutcomeWriter
from tidemill.schemas.topics import Topics
from tidemill.schemas.words import Reason

PACKS_KEPT_MAX: Final = 20_000  # packs remembered; a commit is half a second behind at most
REVOKE_SECONDS_MAX: Final = 2.0  # a rebalance waits this long for outcomes to be durable
ASK_AGAIN_SECONDS: Final = 0.5  # until the group is asked again whether we are its member
AVERAGE_WEIGHT: Final = 0.1  # of the newest record in the average of jobs in one

logger = logging.getLogger("tidemill.worker")

Place = tuple[str, int, int, int]
"""Topic, partition, offset and timestamp: which record, also when a topic was made again."""


class Intake:
    """Turns chunks into packs for the executor.

    A record that comes again (after a rebalance its offset may not be committed yet) is known by
    its place: its jobs run on, or have run, and only the new delivery is acked.
    """

    def __init__(self, app: RoleApp, executor: Executor, writer: OutcomeWriter) -> None:
        self._app = app
        self._executor = executor
        self._writer = writer
        self._packs: dict[Place, Pack] = {}
        self._jobs_per_record: dict[str, float] = {}
        self._granted: dict[str, int] = {}
        self._going_at: int | None = None  # which assignment is about to go
        self._doubted: int | None = None  # which assignment may be over without our knowing
        self._standstills = 0
        self._asking: asyncio.Task[None] | None = None
        executor.on_standstill = self._doubt
        #: Whether all that was begun has its durable word, as far as a handover knows.
        self.is_settled = False
        #: Records that came again and were not run again.
        self.repeats_total = 0

    def bind(self, topics: Topics, queues: Sequence[str]) -> None:
        """Declare the agents; call it before the app starts."""
        for queue in queues:
            policy = InputPolicy(
                credit=partial(self._credit, queue),
                # Lost ready records are jobs that the ledger dispatches again.
                is_gap_fatal=False,
            )
            topic = self._app.input_topic(topics.ready(queue), policy)
            self._app.agent(topic, name=f"ready-{queue}")(partial(self._read, queue))

    async def _read(self, queue: str, stream: Any) -> None:
        chunk: Chunk
        async for chunk in stream:
            if chunk.is_stale or self._is_going():
                continue  # its partition is taken away; the records come again
            self.is_settled = False
            handover = self._app.chunks.handovers.of(chunk.topic, chunk.partition)
            for record in chunk.records:
                is_doubtful = record.offset < handover.doubtful_until
                self._take(queue, chunk, record, handover if is_doubtful else None)

    def _is_going(self) -> bool:
        """Between the word that partitions go and the next ones, nothing more is begun."""
        return self._going_at is not None and self._going_at == self._app.chunks.assignments

    def _take(
        self, queue: str, chunk: Chunk, record: Record, doubt: Handover | None
    ) -> None:
        place = (chunk.topic, chunk.partition, record.offset, record.timestamp)
        on_settled = partial(chunk.ack_offset, record.offset)
        known = self._packs.get(place)
        if known is not None:
            self.repeats_total += 1
            known.rebind(on_settled)
            return
        if self._is_doubtful:
            # Another worker may have it by now, and the ledger what that one said of it.
            reason = Reason.WORKER_STALLED
            pack = self._executor.give_back(record.value, on_settled, None, reason)
        elif doubt is None:
            pack = self._executor.take(record.value, on_settled)
        else:
            pack = self._executor.give_back(record.value, on_settled, doubt.former_owner)
        if pack is None:
            return
        average = self._jobs_per_record.get(queue, 1.0)
        self._jobs_per_record[queue] = average + AVERAGE_WEIGHT * (pack.jobs - average)
        self._packs[place] = pack
        if len(self._packs) > PACKS_KEPT_MAX:
            del self._packs[next(iter(self._packs))]

    # -- after a standstill --------------------------------------------------------------------

    def _doubt(self) -> None:
        """The loop stood still: the group may have forgotten us, and what was fetched is another
        worker's. Nothing of it begins until the group says that we are a member, or shares anew."""
        self._standstills += 1
        self._doubted = self._app.chunks.assignments if self._app.started else None
        if self._asking is None and self._doubted is not None:
            self._asking = asyncio.get_running_loop().create_task(self._ask())

    @property
    def _is_doubtful(self) -> bool:
        return self._doubted is not None and self._doubted == self._app.chunks.assignments

    async def _ask(self) -> None:
        while self._is_doubtful:
            asked = self._standstills
            if await is_member(self._app.chunks, self._app.consumer_generation_id):
                if asked == self._standstills:
                    self._doubted = None
            else:
                await asyncio.sleep(ASK_AGAIN_SECONDS)
        self._asking = None
        self.wake()

    # -- how much may come ---------------------------------------------------------------------

    def _credit(self, queue: str, partition: int) -> int:
        """How many records may come now, all partitions together.

        Each answer is held against the next ones until the loop has seen what came of it.
        """
        if self._is_doubtful:
            return 0
        room = self._executor.room(queue) - self._granted.get(queue, 0)
        if room <= 0:
            return 0
        jobs_per_record = max(1.0, self._jobs_per_record.get(queue, 1.0))
        records = max(1, int(room / jobs_per_record))
        if not self._granted:
            asyncio.get_running_loop().call_soon(self._forget_granted)
        granted = self._granted.get(queue, 0)
        self._granted[queue] = granted + int(records * jobs_per_record)
        return records

    def _forget_granted(self) -> None:
        # The agents run on the next turn; look again after them.
        asyncio.get_running_loop().call_soon(self._look_again)

    def _look_again(self) -> None:
        self._granted.clear()
        self.wake()

    def wake(self) -> None:
        """Room was made: let the consumer look again."""
        if self._app.started:
            self._app.chunks.wake()

    # -- rebalance -----------------------------------------------------------------------------

    async def before_revoke(self) -> None:
        """All partitions are about to go: settle what has begun, forget what has not."""
        self._executor.look_for_standstill()
        self._going_at = self._app.chunks.assignments
        untouched = self._executor.untouched(self._packs.values())
        last_touched: dict[tuple[str, int], int] = {}
        for (topic, partition, offset, _), pack in self._packs.items():
            if pack not in untouched:
                last = last_touched.get((topic, partition), -1)
                last_touched[topic, partition] = max(last, offset)
        # What lies before something that was begun is given back: the offset can then pass both,
        # and the next owner need not doubt what was begun.
        forgotten = {
            place: pack for place, pack in self._packs.items()
            if pack in untouched and place[2] > last_touched.get(place[:2], -1)
        }
        self._executor.drop(self._packs.values(), forget=set(forgotten.values()))
        for place in forgotten:
            del self._packs[place]
        self.is_settled = await self.until_settled(REVOKE_SECONDS_MAX)
        if not self.is_settled:
            logger.warning("a rebalance came before all outcomes were durable; they are sent on")

    async def until_settled(self, seconds: float) -> bool:
        """Wait until every word that was given is durable; False when it takes longer."""
        try:
            await asyncio.wait_for(self._writer.drain(), seconds)
        except TimeoutError:
            return False
        return True
