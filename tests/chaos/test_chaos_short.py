"""The short chaos run: 20,000 jobs, kill -9 of every role, a zombie, a dead broker; then the proof.

Owns nothing of its own: the long form is `make chaos`.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.chaos.__main__ import chaos
from tests.chaos.handlers import PARALLEL
from tests.chaos.run import Plan

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

KILLS = 7
KILLS_MIN = 5  # a kill of what was killed a moment ago is none
KINDS = {"ledger", "worker", "stack"}
RECOVERED_SECONDS_MAX = 60.0  # the backlog of a run of a minute and a half, on two busy cores


def test_nothing_is_lost_and_nothing_ends_twice(tmp_path: Path) -> None:
    outcome = chaos(Plan(jobs=20_000, seconds=80.0, kills=KILLS), tmp_path)
    print(outcome.report.text())
    assert outcome.report.is_clean, outcome.report.text()
    killed = [death for death in outcome.deaths if death.exit_code == -signal.SIGKILL]
    assert len(killed) >= KILLS_MIN
    assert {death.role.split("-")[0] for death in killed} == KINDS
    assert {fault.what for fault in outcome.faults} == {"kill", "stop", "broker"}
    checked = outcome.report.checked
    assert checked["receipts"] == 20_000
    # What the load is to be made of, beside plain jobs.
    assert checked["steps"] > 900
    assert checked["resumed"] > 500
    assert checked["joined"] > 30
    assert checked["signalled"] > 60
    assert checked["ticks"] > 120
    assert checked["members"] > 400
    assert checked["members at once"] == PARALLEL
    assert outcome.ended_seconds < RECOVERED_SECONDS_MAX
