"""A seek that a rebalance overtakes touches nothing: the rebalance ends with one of its own."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from faust.tables.recovery import RebalanceAgain
from faust.types import TP

from tidemill.agents import exit_codes
from tidemill.agents.runtime import inputs
from tidemill.agents.runtime.inputs import Gap, InputPartition, InputPolicy
from tidemill.agents.runtime.transport import ChunkConsumer

HERE = TP("jobs.outcomes", 2)


def consumer(
    *, overtaken: str = "", start: int = 0, end: int = 9, applied: int | None = 7,
    is_gap_fatal: bool = False, gaps: list[Gap] | None = None,
) -> tuple[ChunkConsumer, list[Any]]:
    """A consumer whose broker answers; on the way, the partition is revoked, if so asked."""
    made: Any = ChunkConsumer.__new__(ChunkConsumer)
    sought: list[Any] = []

    async def beginnings(wanted: list[TP]) -> dict[TP, int]:
        return dict.fromkeys(wanted, start)

    async def ends(wanted: list[TP]) -> dict[TP, int]:
        made._is_revoked |= overtaken == "revoked meanwhile"
        made.assignments += overtaken == "assigned meanwhile"
        return dict.fromkeys(wanted, end)

    async def applied_positions(partitions: set[int]) -> dict[tuple[str, int], int]:
        assert partitions == {HERE.partition}
        # Another topic's position, of which this consumer is not told, changes nothing.
        here = {} if applied is None else {(HERE.topic, HERE.partition): applied}
        return {**here, ("jobs.other", HERE.partition): 8}

    made._is_revoked, made.is_placed = overtaken == "revoked before", False
    made.assignments = 1
    made._inputs, made._in_order, made._waiter = {}, [], None
    made.app = SimpleNamespace(
        input_policies={HERE.topic: InputPolicy(is_gap_fatal=is_gap_fatal)},
        applied_positions=applied_positions, on_gap=None if gaps is None else gaps.append,
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
    made, sought = consumer()
    await made.perform_seek()
    assert made.is_placed
    assert sought == [("jobs.outcomes", 2, 7)]
    assert list(made._inputs) == [HERE]
    # What was applied is committed, although no record comes.
    assert made._inputs[HERE].tracker.committable() == 7


@pytest.mark.parametrize(
    "overtaken", ["revoked before", "revoked meanwhile", "assigned meanwhile"]
)
async def test_a_seek_that_a_rebalance_overtook_touches_nothing(overtaken: str) -> None:
    made, sought = consumer(overtaken=overtaken)
    with pytest.raises(RebalanceAgain):
        await made.perform_seek()
    assert sought == []
    assert not made.is_placed
    assert made._inputs == {}


@pytest.mark.parametrize(
    ("start", "end", "applied", "word"),
    [
        (8, 9, 7, "1 offsets were deleted"),  # the next record is gone
        (900, 900, 7, "893 offsets were deleted"),  # all of them are
        (0, 3, 7, "made again"),  # another log under the same name
        (5, 9, None, "5 offsets were deleted"),  # before anybody read
        (5, 9, 0, "5 offsets were deleted"),
    ],
)
async def test_a_gap_is_told_and_reading_goes_on_behind_it(
    caplog: pytest.LogCaptureFixture, start: int, end: int, applied: int | None, word: str
) -> None:
    gaps: list[Gap] = []
    made, sought = consumer(start=start, end=end, applied=applied, gaps=gaps)
    await made.perform_seek()
    assert sought == [("jobs.outcomes", 2, start)]
    assert [(gap.wanted, gap.start, gap.end) for gap in gaps] == [(applied or 0, start, end)]
    assert word in caplog.text
    assert "topic jobs.outcomes, partition 2" in caplog.text


@pytest.mark.parametrize(("start", "end", "applied"), [(0, 9, 9), (7, 7, 7), (0, 0, None)])
async def test_what_was_read_to_its_end_has_no_gap(
    start: int, end: int, applied: int | None
) -> None:
    gaps: list[Gap] = []
    made, _ = consumer(start=start, end=end, applied=applied, gaps=gaps, is_gap_fatal=True)
    await made.perform_seek()
    assert gaps == []


async def test_a_gap_that_nobody_accepts_ends_the_process_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends: list[Any] = []

    def end(reason: str, error: object = None, code: int = 0) -> None:
        ends.append((reason, code))
        raise SystemExit(code)

    monkeypatch.setattr(inputs, "fail_stop", end)
    made, sought = consumer(start=8, is_gap_fatal=True, gaps=[])
    with pytest.raises(SystemExit):
        await made.perform_seek()
    (reason, code), = ends
    assert code == exit_codes.GAP
    assert "TIDEMILL_ACCEPT_GAPS" in reason
    assert code in exit_codes.HOPELESS
    assert sought == []
