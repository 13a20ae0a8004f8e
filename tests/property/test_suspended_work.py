"""Long random lives of few jobs that mostly do steps and sleep, group by group.

Owns what needs many suspensions of one run: their bound, what attempts they spend, and how much is
remembered. The oracle is the rig's: what events say, what rows hold and what dispatches bring are
the same after each group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any, Final

import orjson
import pytest

from tests.property.rig import START_MS, TOPICS, WORKER, Input, Rig, outcome_of, pack
from tidemill.schemas.wire import BackoffSpec, ConcurrencySpec, Definition
from tidemill.schemas.words import State
from tidemill.streams import suspensions

SEEDS: Final = 12
STEPS: Final = 140
SUSPENSIONS_MAX: Final = 6
JOBS: Final = tuple(f"{type}/{n}" for type in ("plain", "pair", "joint") for n in range(5))
ATTEMPTS: Final = 3
NAMES: Final = tuple(f"step {n}" for n in range(12))
STEP_BYTES_MAX: Final = 6_000  # smaller than the real ones, so that they are met
MEMORY_BYTES_MAX: Final = 20_000
SIZES: Final = (1, 1, 1_000, 4_000, STEP_BYTES_MAX - 2, STEP_BYTES_MAX - 1)
KIND_GROUPS_MAX: Final = 500


def _define(type: str, **facts: Any) -> Definition:
    backoff = BackoffSpec(base_ms=100, cap_ms=1_000)
    return Definition(schema_version=1, type=type, backoff=backoff, max_attempts=ATTEMPTS, **facts)


class Lives:
    """A partition whose jobs are driven by a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        types = ("plain", "pair", "joint")
        self.rig = Rig(max_attempts=dict.fromkeys(types, ATTEMPTS), concurrency={"pair": 1})
        self.rig.definitions = {
            "plain": _define("plain"), "joint": _define("joint", collapse_by="payload.n"),
            "pair": _define("pair", concurrency=ConcurrencySpec(limit=1)),
        }
        self.rig.memory_max = MEMORY_BYTES_MAX
        self.now_ms = START_MS
        self.incarnation = 1
        self.refused: Counter[str] = Counter()

    def group(self, *inputs: Input) -> None:
        """One group, that is perhaps aborted or lost first."""
        records = self.rig.records(inputs)
        fate = self.rng.choice(("commit", "commit", "commit", "abort", "crash", "restore"))
        if fate in ("abort", "crash"):
            self.rig.decide(records, self.now_ms)
            self.rig.engine.rollback()
        if fate in ("crash", "restore"):
            self.rig.engine = self.rig.restored(self.now_ms)
        for event in self.rig.commit(records, self.now_ms):
            if event["event"] == "outcome_ignored":
                self.refused[event["reason"]] += 1
        self.rig.check()

    def moment(self) -> None:
        """Something happens."""
        rng = self.rng
        self.now_ms += rng.choice((1, 20, 300, 2_000))
        jobs = self.rig.in_flight()
        draw = rng.random()
        if (draw < 0.3 or not jobs) and (dead := self._dead_letters()) and rng.random() < 0.8:
            command = {"command": "redrive", "user_id": "u", "job_id": rng.choice(dead)}
            self.group(Input(TOPICS.commands, orjson.dumps(command)))
        elif draw < 0.1 or not jobs:
            name = rng.choice(JOBS)
            body = {
                "type": name.split("/")[0], "user_id": "u", "job_id": name, "payload": {"n": 1}
            }
            self.group(Input(TOPICS.requested, orjson.dumps(body)))
        elif draw < 0.13:
            command = {"command": "cancel", "user_id": "u", "job_id": rng.choice(JOBS)}
            self.group(Input(TOPICS.commands, orjson.dumps(command)))
        elif draw < 0.18:
            self.incarnation += 1  # what runs is rescued
            self.rig.alive = {WORKER: self.incarnation}
            self.now_ms += 1_100
            self.group()
        else:
            said = [self._say(rng.choice(jobs)) for _ in range(rng.choice((1, 1, 2)))]
            self.group(Input(TOPICS.outcomes, pack(said, incarnation=self.incarnation)))

    def _dead_letters(self) -> list[str]:
        jobs = self.rig.engine.state.jobs.values()
        return sorted(job.spec.job_id for job in jobs if job.state is State.FAILED)

    def _say(self, job: Any) -> dict[str, Any]:
        rng = self.rng
        kind = rng.choices(
            ("stepped", "suspended", "failed", "fatal", "returned", "succeeded"),
            (45, 40, 5, 5, 4, 1),
        )[0]
        name = rng.choice(NAMES)
        if kind == "stepped":
            result = "x" * rng.choice(SIZES)
            return outcome_of(job, kind, name=name, result=result)
        if kind == "suspended":
            known = self.rig.known.get(job.key, {})
            fresh = f"nap {len(known)}"
            waits = {
                "kind": "sleep", "name": rng.choice((fresh, fresh, name)),
                "for_ms": rng.choice((0, 1, 2_500)),
            }
            return outcome_of(job, kind, waits=waits)
        if kind in ("failed", "fatal"):
            error = {"code": "E", "message": "m", "retryable": kind == "failed"}
            return outcome_of(job, "failed", error=error, retry_after_ms=rng.choice((None, 0)))
        return outcome_of(job, kind, result={"n": 1})

    def be_kind(self) -> None:
        """All that was accepted ends."""
        for _ in range(KIND_GROUPS_MAX):
            said = [outcome_of(job, "succeeded") for job in self.rig.in_flight()]
            given = Input(TOPICS.outcomes, pack(said, incarnation=self.incarnation))
            self.rig.commit(self.rig.records([given] if said else []), self.now_ms)
            live = self.rig.engine.state.jobs.values()
            if all(job.state is State.FAILED for job in live):
                break
            self.now_ms = max(self.now_ms + 100, self.rig.engine.next_tick_at())
        self.rig.check()
        assert all(not trace.is_live for trace in self.rig.fold.jobs.values())


