"""A seek that a rebalance overtakes touches nothing: the rebalance ends with one of its own."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from faust.types import TP

from agents.runtime.inputs import InputPartition, InputPolicy
from agents.runtime.transport import ChunkConsumer

HERE = TP("jobs.outcomes", 2)


def consumer(*, is_overtaken: bool) -> tuple[ChunkConsumer, list[Any]]:
    """A consumer whose broker answers; on the way, the partition is revoked, if so asked."""
    made: Any = ChunkConsumer.__new__(ChunkConsumer)
    sought: list[Any] = []

    async def beginnings(wanted: list[TP]) -> dict[TP, int]:
        return dict.fromkeys(wanted, 0)

    async def ends(wanted: list[TP]) -> dict[TP, int]:
        made._revocations += is_overtaken
        return dict.fromkeys(wanted, 9)

    async def applied_positions(partitions: set[int]) -> dict[tuple[str, int], int]:
        assert partitions == {HERE.partition}
        # Another topic's position, of which this consumer is not told, changes nothing.
        return {(HERE.topic, HERE.partition): 7, ("jobs.other", HERE.partition): 8}

    made._revocations = 0
    made._inputs, made._in_order, made._waiter = {}, [], None
    made.app = SimpleNamespace(
        input_policies={HERE.topic: InputPolicy()}, applied_positions=applied_positions
    )
    made.assignment = lambda: {HERE}
    made._kafka = SimpleNamespace(
        beginning_offsets=beginnings, end_offsets=ends, resume=lambda *_: None,
        seek=lambda place, offset: sought.append((place.topic, place.partition, offset)),
        _fetcher=SimpleNamespace(_records={}),
    )
    made._new_input = lambda tp, policy: InputPartition(tp, policy, asyncio.Queue())
    return made, sought


async def test_a_seek_says_where_reading_goes_on() -> None:
    made, sought = consumer(is_overtaken=False)
    await made.perform_seek()
    assert sought == [("jobs.outcomes", 2, 7)]
    assert list(made._inputs) == [HERE]
    # What was applied is committed, although no record comes.
    assert made._inputs[HERE].tracker.committable() == 7


async def test_a_seek_that_a_rebalance_overtook_touches_nothing() -> None:
    made, sought = consumer(is_overtaken=True)
    await made.perform_seek()
    assert sought == []
    assert made._inputs == {}
