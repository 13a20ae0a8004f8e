"""Partitions that exchange messages: under any borders of groups, aborts and kills, each message
is taken once, in the order in which its sender sent it there.

The policy is the tests' relay (`tests.unit.message_kit`); what must come of its plans is computed
without the engine.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.simulation.ledger import Fate
from tests.simulation.memory_log import MemoryLog
from tests.unit.core_kit import NOW
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
from tests.unit.partition_kit import restored
from tidemill.schemas.topics import Topics
from tidemill.streams.partition import Partition

TOPICS: Final = Topics()
EXAMPLES: Final = 300
GROUPS_MAX: Final = 2_000  # of the quiet end; each takes all that waits

KEYS: Final = st.sampled_from(
    (None, "u", "queue:mail", "schedule:nightly", "model:gpt-4o", *(f"user-{n}" for n in range(6)))
)
PLANS: Final[st.SearchStrategy[Plan]] = st.recursive(
    st.just([]),
    lambda inner: st.lists(st.tuples(KEYS, inner), max_size=3),
    max_leaves=8,
)


class Owner:
    """The owner of one partition, on the memory log."""

    def __init__(self, log: MemoryLog, number: int, partitions: int) -> None:
        self._log = log
        self._number = number
        self._partitions = partitions
        self.seeds: list[tuple[str, Plan]] = []  # plans that it is to begin with
        self.engine = self.restored()
        self._position = 0

    def restored(self) -> Partition:
        rows = self._log.read((TOPICS.state, self._number), 0, 10**9)
        return restored(
            ((row.key or b"", row.value) for row in rows), NOW, number=self._number,
            partitions=self._partitions, policies=relays,
        )

    def restart(self) -> None:
        self.engine = self.restored()
        self._position = self.engine.state.applied.get(TOPICS.internal, -1) + 1

    def group(self, fate: Fate, now_ms: int, most: int, rewind: int = 0) -> bool:
        """One group, to its end or to its crash. False when there was nothing to do."""
        engine, place = self.engine, (TOPICS.internal, self._number)
        records = self._log.read(place, max(0, self._position - rewind), most)
        if not records and not self.seeds:
            return False
        engine.begin(now_ms)
        for name, plan in self.seeds:
            follow(engine.messages.turn, self._number, name, plan)
        is_whole = engine.take_all(TOPICS.internal, self._number, records)
        engine.tick()
        out = list(engine.seal())
        if fate is Fate.ABORTED:
            engine.rollback()
            return True
        if fate is not Fate.CRASH_BEFORE_COMMIT:
            self._log.commit(out, now_ms)
            self.seeds = []
        if fate is Fate.COMMITTED:
            engine.commit()
            if is_whole and records:
                self._position = max(self._position, records[-1].offset + 1)
        else:
            self.restart()
        return True


def messages_of(log: MemoryLog) -> list[Message]:
    return [
        read_message(record.partition, record.value, record.headers)
        for record in log.topic(TOPICS.internal)
    ]


def taken_by(engine: Partition) -> dict[int, tuple[str, ...]]:
    table = engine.state._by_kind[b"r"]
    assert isinstance(table, TakenMessages)
    return dict(table.values)


STEPS: Final = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from([Fate.COMMITTED, Fate.COMMITTED, *Fate]),
        st.integers(0, 7), st.integers(0, 5), st.none() | PLANS,
    ),
    max_size=40,
)


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(partitions=st.integers(1, 4), steps=STEPS)
def test_each_message_is_taken_once_and_in_order(
    partitions: int, steps: list[tuple[int, Fate, int, int, Plan | None]]
) -> None:
    log = MemoryLog()
    owners = [Owner(log, number, partitions) for number in range(partitions)]
    wanted: Counter[tuple[int, int, str]] = Counter()
    for index, (who, fate, most, rewind, plan) in enumerate(steps):
        number = who % partitions
        if plan:
            owners[number].seeds.append((f"s{index}", plan))
            wanted += expected(number, f"s{index}", plan, partitions)
        owners[number].group(fate, NOW + index, most, rewind)
    groups = 0
    while any(owner.group(Fate.COMMITTED, NOW + 1_000, 10**6) for owner in owners):
        groups += 1
        assert groups < GROUPS_MAX
    sent = messages_of(log)
    check_order(sent)
    assert Counter((one.origin, one.target, one.body["name"]) for one in sent) == wanted
    # What the living owners know, and what their successors would.
    check_taken(sent, {n: taken_by(owner.engine) for n, owner in enumerate(owners)})
    check_taken(sent, {n: taken_by(owner.restored()) for n, owner in enumerate(owners)})
