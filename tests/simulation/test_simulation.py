"""Hundreds of seeded runs of the whole engine; the independent checker judges each log.

A failure names its seed: `World(seed).run()` does the same again.
"""

from __future__ import annotations

from typing import Final

import orjson
import pytest

from tests.simulation.world import World
from tidemill.schemas.batch_builder import BatchBuilder
from tidemill.streams.limits import NOTHING_USED
from tidemill.streams.policies.rate_limit import LimitUses
from tidemill.streams.store.position import Position
from tidemill.streams.store.state import PartitionState

DEATHS_MAX: Final = 3  # of workers by one job
RUNS: Final = 20  # tests, so that a failure shows early
SEEDS_PER_RUN: Final = 8


@pytest.mark.parametrize("run", range(RUNS))
def test_a_faulty_world_breaks_no_promise(run: int) -> None:
    for seed in range(run * SEEDS_PER_RUN, (run + 1) * SEEDS_PER_RUN):
        world = World(seed)
        report = world.run()
        assert report.is_clean, f"seed {seed}\n{report.text()}"
        # A job that ends its worker begins once unmarked, and from its fourth start on apart.
        assert max(world.group.deaths.values(), default=0) <= DEATHS_MAX, f"seed {seed}"


def test_signals_come_early_in_time_late_and_twice() -> None:
    told: set[tuple[str, str | None]] = set()
    for seed in range(SEEDS_PER_RUN):
        world = World(seed)
        world.run()
        for record in world.log.topic(world.topics.events):
            event = orjson.loads(record.value or b"")
            told.add((event["event"], event["reason"]))
    assert told >= {
        ("signal_kept", None), ("resumed", "signal_came"), ("resumed", "timed_out"),
        ("command_refused", "already_signalled"), ("command_refused", "timed_out"),
        ("command_refused", "already_ended"),
    }


def test_a_run_repeats_from_its_seed() -> None:
    first, second = World(7), World(7)
    first.run()
    second.run()
    topic = first.topics.events
    assert first.log.topic(topic) == second.log.topic(topic)
    assert len(first.log.topic(topic)) > 100


@pytest.fixture
def no_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: rows without the applied positions, so that inputs are decided again."""

    def without(self: Position, pages: BatchBuilder) -> None:
        row = {"applied": {}, "clock": self.clock_ms, "accepted": self.accepted}
        pages.add(b"p", orjson.dumps(row))

    monkeypatch.setattr(Position, "write", without)


@pytest.fixture
def abort_that_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: an aborted transaction leaves its jobs in the live state."""
    monkeypatch.setattr(PartitionState, "rollback", PartitionState.commit)


@pytest.fixture
def limits_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: a restore loses the use of limits."""
    monkeypatch.setattr(
        LimitUses, "read", lambda _, key, value: (tuple(orjson.loads(key[1:])), NOTHING_USED)
    )


MUTANT_SEEDS: Final = 30  # at most; a third of the worlds have what it takes to show a bug


def _is_caught_by(*kinds: str) -> bool:
    return any(World(seed).run().kinds & set(kinds) for seed in range(MUTANT_SEEDS))


@pytest.mark.interpreted
@pytest.mark.usefixtures("no_positions")
def test_positions_left_out_are_caught() -> None:
    assert _is_caught_by("position_behind", "input_decided_twice")


@pytest.mark.interpreted
@pytest.mark.usefixtures("abort_that_keeps")
def test_an_abort_that_is_not_undone_is_caught() -> None:
    assert _is_caught_by("sequence_gap", "broken_chain", "input_lost")


@pytest.mark.interpreted
@pytest.mark.usefixtures("limits_forgotten")
def test_limits_lost_by_a_restore_are_caught() -> None:
    assert _is_caught_by("limit_broken", "limit_row_disagrees")
