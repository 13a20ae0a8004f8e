"""One owner of a ledger partition on the memory log, with the ways in which it may break.

Owns the numbered steps of a group, as the real owner has them, and what a crash between two of
them leaves behind. Refuses to know which fault comes when: `world` draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from random import Random
from typing import Final

from tests.chaos.rawlog import RawRecord
from tests.simulation.memory_log import MemoryLog
from tests.unit.partition_kit import Policies, decided, no_policies, restored
from tidemill.schemas.topics import Topics
from tidemill.schemas.wire import Definition
from tidemill.streams.dispatch.slot_pool import Groups, SlotPoolName
from tidemill.streams.partition import Capacity, Partition

CHUNK_RECORDS_MAX: Final = 12  # records of one input in one group: small, so that groups are many


class Fate(Enum):
    """How a group ends."""

    COMMITTED = "committed"
    ABORTED = "aborted"  # the transaction is aborted, the owner goes on
    CRASH_BEFORE_COMMIT = "crash before commit"  # nothing was written, the owner is gone
    CRASH_AFTER_COMMIT = "crash after commit"  # all was written, the owner never learned it
    CRASH_BEFORE_ACK = "crash before ack"  # the decisions stand, consumer offsets do not


class Ledger:
    """The owner of partition `number`; `restore` is what its successor does."""

    def __init__(
        self, log: MemoryLog, topics: Topics, number: int, partitions: int, rng: Random,
        policies: Policies = no_policies,
    ) -> None:
        self.number = number
        #: What happens in the next group beside its inputs; gone once that is committed.
        self.asks: list[Callable[[Partition], None]] = []
        self._policies = policies
        self._log = log
        self._topics = topics
        self._partitions = partitions
        self._rng = rng
        self.restores = -1
        self.restore(0)

    def restore(self, now_ms: int) -> None:
        """A new owner: rows from the state topic, inputs from the applied positions on."""
        rows = self._log.read((self._topics.state, self.number), 0, 10**9)
        self.engine = restored(
            ((row.key or b"", row.value) for row in rows), now_ms,
            number=self.number, partitions=self._partitions, topics=self._topics,
            policies=self._policies,
        )
        self.skew_ms = self._rng.choice((0, 0, 0, -5_000, -700, 300))  # another machine's clock
        applied = self.engine.state.applied
        self.positions = {
            topic: applied.get(topic, -1) + 1 for topic in self._topics.ledger_inputs
        }
        self.restores += 1

    def rewind(self) -> None:
        """Some inputs are delivered again: what a rebalance does with unacked records."""
        for topic in self.positions:
            if self._rng.random() < 0.5:
                self.positions[topic] = max(0, self.positions[topic] - self._rng.randrange(30))

    def group(
        self,
        fate: Fate,
        now_ms: int,
        *,
        alive: Mapping[str, int],
        capacity: Mapping[SlotPoolName, Capacity],
        definitions: Iterable[Definition],
        told: Mapping[str, Groups],
    ) -> None:
        """One group, to its end or to its crash."""
        # 1. Collect.
        chunks = self._collect()
        # 2. Decide.
        engine = self.engine
        records = decided(
            engine, now_ms + self.skew_ms, chunks,
            alive=alive, rooms=capacity, definitions=definitions, told=told,
            asks=self.asks,
        )
        # 3. One transaction.
        if fate is Fate.ABORTED:
            engine.rollback()
            return
        if fate is Fate.CRASH_BEFORE_COMMIT:
            self.restore(now_ms)
            return
        if records:
            self._log.commit(records, now_ms)
        self.asks = []
        if fate is Fate.CRASH_AFTER_COMMIT:
            self.restore(now_ms)
            return
        # 4. The decisions stand.
        engine.commit()
        if fate is Fate.CRASH_BEFORE_ACK:
            self.restore(now_ms)
            return
        # 5. Ack.
        for record in chunks:
            self.positions[record.topic] = record.offset + 1

    def _collect(self) -> list[RawRecord]:
        chunks: list[RawRecord] = []
        for topic in self._topics.ledger_inputs:
            most = self._rng.randint(0, CHUNK_RECORDS_MAX)
            chunks += self._log.read((topic, self.number), self.positions[topic], most)
        return chunks

    def has_input(self) -> bool:
        """Whether there is anything that has not been read."""
        return any(
            self._log.read((topic, self.number), position, 1)
            for topic, position in self.positions.items()
        )
