"""A worker's clock is kept within the ledger's instants; how long something took is kept too."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.unit.core_kit import KNOWN, NOW, after, decide, report, submit
from tests.unit.partition_kit import (
    Scene,
    events_in,
    outcome,
    outcomes,
    plain,
    request,
)
from tidemill.schemas.words import State
from tidemill.streams.commands import Dispatch
from tidemill.streams.decision import Accepted
from tidemill.streams.job import Job

HOUR: Final = 3_600_000
DAY: Final = 24 * HOUR
SENT: Final = NOW + 100  # when the job was dispatched, asked for at NOW
TOLD: Final = NOW + 5_000  # when the ledger hears of the end
RAN: Final = 3_000
SKEWS: Final = (
    0, 1, -1, 50, -150, 1_500, -1_500, HOUR, -HOUR, DAY - 1, DAY + 1, 400 * DAY, -400 * DAY
)


def dispatched() -> Job:
    return after(after(None, submit()), Dispatch(), now=SENT)


def story(job: Job, kind: str, **facts: Any) -> list[Any]:
    decision = decide(job, report(kind, **facts), TOLD, KNOWN)
    assert isinstance(decision, Accepted)
    return decision.events


@pytest.mark.parametrize("kind", ["succeeded", "failed"])
@pytest.mark.parametrize("skew", SKEWS)
def test_a_quick_attempt_by_any_clock(skew: int, kind: str) -> None:
    begun = SENT + 200 + skew
    event = story(dispatched(), kind, started_at=begun, finished_at=begun + RAN)[0]
    assert SENT <= event.started_at <= TOLD - RAN
    assert event.wait_ms == event.started_at - NOW
    assert event.run_ms == RAN
    if skew in (0, 1, -1, 50, 1_500):
        assert event.started_at == begun


@pytest.mark.parametrize("skew", SKEWS)
def test_an_attempt_that_told_its_start(skew: int) -> None:
    begun = SENT + 200 + skew
    heard = SENT + 800
    decision = decide(dispatched(), report("started", started_at=begun), heard, KNOWN)
    assert isinstance(decision, Accepted)
    started: Any = decision.events[0]
    assert SENT <= started.started_at <= heard
    assert decision.job.state is State.RUNNING
    event = story(decision.job, "succeeded", started_at=begun, finished_at=begun + RAN)[0]
    assert event.started_at == started.started_at
    assert event.wait_ms == started.wait_ms
    assert event.run_ms == RAN


@pytest.mark.parametrize(
    ("started_at", "finished_at"),
    [
        (None, None), (0, 0), (-1, -1), (2**62, 2**62), (2**62, 0), (0, 2**62), (TOLD, SENT),
        (True, True), (None, SENT), (SENT, None), (2**62, None), (None, 2**62),
    ],
)
def test_nonsense_gives_times_that_could_be(
    started_at: int | None, finished_at: int | None
) -> None:
    event = story(dispatched(), "succeeded", started_at=started_at, finished_at=finished_at)[0]
    assert SENT <= event.started_at <= TOLD
    assert 0 <= event.run_ms <= TOLD - SENT
    assert event.started_at + event.run_ms <= TOLD


@pytest.mark.parametrize("skew", [-DAY, -HOUR, -1_000, 1_000, HOUR, DAY])
def test_the_window_learns_the_same_from_a_wrong_clock(skew: int) -> None:
    sizes = []
    for by in (0, skew):
        scene = Scene(plain())
        for group in range(12):
            at = NOW + group * 250
            ids = [f"{group}-{number}" for number in range(4)]
            scene.group(at, *(request(name) for name in ids))
            told = [
                outcome(job.key, "succeeded", epoch=job.epoch, started_at=at + 5 + by,
                        finished_at=at + 10 + by)
                for job in list(scene.state.jobs.values()) if job.state is State.DISPATCHED
            ]
            scene.group(at + 20, outcomes(*told))
        (line,) = scene.engine.schedule.pools.values()
        sizes.append(line.limit.size)
    right, skewed = sizes
    assert skewed == pytest.approx(right)


def test_a_completed_record_says_the_same() -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j"))
    told = outcome(("u", "j"), "succeeded", started_at=NOW + HOUR, finished_at=NOW + HOUR + 40)
    end = events_in(scene.group(NOW + 100, outcomes(told)))[-1]
    assert (end["event"], end["wait_ms"], end["run_ms"]) == ("succeeded", 60, 40)
