"""One owned partition at work: what has arrived for it, and what is decided about it in a group.

Owns the inbox of a partition and the order of deciding. Refuses to know what is decided
(`tidemill.streams.partition`), when a group begins and how it is committed
(`tidemill.agents.ledger.group_committer`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tidemill.agents.ledger.claim import Claim
from tidemill.agents.ledger.clock import LedgerClock
from tidemill.agents.ledger.dead_letter_log import DEAD_LETTERS
from tidemill.agents.ledger.metrics import COUNTS
from tidemill.agents.ledger.workers import WorkerBook
from tidemill.agents.runtime.batches import size_of
from tidemill.agents.runtime.chunk import Chunk
from tidemill.agents.runtime.inputs import Gap
from tidemill.schemas.batch_builder import OutGroup
from tidemill.streams.partition import Partition


class PartitionRunner:
    """A partition's part of its committer's groups: `decide`, then `commit` or `rollback`."""

    def __init__(
        self,
        partition: Partition,
        claim: Claim,
        book: WorkerBook,
        input_topics: tuple[str, ...],
        passed_to: Callable[[str, int], int | None],
        clock: LedgerClock,
    ) -> None:
        self.partition = partition
        self.claim = claim
        self.is_active = False  # ours, and no rebalance is going on
        self.waiting = 0  # records that have arrived and are in no group yet
        self._book = book
        self._passed_to = passed_to
        self._clock = clock
        self._topics = input_topics  # the most urgent first
        # A partition that was added to a topic is an input beside our own one.
        self._inbox: dict[tuple[str, int], deque[Chunk]] = {
            (topic, partition.number): deque() for topic in input_topics
        }
        self._is_woken = True
        self._deciding: list[Chunk] = []
        self._gaps: dict[tuple[str, int], Gap] = {}  # that are not told in the log yet

    def add(self, chunk: Chunk) -> None:
        """A chunk of one of the inputs, in the order of its topic."""
        self._inbox_of(chunk).append(chunk)
        self.waiting += len(chunk)
        self._is_woken = True

    def note_gap(self, gap: Gap) -> None:
        """Reading goes on behind a gap; what arrives from now on is from there."""
        self._gaps[gap.topic, gap.partition] = gap
        self._is_woken = True

    def _inbox_of(self, chunk: Chunk) -> deque[Chunk]:
        place = (chunk.topic, chunk.partition)
        found = self._inbox.get(place)
        if found is None:
            found = self._inbox[place] = deque()
            rank = self._topics.index
            self._inbox = dict(sorted(self._inbox.items(), key=lambda one: rank(one[0][0])))
        return found

    def wake(self) -> None:
        """Workers or definitions changed."""
        self._is_woken = True

    def due_at(self) -> float:
        """Epoch seconds from which on `decide` has something to do; 0 for at once."""
        return 0.0 if self._is_woken else self.partition.next_tick_at() / 1000

    def decide(self, records_max: int, bytes_max: int) -> tuple[int, OutGroup]:
        """Take about that much input and change the state: (records taken, what to write).

        `commit` or `rollback` must follow before the next call.
        """
        # 1. Collect what has arrived, the most urgent input first.
        self._is_woken = False
        chunks, count = self._collect(records_max, bytes_max)
        self._deciding = chunks
        # 2. Tell the engine what is known of the workers.
        partition = self.partition
        partition.begin(self._clock.now_ms())
        since_ms, until_ms = self._book.heard()
        partition.set_workers(
            self._book.alive(), heard_since_ms=since_ms, heard_until_ms=until_ms,
            former_ends=self._book.former_ends(), stalls=self._book.stalls(),
        )
        groups = self._book.groups()
        partition.set_groups(groups)
        partition.set_capacity(self._book.capacity(groups))
        for definition in list(self._book.definitions.values()):
            partition.define(definition)
        partition.ticking.set_announced(self._book.announced())
        for gap in self._gaps.values():
            partition.note_lost(gap.topic, gap.partition, gap.start, str(gap))
        # 3. Decide each input once, in order.
        for index, chunk in enumerate(chunks):
            if not partition.take_all(chunk.topic, chunk.partition, chunk.records):
                # They have led to so much that the rest is for the next group.
                self._deciding = chunks[:index]
                self._put_back(chunks[index:])
                break
        # 4. A topic that has nothing out has been read up to here, markers included.
        for topic, number in self._inbox:
            passed = self._passed_to(topic, number)
            if passed is not None:
                partition.pass_over(topic, number, passed)
        # 5. What time alone brings.
        partition.tick()
        return count, partition.seal()

    def commit(self) -> None:
        """The group's transaction is committed: its decisions stand."""
        self._gaps.clear()
        DEAD_LETTERS.tell(self.partition.dead_letters)
        COUNTS.add(self.partition.dead_letters, self.partition.forgotten_cancels)
        self.partition.commit()

    def ack(self) -> None:
        """Only now the inputs are acked; their offsets are a hint, the applied positions rule."""
        chunks, self._deciding = self._deciding, []
        for chunk in chunks:
            chunk.ack()

    def rollback(self) -> None:
        """The transaction was aborted: the state is as before, the inputs wait again."""
        self.partition.rollback()
        chunks, self._deciding = self._deciding, []
        self._put_back(chunks)

    def _put_back(self, chunks: list[Chunk]) -> None:
        """They wait again, before what has arrived since."""
        for chunk in reversed(chunks):
            self._inbox_of(chunk).appendleft(chunk)
            self.waiting += len(chunk)
        self._is_woken = True

    def _collect(self, records_max: int, bytes_max: int) -> tuple[list[Chunk], int]:
        chunks: list[Chunk] = []
        records = size = 0
        for inbox in self._inbox.values():
            while inbox and records < records_max and size < bytes_max:
                chunk = inbox.popleft()
                self.waiting -= len(chunk)
                if chunk.is_stale:
                    continue
                chunks.append(chunk)
                records += len(chunk)
                size += size_of(chunk.records)
            if inbox:
                self._is_woken = True
        return chunks, records
