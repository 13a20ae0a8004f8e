"""Clocks that user code freezes or replaces: a worker's own go on, and what cannot be held off is
told of."""

from __future__ import annotations

import ast
import asyncio
import logging
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import aiokafka.client
import aiokafka.consumer.group_coordinator
import faust.transport.consumer
import mode.services
import pytest
import time_machine

import tidemill.agents.worker.main  # noqa: F401  # and all that it loads
from tests.unit.freezing import AT, Freezer
from tests.unit.worker_harness import LOOK_SECONDS, Bench, bench_of, pack_of
from tidemill.agents import clocks
from tidemill.agents.ledger.clock import LedgerClock
from tidemill.agents.ledger.workers import WorkerBook
from tidemill.agents.runtime import run
from tidemill.agents.worker.heartbeat import Snapshot, beat_of
from tidemill.agents.worker.surroundings import Surroundings
from tidemill.schemas.wire import KindSlots, QueueSlots
from tidemill.streams.dispatch.slot_pool import SlotPoolName

SOON_SECONDS = 10.0
ROOT = Path(__file__).parents[2]
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": run.new_event_loop, "asyncio": run._Loop,
}
#: Everything that a worker's process loads of ours reads a clock through `tidemill.agents.clocks`.
OURS = tuple(
    f"tidemill.agents.{name}" for name in ("worker", "runtime", "clocks", "logging", "tally")
)




@pytest.fixture
def freezer() -> Iterator[Freezer]:
    made = Freezer()
    yield made
    made.thaw()


def own_seconds() -> tuple[float, float]:
    return clocks.monotonic(), clocks.wall()


def test_nothing_that_a_worker_is_made_of_can_be_frozen(freezer: Freezer) -> None:
    clocks.keep()
    now, wall = own_seconds()
    freezer.freeze()
    assert time.monotonic() == time.time() == AT
    read = [
        clocks.monotonic(),
        aiokafka.client.time.monotonic(),
        aiokafka.consumer.group_coordinator.time.monotonic(),
        vars(faust.transport.consumer)["monotonic"](),
        vars(mode.services)["monotonic"](),
        vars(subprocess)["_time"](),
    ]
    assert all(abs(each - now) < SOON_SECONDS for each in read)
    assert abs(clocks.wall() - wall) < SOON_SECONDS
    assert clocks.wall_text() > "2026"
    assert abs(logging.makeLogRecord({}).created - wall) < SOON_SECONDS
    replaced = [name for name in freezer.names if name.startswith((*OURS, *clocks.BELOW_US))]
    # A class of dates is no clock.
    assert [name for name in replaced if not name.endswith(".datetime")] == []


@pytest.mark.parametrize("name", ["time", "monotonic", "sleep", "time_ns", "perf_counter"])
def test_a_mock_in_the_module_does_not_reach_ours(name: str) -> None:
    before = own_seconds()
    with mock.patch.object(time, name, side_effect=RuntimeError("mocked away")):
        now = own_seconds()
        clocks.sleep(0)
        assert clocks.wall_ms() >= int(before[1] * 1000)
        assert clocks.wall_text()
    assert before <= now


async def hangs(payload: dict[str, Any]) -> None:
    await asyncio.get_running_loop().create_future()


def quick(payload: dict[str, Any]) -> str:
    return "quick"


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "thread"])
def test_a_worker_goes_on_when_a_handler_freezes_time(
    loop: str, is_async: bool, freezer: Freezer
) -> None:
    async def on_the_loop(payload: dict[str, Any]) -> None:
        freezer.freeze()

    def in_a_thread(payload: dict[str, Any]) -> None:
        freezer.freeze()

    handler: Any = on_the_loop if is_async else in_a_thread

    async def main() -> None:
        async with bench_of(handler, hangs, quick) as bench:
            bench.take(pack_of((handler.__name__, {})))
            await soon(lambda: bench.outcomes)
            begun = clocks.monotonic()
            bench.take(pack_of(("hangs", {}), user_id="v", timeout_ms=300))
            bench.take(pack_of(("quick", {}), user_id="w"))
            await soon(lambda: len(ends_of(bench)) == 3)
            assert clocks.monotonic() - begun >= 0.3
            ends = ends_of(bench)
        assert ends["v"]["error"]["code"] == "TIMEOUT"
        assert ends["w"]["result"] == "quick"
        for end in ends.values():
            assert abs(end["finished_at"] / 1000 - clocks.wall()) < SOON_SECONDS
            assert end["started_at"] <= end["finished_at"]

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())
    assert freezer.names


async def soon(predicate: Callable[[], Any]) -> None:
    """As `until` of the harness, whose clock stands still here."""
    deadline = clocks.monotonic() + SOON_SECONDS
    while not predicate():
        assert clocks.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(LOOK_SECONDS)


def ends_of(bench: Bench) -> dict[str, dict[str, Any]]:
    """By user."""
    return {
        each["user_id"]: each for each in bench.outcomes
        if each["kind"] not in ("started", "progressed")
    }


# -- what is replaced in C ---------------------------------------------------------------------


@pytest.mark.parametrize("at", ["2020-01-01", "2030-01-01"])
def test_a_clock_that_is_replaced_in_c_is_told_of_once(
    at: str, caplog: pytest.LogCaptureFixture
) -> None:
    surroundings = Surroundings(has_others=True)
    before = clocks.monotonic()
    with time_machine.travel(at, tick=False):
        surroundings.look(lambda: "began last: mail.send")
        surroundings.look(lambda: "began last: mail.send")
        assert before <= clocks.monotonic() < before + SOON_SECONDS  # so nothing stands still
    [line] = [each for each in caplog.messages if "has replaced its clock" in each]
    assert "began last: mail.send" in line


def test_a_clock_that_is_as_the_systems_is_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    Surroundings(has_others=True).look(lambda: "began last: mail.send")
    assert "clock" not in caplog.text


def test_the_ledger_hears_of_free_slots_from_a_worker_whose_clock_stands_still() -> None:
    book = WorkerBook(LedgerClock())
    told = []
    for free in (0, 3, 3):
        room = QueueSlots(kinds={"async": KindSlots(slots=4, free=free)}, partitions=(0,))
        snapshot = Snapshot(queues={"mail": room}, types=("mail.send",))
        book.note_beat(beat_of(snapshot, worker_id="w", incarnation=1, at_ms=int(AT * 1000)))
        told.append(book.capacity()[SlotPoolName("mail", "async", "")].heartbeat_version)
    assert len(set(told)) == 3


# -- who may read Python's own -----------------------------------------------------------------

#: What shares its process with code of users. The stand-in beside a worker runs none.
SHARED = ("agents/worker", "agents/runtime", "tidemill")
APART = {"stand_in.py", "demo.py"}


def reads_of(path: Path) -> list[str]:
    """Where a file reads a clock of Python's that user code may replace."""
    return [
        f"{path.name}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("time", "monotonic"), ("time", "sleep")}
    ]


@pytest.mark.parametrize("folder", SHARED)
def test_what_waits_beside_users_code_waits_by_our_own_clocks(folder: str) -> None:
    files = [each for each in (ROOT / folder).glob("*.py") if each.name not in APART]
    assert files
    assert [place for each in files for place in reads_of(each)] == []
