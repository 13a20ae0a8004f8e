"""Rows give back what was written; a group is kept or undone; what is old is forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.core_kit import (
    CANCEL,
    FATAL,
    NOW,
    REDRIVE,
    after,
    define,
    fields_of,
    job_in,
    report,
    submit,
)
from tidemill.schemas.batch_builder import BatchBuilder
from tidemill.schemas.topics import Topics
from tidemill.schemas.words import State
from tidemill.streams.commands import Dispatch, Resolve
from tidemill.streams.job import Job, JobKey, Spec
from tidemill.streams.job_type import JobType
from tidemill.streams.limits import LimitState
from tidemill.streams.policies.rate_limit import limit_key
from tidemill.streams.processor import Processor
from tidemill.streams.store import rows
from tidemill.streams.store.finished import Ended
from tidemill.streams.store.jobs import DEAD_RETENTION_MS, DEDUPE_RETENTION_MS
from tidemill.streams.store.state import PartitionState

SKIP = define(limits=[{"limit": 2, "window_ms": 60_000, "over": "skip"}])


def rows_of(state: PartitionState) -> list[tuple[bytes, bytes | None]]:
    """What a group's transaction would write of it."""
    pages = BatchBuilder("state", 0)
    state.write_rows(pages)
    return [(key or b"", value) for key, value, _ in pages.records()]


def same(found: Job, wanted: Job) -> None:
    for name in set(fields_of(Job)) - {"spec"}:
        assert getattr(found, name) == getattr(wanted, name), name
    for name in set(fields_of(Spec)) - {"row_key"}:
        assert getattr(found.spec, name) == getattr(wanted.spec, name), name


@pytest.mark.parametrize("state", State)
def test_a_live_row_keeps_the_whole_job(state: State) -> None:
    job = job_in(state)
    assert job is not None
    found = rows.read_job(rows.live_value(job))
    assert isinstance(found, Job)
    same(found, job)


def test_a_row_keeps_everything_that_was_asked() -> None:
    job = after(
        None,
        submit(
            payload={"text": "line\nbreak", "n": 2**64 - 1}, queue="q", priority="low",
            run_at=NOW + 1, expires_at=NOW + 2, unique_key="\U0001f409", max_attempts=9,
            timeout_seconds=1.5, source="s", tags=["a", "b"], batch_id="b", parent_job_id="p",
        ),
    )
    found = rows.read_job(rows.live_value(job))
    assert isinstance(found, Job)
    same(found, job)


def test_an_ended_row_keeps_what_a_repeat_needs() -> None:
    job = job_in(State.CANCELLED)
    assert job is not None
    found = rows.read_job(rows.ended_value(job))
    assert found == Ended(NOW, job.spec.fingerprint, State.CANCELLED)
    assert rows.key_of(job.spec) == rows.job_key(job.key)


def test_a_row_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 4; this ledger reads versions up to 3"):
        rows.read_job(b'[4,"pending"]\n{}')


def test_limits_definitions_and_positions_come_back() -> None:
    state = PartitionState()
    state.load(limit_key('u"', "t"), b"[2,[1,5]]")
    state.load(b"dt", SKIP.model_dump_json().encode())
    state.load(b"p", b'{"applied":{"jobs.requested":7},"clock":%d,"accepted":3}' % NOW)
    state.loaded()
    assert state.policies.rate_limit.used('u"', "t") == LimitState(2, (1, 5))
    assert state.definitions == {"t": SKIP}
    assert state.applied == {"jobs.requested": 7}
    assert (state.clock_ms, state.accepted) == (NOW, 3)


def has_changes(state: PartitionState) -> bool:
    """The property, read anew each time."""
    return state.has_changes


def holder_of(state: PartitionState, unique_key: str) -> JobKey | None:
    """The job of user u that has the key."""
    return state.policies.uniqueness.holders.get(("u", unique_key))


class Store:
    """A state with the rows that its settled groups wrote."""

    def __init__(self) -> None:
        self.state = PartitionState()
        self.processor = Processor(0, Topics(), self.state)
        self.rows: dict[bytes, bytes] = {}

    def decide(self, command: Any, now: int = NOW) -> Job:
        """One decision about job (u, j)."""
        self.state.begin(now)
        job = self.state.jobs.get(("u", "j"))
        assert self.processor.decide(("u", "j"), job, command)
        return self.state.jobs[("u", "j")]

    def rollback(self) -> None:
        self.state.rollback()
        self.processor.rebuild()

    def limit_state(self) -> LimitState:
        return self.state.policies.rate_limit.used("u", "t")

    def settle(self) -> None:
        for key, value in rows_of(self.state):
            if value is None:
                del self.rows[key]
            else:
                self.rows[key] = value
        self.state.commit()

    def define(self, definition: Any) -> None:
        self.state.begin(NOW)
        self.state.define(definition)

    def restored(self) -> PartitionState:
        state = PartitionState()
        state.load(b"j" + b"0" * 16, b"replaced")
        state.load(b"j" + b"0" * 16, None)
        for key, value in self.rows.items():
            state.load(key, value)
        state.loaded()
        Processor(0, Topics(), state).rebuild()
        return state


