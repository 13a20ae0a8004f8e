"""The ledger's clock where this machine's clock jumps: forward, back, and behind another's."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.agents.ledger.clock import CATCHING_UP, TOLD_SECONDS, LedgerClock

BEGUN = 1_800_000_000.0
HOUR = 3_600.0


class Machine:
    """A wall clock that may be set, and a steady one."""

    def __init__(self) -> None:
        self.wall = BEGUN
        self.steady = 100.0
        self.clock = LedgerClock(lambda: self.wall, lambda: self.steady)

    def pass_seconds(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


def test_it_is_the_machines_clock() -> None:
    machine = Machine()
    machine.pass_seconds(5)
    assert machine.clock.now() == BEGUN + 5
    assert machine.clock.now_ms() == int(BEGUN + 5) * 1000


def test_it_jumps_forward_with_the_machine() -> None:
    machine = Machine()
    machine.clock.now()
    machine.wall += HOUR
    assert machine.clock.now() == BEGUN + HOUR


def test_set_back_it_goes_on_slower_until_both_agree() -> None:
    machine = Machine()
    machine.wall += HOUR
    before = machine.clock.now()
    machine.wall -= HOUR

    machine.pass_seconds(20)
    assert machine.clock.now() == before + 20 * CATCHING_UP
    machine.pass_seconds(2 * HOUR - 20)
    assert machine.clock.now() == machine.wall
    machine.pass_seconds(7)
    assert machine.clock.now() == machine.wall


def test_an_instant_that_was_used_is_not_before_it() -> None:
    machine = Machine()
    machine.clock.note(int(BEGUN + HOUR) * 1000)
    machine.pass_seconds(10)
    assert machine.clock.now() == BEGUN + HOUR + 10 * CATCHING_UP
    machine.clock.note(int(BEGUN) * 1000)
    assert machine.clock.now() == BEGUN + HOUR + 10 * CATCHING_UP


def test_being_behind_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    machine.clock.now()
    with caplog.at_level(logging.INFO):
        machine.wall -= TOLD_SECONDS / 2
        machine.clock.now()
        assert not caplog.records
        machine.wall -= HOUR
        for _ in range(5):
            machine.pass_seconds(1)
            machine.clock.now()
        assert [one.levelname for one in caplog.records] == ["WARNING"]
        assert "synchronise the clocks" in caplog.text
        machine.pass_seconds(3 * HOUR)
        machine.clock.now()
        assert [one.levelname for one in caplog.records] == ["WARNING", "INFO"]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-HOUR, HOUR)), max_size=30))
def test_it_never_goes_back_and_never_stands_still(steps: list[tuple[float, float]]) -> None:
    machine = Machine()
    last = machine.clock.now()
    for passed, jump in steps:
        machine.pass_seconds(passed)
        machine.wall += jump
        now = machine.clock.now()
        assert now >= machine.wall
        assert now - last >= passed * CATCHING_UP - 1e-6
        last = now
