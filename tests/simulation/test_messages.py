"""Jobs and messages in one faulty world: neither takes anything from the other.

The independent checker judges jobs, forwards and the numbers of messages; the plan's own model
(`tests.unit.message_kit`) says which messages there must be.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from random import Random
from typing import Final

import pytest

from tests.chaos.checker import Evidence
from tests.simulation.ledger import Fate, Ledger
from tests.simulation.world import PARTITIONS, World
from tests.unit.message_kit import (
    Message,
    Plan,
    TakenMessages,
    check_order,
    check_taken,
    expected,
    follow,
    read_message,
    relays,
)
from tidemill.streams.partition import Partition

RUNS: Final = 8
SEEDS_PER_RUN: Final = 4
KEYS: Final = ("user-1", "a/b", "queue:mail", "schedule:nightly", "model:gpt-4o", None)


class TalkingWorld(World):
    """Its partitions talk to each other beside their work."""

    policies = staticmethod(relays)

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.wanted: Counter[tuple[int, int, str]] = Counter()
        self._talk = Random(seed)  # one of its own: what else happens is as without messages

    def _group(self, ledger: Ledger, fate: Fate) -> None:
        if self.now_ms < self.quiet_from and self._talk.random() < 0.2:
            name, plan = f"s{self.wanted.total()}", self._plan(3)
            self.wanted += expected(ledger.number, name, plan, PARTITIONS)
            ledger.asks.append(partial(_say, ledger.number, name, plan))
        super()._group(ledger, fate)

    quiet_from = 2**62

    def _be_kind(self) -> None:
        self.quiet_from = 0
        super()._be_kind()

    def _plan(self, depth: int) -> Plan:
        if not depth:
            return []
        count = self._talk.choice((0, 1, 1, 2))
        return [(self._talk.choice(KEYS), self._plan(depth - 1)) for _ in range(count)]

    def evidence(self) -> Evidence:
        """Without the rows of the relay, of which the checker knows nothing."""
        evidence = super().evidence()
        evidence.state = [row for row in evidence.state or () if (row.key or b"")[:1] != b"r"]
        evidence.internal = list(evidence.internal)
        return evidence

    def messages(self) -> list[Message]:
        return [
            read_message(record.partition, record.value, record.headers)
            for record in self.log.topic(self.topics.internal)
            if dict(record.headers)["tidemill-kind"] == b"message"
        ]

    def taken(self) -> dict[int, dict[int, tuple[str, ...]]]:
        found: dict[int, dict[int, tuple[str, ...]]] = {}
        for ledger in self.ledgers:
            table = ledger.engine.state._by_kind[b"r"]
            assert isinstance(table, TakenMessages)
            found[ledger.number] = dict(table.values)
        return found


def _say(number: int, name: str, plan: Plan, engine: Partition) -> None:
    follow(engine.messages.turn, number, name, plan)


@pytest.mark.parametrize("run", range(RUNS))
def test_a_faulty_world_neither_loses_nor_doubles_a_message(run: int) -> None:
    for seed in range(run * SEEDS_PER_RUN, (run + 1) * SEEDS_PER_RUN):
        world = TalkingWorld(seed)
        report = world.run()
        assert report.is_clean, f"seed {seed}\n{report.text()}"
        sent = world.messages()
        assert len(sent) > 20, f"seed {seed}"
        found = Counter((one.origin, one.target, one.body["name"]) for one in sent)
        assert found == world.wanted, f"seed {seed}"
        check_order(sent)
        check_taken(sent, world.taken())