def test_ended_jobs_are_packed_only_when_settled() -> None:
    store = Store()
    store.define(define())
    store.decide(submit())
    ended = store.decide(CANCEL)
    assert store.state.jobs[ended.key] is ended
    assert store.state.ended(ended.key) is None
    store.settle()
    assert ended.key not in store.state.jobs
    for state in (store.state, store.restored()):
        assert state.ended(ended.key) == Ended(NOW, ended.spec.fingerprint, State.CANCELLED)
        assert state.finished.get(rows.job_key(ended.key)[1:]) is not None


def test_ended_jobs_are_forgotten_after_their_retention() -> None:
    store = Store()
    store.define(define())
    store.decide(submit())
    store.decide(CANCEL)
    store.settle()
    at = NOW + DEDUPE_RETENTION_MS
    store.state.begin(at)
    store.state.forget_old(at)
    assert not has_changes(store.state)
    store.state.forget_old(at + 1)
    assert has_changes(store.state)
    assert store.state.ended(("u", "j")) is None
    store.rollback()
    assert store.state.ended(("u", "j")) is not None
    store.state.begin(at)
    store.state.forget_old(at + 1)
    store.settle()
    assert rows.job_key(("u", "j")) not in store.rows
    assert store.restored().ended(("u", "j")) is None


def failed(store: Store) -> Job:
    store.define(define())
    for command in (submit(), Dispatch(), report("failed", error=FATAL)):
        job = store.decide(command)
    store.settle()
    return job


def test_dead_letters_stay_whole_for_their_own_retention() -> None:
    store = Store()
    job = failed(store)
    assert store.restored().jobs.keys() == {job.key}
    for state in (store.state, store.restored()):
        state.begin(NOW)
        state.forget_old(NOW + DEAD_RETENTION_MS - 1)
        assert not has_changes(state)
        state.forget_old(NOW + DEAD_RETENTION_MS)
        assert has_changes(state)
        assert (rows.job_key(job.key), None) in rows_of(state)
        state.rollback()
        assert job.key in state.jobs
        state.begin(NOW)
        state.forget_old(NOW + DEAD_RETENTION_MS)
        state.commit()
        assert job.key not in state.jobs


def test_a_dead_letter_that_runs_again_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    job = failed(store)
    store.decide(REDRIVE)
    store.state.forget_old(NOW + DEAD_RETENTION_MS)  # this group changes it
    store.settle()
    store.state.begin(NOW)
    store.state.forget_old(NOW + 2 * DEAD_RETENTION_MS)
    assert job.key in store.state.jobs
    assert store.restored().jobs[job.key].run == 2


@pytest.mark.interpreted
def test_too_many_dead_letters_go_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.streams.store.jobs.DEAD_LETTERS_MAX", 0)
    store = Store()
    job = failed(store)
    store.state.begin(NOW)
    store.state.forget_old(NOW)
    store.settle()
    assert job.key not in store.state.jobs


def test_unique_keys_are_held_while_their_job_lives() -> None:
    store = Store()
    store.define(define())
    store.decide(submit(unique_key="k"))
    assert holder_of(store.state, "k") == ("u", "j")
    store.settle()
    assert holder_of(store.restored(), "k") == ("u", "j")
    store.decide(CANCEL)
    assert holder_of(store.state, "k") is None
    store.rollback()
    assert holder_of(store.state, "k") == ("u", "j")


def test_a_held_limit_is_released_even_when_the_type_lost_its_limits() -> None:
    store = Store()
    store.define(SKIP)
    store.decide(submit())
    store.settle()
    assert store.limit_state() == LimitState(1, ())
    store.define(define())
    store.decide(Dispatch())
    store.define(SKIP)
    assert store.limit_state().held == 0


def test_limits_are_kept_undone_and_forgotten() -> None:
    store = Store()
    store.define(SKIP)
    store.decide(submit())
    store.decide(Dispatch())
    store.rollback()
    store.define(SKIP)
    assert store.limit_state() == LimitState(0, ())
    store.decide(submit())
    store.decide(Dispatch())
    store.settle()
    assert store.restored().policies.rate_limit.used("u", "t") == LimitState(0, (NOW,))
    store.state.begin(NOW)
    store.state.forget_old(NOW + 59_999)
    assert not has_changes(store.state)
    store.state.forget_old(NOW + 60_000)
    store.settle()
    assert limit_key("u", "t") not in store.rows
    assert store.limit_state() == LimitState(0, ())


def test_a_resolved_job_takes_its_limit_and_its_key() -> None:
    unique = define(unique_by="user", limits=[{"limit": 2, "window_ms": 9, "over": "skip"}])
    store = Store()
    store.decide(submit())
    store.define(unique)
    job = store.decide(Resolve(JobType(unique)))
    assert store.limit_state() == LimitState(1, ())
    assert holder_of(store.state, "\x1ftype:t") == job.key


def test_the_clock_never_goes_back_but_with_an_undo() -> None:
    state = PartitionState()
    assert state.begin(NOW) == NOW
    state.commit()
    assert state.begin(NOW - 1) == NOW
    assert state.begin(NOW + 5) == NOW + 5
    state.rollback()
    assert state.clock_ms == NOW


def test_an_undone_group_leaves_no_trace() -> None:
    store = Store()
    store.define(SKIP)
    store.decide(submit(unique_key="k"))
    store.state.applied["jobs.requested"] = 9
    assert has_changes(store.state)
    store.rollback()
    assert (store.state.jobs, store.state.definitions, store.state.applied) == ({}, {}, {})
    assert store.state.accepted == 0
    assert not has_changes(store.state)
    assert holder_of(store.state, "k") is None
