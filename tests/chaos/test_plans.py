"""The schedule of faults and the mutations, without an engine: quick, so that they fail early."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.engine import LEDGERS, STACK, WORKERS
from tests.chaos.faults import schedule
from tests.chaos.handlers import EXPECT
from tests.chaos.load import MIX, requests
from tests.chaos.mutations import MUTATIONS, Mutation, MutationMoved, Patch, scratch_copy

ROOT: Final = Path(__file__).resolve().parents[2]


def test_each_role_is_killed_and_the_seed_decides() -> None:
    faults = schedule(kills=7, seconds=90, seed=1)
    assert faults == schedule(kills=7, seconds=90, seed=1)
    assert faults != schedule(kills=7, seconds=90, seed=2)
    assert Counter(fault.what for fault in faults) == {"kill": 7, "stop": 2, "broker": 1}
    killed = {fault.role for fault in faults if fault.what == "kill"}
    assert killed == {*LEDGERS, *WORKERS, STACK}


def test_the_load_is_made_of_everything() -> None:
    sent = list(requests(5_000, 1))
    assert {item.kind for item in sent} == {"job", "poison"}
    named = Counter((item.user_id, item.job_id) for item in sent if item.job_id is not None)
    assert max(named.values()) >= 2
    assert any(item.unique_key for item in sent)
    assert any(item.run_at_ms for item in sent)
    assert [item.value for item in sent if item.run_at_ms is None] == [
        item.value for item in requests(5_000, 1) if item.run_at_ms is None
    ]


def test_the_checker_is_told_of_each_type() -> None:
    asked = {name for name, _ in MIX} | {"chaos.child", "chaos.member"}
    assert asked == set(EXPECT["max_attempts"])


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_mutation_still_fits_the_source(mutation: Mutation, tmp_path: Path) -> None:
    source = scratch_copy(ROOT, tmp_path / "source", mutation.patches)
    for patch in mutation.patches:
        compile((source / patch.path).read_text(), patch.path, "exec")


def test_a_patch_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    patch = Patch("streams/store/state.py", "no such text", "")
    with pytest.raises(MutationMoved, match="0 times"):
        scratch_copy(ROOT, tmp_path / "source", [patch])