@pytest.fixture(scope="module")
def lives() -> Iterator[list[Lives]]:
    """Each seed's life, to its end."""
    patch = pytest.MonkeyPatch()
    patch.setattr(suspensions, "SUSPENSIONS_MAX", SUSPENSIONS_MAX)
    patch.setattr(suspensions, "STEP_BYTES_MAX", STEP_BYTES_MAX)
    patch.setattr(suspensions, "MEMORY_BYTES_MAX", MEMORY_BYTES_MAX)
    found = []
    for seed in range(SEEDS):
        life = Lives(seed)
        for _ in range(STEPS):
            life.moment()
        life.be_kind()
        found.append(life)
    yield found
    patch.undo()


@pytest.mark.interpreted
def test_log_rows_and_dispatches_say_the_same_through_all_of_it(lives: list[Lives]) -> None:
    kinds = Counter(event["event"] for life in lives for event in life.rig.events)
    for kind in (
        "step_completed", "suspended", "resumed", "redriven", "rescued", "cancelled", "failed",
        "retry_scheduled",
    ):
        assert kinds[kind] > SEEDS, kinds
    assert kinds["resumed"] <= kinds["suspended"]


@pytest.mark.interpreted
def test_a_run_suspends_so_often_and_then_fails(lives: list[Lives]) -> None:
    counted: Counter[tuple[int, str, int]] = Counter()
    ended = 0
    for number, life in enumerate(lives):
        before: dict[str, Any] = {}
        for event in life.rig.events:
            key = (number, event["job_id"], event["run"])
            if event["event"] == "suspended":
                counted[key] += 1
            elif event["event"] == "failed" and (event["error"] or {}).get("code") == (
                "TOO_MANY_SUSPENSIONS"
            ):
                ended += 1
                assert counted[key] == SUSPENSIONS_MAX + 1
                assert before[event["job_id"]] == "suspended"
            before[event["job_id"]] = event["event"]
    assert max(counted.values()) == SUSPENSIONS_MAX + 1
    assert ended


@pytest.mark.interpreted
def test_what_is_too_large_is_refused_and_the_rest_is_kept(lives: list[Lives]) -> None:
    """Each result that was kept fits, and all that a job remembers does (the rig looks at it)."""
    sizes = [
        len(orjson.dumps(event["data"]["result"]))
        for life in lives for event in life.rig.events if event["event"] == "step_completed"
    ]
    assert max(sizes) == STEP_BYTES_MAX
    assert sum(life.refused["too_large"] for life in lives) > SEEDS
    assert any(
        sum(sizes_of(life, job)) > MEMORY_BYTES_MAX - STEP_BYTES_MAX
        for life in lives for job in JOBS
    )


def sizes_of(life: Lives, job_id: str) -> list[int]:
    """Of the results that a job has stored."""
    return [
        len(orjson.dumps(event["data"]["result"])) for event in life.rig.events
        if event["event"] == "step_completed" and event["job_id"] == job_id
    ]
