"""Rows that a ledger wrote while a job's row had version 1: they are read, and the jobs go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from tests.unit.core_kit import DEFAULT
from tests.unit.partition_kit import Scene, events_in, outcome, outcomes, request
from tidemill.schemas.wire import Definition, LimitSpec
from tidemill.schemas.words import State
from tidemill.streams.dispatch.slot_pool import SlotPoolName
from tidemill.streams.job import HANDED_BACK, NO_WORKER, RATE_LIMIT, UNKNOWN_TYPE, Job, WaitKey
from tidemill.streams.partition import Capacity
from tidemill.streams.store.rows import LIVE, live_value, read_job

FIXTURE: Final = orjson.loads(
    (Path(__file__).parent.parent / "data/job_rows_v1.json").read_bytes()
)
NOW_MS: Final[int] = FIXTURE["now"]
ROWS: Final = {bytes.fromhex(key): value.encode() for key, value in FIXTURE["rows"]}
OLD: Final = [value for key, value in ROWS.items() if key[:1] == b"j" and value[:3] == b"[1,"]
DEAD: Final = {"dead", "unheard", "notrun"}

WAITS: Final[dict[str, tuple[State, WaitKey | None]]] = {
    "run": (State.RUNNING, None), "retry": (State.RETRYING, None),
    "back": (State.SCHEDULED, HANDED_BACK), "later": (State.SCHEDULED, None),
    "few1": (State.SCHEDULED, None), "slow1": (State.SCHEDULED, (RATE_LIMIT, "u", "slow")),
    "slow2": (State.SCHEDULED, (RATE_LIMIT, "u", "slow")), "slow3": (State.DISPATCHED, None),
    "pending": (State.DISPATCHED, None),
    "notrun2": (State.SCHEDULED, (NO_WORKER, "type_not_run")),
    "elsewhere": (State.SCHEDULED, (NO_WORKER, "queue_not_served")),
    "unheard2": (State.SCHEDULED, (UNKNOWN_TYPE, "never2")),
    **dict.fromkeys(DEAD, (State.FAILED, None)),
}


def _live() -> Iterator[Job]:
    for value in OLD:
        job = read_job(value)
        assert isinstance(job, Job)
        yield job


def test_the_fixture_has_jobs_in_every_wait() -> None:
    assert {job.spec.job_id for job in _live()} == WAITS.keys()
    # What the restore must not take from `reason` of a job that waits for nothing any more.
    assert any(job.reason and job.waits_for is None for job in _live())


@pytest.mark.parametrize("job", list(_live()), ids=lambda job: str(job.spec.job_id))
def test_a_row_of_version_1_says_what_its_job_waits_for(job: Job) -> None:
    assert (job.state, job.waits_for) == WAITS[job.spec.job_id]
    again = live_value(job)
    assert again.startswith(b"[%d," % LIVE)
    found = read_job(again)
    assert isinstance(found, Job)
    assert live_value(found) == again
    assert (found.waits_for, found.interruptions) == (job.waits_for, job.interruptions)


class _Again(Scene):
    """A new owner over the old rows; workers that run all types are there."""

    def __init__(self) -> None:
        limits = (LimitSpec(limit=1, window_ms=60_000, over="delay"),)
        skips = (LimitSpec(limit=1, window_ms=60_000, over="skip"),)
        facts: dict[str, dict[str, Any]] = {
            "t": {}, "slow": {"limits": limits}, "few": {"limits": skips},
            "elsewhere": {"queue": "dead"}, "notrun": {}, "never2": {},
        }
        super().__init__(
            *(Definition(schema_version=1, type=name, **more) for name, more in facts.items())
        )
        self.rows = dict(ROWS)
        self.told = {
            "default": dict.fromkeys(facts.keys() - {"elsewhere"}, ""), "dead": {"elsewhere": ""}
        }
        room = Capacity(20, 20, 1, (0, 1))
        self.rooms = {DEFAULT: room, SlotPoolName("dead", "async"): room}
        self.restore(NOW_MS)
        self._offsets = dict(self.state.applied)


def test_every_job_of_old_rows_goes_on_and_ends_once() -> None:
    scene = _Again()
    ends: list[tuple[str, str]] = []
    starts: dict[str, int] = {}
    slow_starts: list[int] = []
    now_ms = NOW_MS
    for _ in range(400):
        told = [
            outcome(key, "succeeded", epoch=job.epoch, run=job.run, attempt=job.attempt)
            for key, job in scene.state.jobs.items()
            if key in scene.in_flight()
        ]
        for event in events_in(scene.group(now_ms, *([outcomes(*told)] if told else []))):
            if event["event"] == "dispatched":
                starts[event["job_id"]] = now_ms
                if event["type"] == "slow":
                    slow_starts.append(now_ms)
            elif event["state_after"] in ("succeeded", "failed", "skipped", "cancelled", "expired"):
                ends.append((event["job_id"], event["state_after"]))
        now_ms += 500
    assert sorted(ends) == sorted((name, "succeeded") for name in WAITS.keys() - DEAD)
    assert starts["back"] >= NOW_MS - 500
    assert starts["later"] >= NOW_MS + 50_000
    assert len(slow_starts) == 2
    assert slow_starts[1] - slow_starts[0] >= 60_000, "the old use of the limit counts"
    assert {key[1] for key in scene.state.jobs} == DEAD
    live = [value for key, value in scene.rows.items() if key[:1] == b"j" and b"\n" in value]
    assert {value[:3] for value in live} == {b"[1,"}, "what nobody touched stays as it was"


def test_an_old_repeat_and_an_old_dead_letter_are_known() -> None:
    scene = _Again()
    cancel = b'{"command":"redrive","user_id":"u","job_id":"dead"}'
    records = scene.group(NOW_MS, request("done"), ("jobs.commands", cancel))
    kinds = [(event["job_id"], event["event"]) for event in events_in(records)]
    assert ("done", "duplicate_ignored") in kinds
    assert ("dead", "redriven") in kinds
