"""A partition's share of a group when what it decides leads to much: the rest waits, in order."""

from __future__ import annotations

from typing import Any, Final, cast

import orjson
import pytest

from tests.chaos.rawlog import RawRecord
from tests.unit.core_kit import NOW
from tests.unit.message_kit import RELAY, TakenMessages, relays
from tests.unit.partition_kit import TOPICS, restored
from tidemill.agents.ledger.clock import LedgerClock
from tidemill.agents.ledger.runner import PartitionRunner
from tidemill.agents.ledger.workers import WorkerBook
from tidemill.agents.runtime.chunk import Chunk
from tidemill.agents.runtime.tracker import OffsetTracker
from tidemill.streams.envelope import KIND_HEADER, ORIGIN_HEADER, POLICY_HEADER
from tidemill.streams.partition import DECISIONS_MAX

CHUNK_RECORDS: Final = 40
EVERYTHING: Final = 10**9
HEADERS: Final = (
    (ORIGIN_HEADER, b"jobs.internal/0/1"), (KIND_HEADER, b"message"),
    (POLICY_HEADER, RELAY.encode()),
)


class Bench:
    """A runner, its input, and what it has acked."""

    def __init__(self) -> None:
        self.engine = restored([], NOW, policies=relays)
        clock = LedgerClock()
        self.runner = PartitionRunner(
            self.engine, cast("Any", None), WorkerBook(clock), TOPICS.ledger_inputs,
            lambda *_: None, clock,
        )
        self.tracker = OffsetTracker()
        self.acks = 0
        self.sent = 0

    def arrive(self, chunks: int, plan: list[Any]) -> None:
        for _ in range(chunks):
            first = self.sent
            self.sent += CHUNK_RECORDS
            records = [
                RawRecord(
                    TOPICS.internal, 0, offset, NOW, None,
                    orjson.dumps({"name": str(offset), "plan": plan}), HEADERS,
                )
                for offset in range(first, self.sent)
            ]
            run = self.tracker.deliver(records, 0)
            self.runner.add(Chunk(TOPICS.internal, 0, records, run, self._on_ack))

    def _on_ack(self) -> None:
        self.acks += 1

    def taken(self) -> list[str]:
        table = self.engine.state._by_kind[b"r"]
        assert isinstance(table, TakenMessages)
        return list(table.get(0) or ())

    def applied(self) -> int:
        return self.engine.state.applied.get(TOPICS.internal, -1) + 1


@pytest.mark.parametrize("aborted", [(), (0,), (1, 2)])
def test_the_rest_of_the_input_waits_for_the_next_group(aborted: tuple[int, ...]) -> None:
    bench = Bench()
    each = 10  # one to take it, nine that it sends
    bench.arrive(20, [["k", []]] * (each - 1))
    before = 0
    for group in range(100):
        bench.runner.decide(EVERYTHING, EVERYTHING)
        assert bench.applied() - before <= DECISIONS_MAX // each
        if group in aborted:
            bench.runner.rollback()
            assert bench.applied() == before
            assert bench.runner.due_at() == 0
            continue
        bench.runner.commit()
        bench.runner.ack()
        before = bench.applied()
        # A chunk is acked once all of it is decided, and never before.
        assert bench.acks == before // CHUNK_RECORDS
        if before == bench.sent:
            break
        assert bench.runner.due_at() == 0
    assert bench.taken() == [str(number) for number in range(bench.sent)]
    assert bench.acks == 20
    assert bench.runner.waiting == 0


def test_an_input_that_leads_to_little_is_taken_whole() -> None:
    bench = Bench()
    bench.arrive(20, [])
    bench.runner.decide(EVERYTHING, EVERYTHING)
    bench.runner.commit()
    bench.runner.ack()
    assert (bench.applied(), bench.acks, bench.runner.waiting) == (bench.sent, 20, 0)
