"""The right to write one partition: who has it, and how it passes from one process to the next.

Owns the protocol of a hand-over. Refuses to know what is written under that right.

A process writes all its partitions with the same few producers
(`tidemill.agents.ledger.group_committer`), so their transactional ids name a process and not a
partition. Whoever takes a partition over must therefore learn whose ids wrote it last, and fence
them all:

1. *Lock*: `init_transactions` of the partition's own id fences everybody else who is claiming it.
2. *Read* the partition's last claim: transactional ids, and whether their owner has let go.
3. *Fence* those ids, unless their owner has let go or they are ours. A zombie's next commit then
   fails.
4. *Claim*: write our ids through the lock. Somebody who locked after us has made this fail.

An owner that hands over in good order writes that it lets go, and claims anew when the partition
comes back to it; the lock tells it when somebody else has had the partition in between.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import orjson

from tidemill.agents.runtime.errors import AbortableError
from tidemill.agents.runtime.restore import read_compacted
from tidemill.agents.runtime.transaction import TransactionalProducer
from tidemill.schemas.batch_builder import OutGroup
from tidemill.schemas.topics import Topics

logger = logging.getLogger("tidemill.ledger")

CLAIM_KEY: Final = b"owner"
# A hand-over goes on without an answer from the broker: the next owner then has to fence.
LET_GO_SECONDS_MAX: Final = 5.0
AGAIN_SECONDS: Final = 0.2  # before a refused note is written again


class Claim:
    """One partition's claim, held by this process from `take` to `close`."""

    def __init__(
        self, kafka: str, topics: Topics, partition: int, transactional_ids: tuple[str, ...]
    ) -> None:
        self._kafka = kafka
        self._topic = topics.owners
        self._partition = partition
        self._transactional_ids = transactional_ids
        self._lock = TransactionalProducer(kafka, f"{topics.prefix}tidemill-owner-{partition}")
        self._writing = asyncio.Lock()  # a stop may meet a rebalance; the id has one transaction
        self._is_held = False
        self._letting_go: asyncio.Task[None] | None = None

    async def take(self) -> None:
        """Return once nobody but this process can write the partition. FatalError: fenced."""
        await self._lock.init()
        former = await asyncio.to_thread(self._read)
        others = [name for name in former if name not in self._transactional_ids]
        await asyncio.gather(*map(self._fence, others))
        await self._write(has_let_go=False)

    async def renew(self) -> None:
        """Claim again what was let go. FatalError when somebody else has had it since."""
        letting_go = self._letting_go
        if letting_go is not None:
            await letting_go
            if self._letting_go is letting_go:  # a stop may have begun another one meanwhile
                self._letting_go = None
        if not self._is_held:
            await self._write(has_let_go=False)

    async def let_go(self) -> None:
        """Note that this process writes no more: who comes next need not fence it."""
        self._is_held = False
        letting_go = self._letting_go = asyncio.create_task(self._write(has_let_go=True))
        done, _ = await asyncio.wait({letting_go}, timeout=LET_GO_SECONDS_MAX)
        if not done:
            logger.warning("partition %s is handed over without a note yet", self._partition)
            return
        # FatalError here: another owner came while this process was away.
        letting_go.result()

    async def close(self) -> None:
        """The partition has gone elsewhere; a note that is still on its way does not matter."""
        if self._letting_go is not None and not self._letting_go.done():
            self._letting_go.cancel()
        await self._lock.close()

    def _read(self) -> tuple[str, ...]:
        """The ids that may still be writing; none when the last owner has let go."""
        owner: tuple[str, ...] = ()
        for batch in read_compacted(self._kafka, self._topic, self._partition):
            for _, value in batch:
                if value is not None:
                    row = orjson.loads(value)
                    owner = () if row["has_let_go"] else tuple(row["transactional_ids"])
        return owner

    async def _fence(self, transactional_id: str) -> None:
        logger.info("partition %s: fencing %s", self._partition, transactional_id)
        fence = TransactionalProducer(self._kafka, transactional_id)
        try:
            await fence.init()
        finally:
            await fence.close()

    async def _write(self, *, has_let_go: bool) -> None:
        value = orjson.dumps(
            {"transactional_ids": self._transactional_ids, "has_let_go": has_let_go}
        )
        async with self._writing:
            while True:
                try:
                    await self._lock.commit_group(
                        OutGroup([(self._topic, self._partition, CLAIM_KEY, value, None)])
                    )
                    break
                except AbortableError as error:
                    logger.warning("partition %s: %s; again", self._partition, error)
                    await asyncio.sleep(AGAIN_SECONDS)
            self._is_held = not has_let_go
