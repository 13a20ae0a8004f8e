"""Jobs that gather others in a faulty world: judged by the independent checker, and at each step
by what the parent's partition knows."""

from __future__ import annotations

from random import Random
from typing import Any, Final

import pytest

from tests.simulation.ledger import Fate, Ledger
from tests.simulation.worker import FAN, USERS
from tests.simulation.world import QUICK_BACKOFF, World
from tidemill.schemas.wire import Definition
from tidemill.streams.gathers.parent import Parents
from tidemill.streams.gathers.table import OPEN, STOPPING, Gather
from tidemill.streams.turn import Turn

RUNS: Final = 4
SEEDS_PER_RUN: Final = 4


class GatheringWorld(World):
    """Some of its jobs gather members."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.definitions[FAN] = Definition(schema_version=1, type=FAN, backoff=QUICK_BACKOFF)
        self.most = 0  # members that were out at once
        self._fans = Random(seed)

    def _request(self) -> tuple[dict[str, Any], list[tuple[str, bytes | None]]]:
        found = super()._request()
        if self._fans.random() < 0.25:
            user_id = self._fans.choice(USERS)
            body = {"type": FAN, "user_id": user_id, "job_id": f"job-{len(self.receipts)}"}
            return body, []
        return found

    def _group(self, ledger: Ledger, fate: Fate) -> None:
        super()._group(ledger, fate)
        table = ledger.engine.state.policies.gather.parents.table
        for gather in table.of_digest.values():
            header = gather.head
            live = sum(not gather.counts(index) for index in range(header.released))
            assert gather.live == live
            if header.state in (OPEN, STOPPING):
                assert live <= header.parallel, f"{header.key} {header.name}"
                self.most = max(self.most, live)


@pytest.mark.parametrize("run", range(RUNS))
def test_a_faulty_world_gathers_each_member_once(run: int) -> None:
    for seed in range(run * SEEDS_PER_RUN, (run + 1) * SEEDS_PER_RUN):
        world = GatheringWorld(seed)
        report = world.run()
        assert report.is_clean, f"seed {seed}\n{report.text()}"
        assert report.checked["members"] > 10, f"seed {seed}"
        assert world.most > 1


@pytest.mark.interpreted
def test_a_member_too_many_at_once_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: each release lets one more out than the handler allowed."""
    release = Parents._release

    def generous(self: Parents, turn: Turn, gather: Gather, at_most: int) -> int:
        gather.head.parallel += 1
        return release(self, turn, gather, at_most)

    monkeypatch.setattr(Parents, "_release", generous)
    assert any(
        "too_many_members" in GatheringWorld(seed).run().kinds
        for seed in range(RUNS * SEEDS_PER_RUN)
    )
