"""Every cell of TRANSITIONS, legal and illegal, and every command in every state."""

from __future__ import annotations

from typing import Final

import pytest

from tests.chaos.legal import AUDIT, LEGAL, TERMINAL
from tests.unit.core_kit import KNOWN, NOW, command_named, decide, event_of, job_in
from tidemill.schemas.words import AUDIT_KINDS, TERMINAL_STATES, EventKind, State
from tidemill.streams.decision import Accepted, Effect, InvalidTransition, Kept, react
from tidemill.streams.lifecycle import NOTES, TRANSITIONS, evolve

STATES: Final[tuple[State | None, ...]] = (None, *State)


@pytest.mark.parametrize("kind", EventKind)
@pytest.mark.parametrize("state", STATES, ids=str)
def test_each_cell(state: State | None, kind: EventKind) -> None:
    job = job_in(state)
    goal = TRANSITIONS.get((state, kind))
    if goal is not None:
        before = None if job is None else (job.state, job.sequence)
        new = evolve(job, event_of(job, kind, goal))
        assert new.state is goal
        assert new.sequence == (1 if job is None else job.sequence + 1)
        assert before == (None if job is None else (job.state, job.sequence)), "job was changed"
        return
    for claimed in State:
        with pytest.raises(InvalidTransition) as raised:
            evolve(job, event_of(job, kind, claimed))
    story = str(raised.value)
    assert str(kind) in story
    assert story.endswith("no such job") if job is None else f"u/j type=t state={state}" in story


@pytest.mark.parametrize(("cell", "goal"), TRANSITIONS.items(), ids=str)
def test_an_event_that_claims_another_state_is_a_bug(
    cell: tuple[State | None, EventKind], goal: State
) -> None:
    state, kind = cell
    job = job_in(state)
    wrong = State.PENDING if goal is not State.PENDING else State.RUNNING
    with pytest.raises(InvalidTransition):
        evolve(job, event_of(job, kind, wrong))


def test_the_table_agrees_with_the_one_written_by_hand() -> None:
    """The chaos checker has its own table; both were made from the design."""
    ours = {(kind.value, state, goal.value) for (state, kind), goal in TRANSITIONS.items()}
    theirs = {
        (kind, before, goal) for kind, pairs in LEGAL.items() for before, goal in pairs
    }
    assert ours <= theirs
    # The checker lets any ended job run again; the engine keeps only failed ones for that.
    assert {kind for kind, _, _ in theirs - ours} <= {"redriven", "cancelled"}
    assert TERMINAL_STATES == TERMINAL
    assert AUDIT_KINDS == AUDIT


def test_terminal_states_absorb() -> None:
    leaving = {cell for cell in TRANSITIONS if cell[0] in TERMINAL_STATES}
    assert leaving == {(State.FAILED, EventKind.REDRIVEN), (State.FAILED, EventKind.REQUESTED)}


def test_every_state_and_every_kind_is_used() -> None:
    assert set(TRANSITIONS.values()) == set(State)
    assert {kind for _, kind in TRANSITIONS} == set(EventKind) - AUDIT_KINDS
    assert set(NOTES) == AUDIT_KINDS


@pytest.mark.parametrize("kind", EventKind)
def test_what_each_event_makes_the_edge_write(kind: EventKind) -> None:
    effects = react(event_of(job_in(State.PENDING), kind, State.PENDING))
    assert (Effect.COMPLETE in effects) == (kind.value in TERMINAL)
    assert (Effect.DEAD_LETTER in effects) == (kind is EventKind.FAILED)
    assert (Effect.DISPATCH in effects) == (kind is EventKind.DISPATCHED)
    assert (Effect.ANNOUNCE_RETRY in effects) == (kind is EventKind.RETRY_SCHEDULED)
    assert (Effect.TELL_WORKER in effects) == (kind is EventKind.CANCEL_REQUESTED)
    waits = {
        EventKind.SCHEDULED, EventKind.DEFERRED, EventKind.RETRY_SCHEDULED, EventKind.SUSPENDED
    }
    assert (Effect.SET_TIMER in effects) == (kind in waits)
    ready = {
        EventKind.REQUESTED, EventKind.RETURNED, EventKind.RESCUED, EventKind.REDRIVEN,
        EventKind.RESUMED,
    }
    assert (Effect.MAKE_READY in effects) == (kind in ready)
    remembers = {EventKind.STEP_COMPLETED, EventKind.RESUMED}
    assert (Effect.REMEMBER in effects) == (kind in remembers)


# One line a command: what it leads to in each state, in the order of STATES. Words are events; a
# rejection is its reason, with the audit event behind "/"; "bug" is an InvalidTransition.
_ENDED: Final = 5
_TABLE: Final[dict[str, tuple[str, ...]]] = {
    "submit": ("requested", *["same_body/duplicate_ignored"] * 11),
    "submit_other": ("requested", *["other_body/conflict_ignored"] * 11),
    "refuse": ("requested failed", *["other_body/conflict_ignored"] * 11),
    "resolve": ("bug", "scheduled", "scheduled", "bug", "bug", "bug", "bug", *["bug"] * _ENDED),
    "resolve_none": (
        "bug", "failed", "failed", "bug", "failed", "failed", "failed", *["bug"] * _ENDED
    ),
    "dispatch": (
        "bug", "dispatched", "dispatched", "bug", "bug", "dispatched", "bug", *["bug"] * _ENDED
    ),
    "defer": ("bug", "deferred", "deferred", "bug", "bug", "deferred", "bug", *["bug"] * _ENDED),
    "expire": ("bug", "expired", "expired", "bug", "bug", "expired", "bug", *["bug"] * _ENDED),
    "rescue": ("bug", "bug", "bug", "rescued", "rescued", "bug", "bug", *["bug"] * _ENDED),
    "started": (
        "unknown_job/", *["stale_epoch/outcome_ignored"] * 2, "attempt_started",
        "same_body/", *["stale_epoch/outcome_ignored"] * 2,
        *["already_ended/outcome_ignored"] * _ENDED,
    ),
    "progressed": (
        "unknown_job/", *["stale_epoch/outcome_ignored"] * 2, "stale_epoch/",
        "progressed", *["stale_epoch/outcome_ignored"] * 2,
        *["already_ended/outcome_ignored"] * _ENDED,
    ),
    "succeeded": (
        "unknown_job/", *["stale_epoch/outcome_ignored"] * 2,
        *["attempt_succeeded succeeded"] * 2, *["stale_epoch/outcome_ignored"] * 2,
        *["already_ended/outcome_ignored"] * _ENDED,
    ),
    "failed": (
        "unknown_job/", *["stale_epoch/outcome_ignored"] * 2,
        *["attempt_failed retry_scheduled"] * 2, *["stale_epoch/outcome_ignored"] * 2,
        *["already_ended/outcome_ignored"] * _ENDED,
    ),
    "skipped": (
        "unknown_job/", *["stale_epoch/outcome_ignored"] * 2, *["skipped"] * 2,
        *["stale_epoch/outcome_ignored"] * 2, *["already_ended/outcome_ignored"] * _ENDED,
    ),
    "returned": (
        "unknown_job/", *["stale_epoch/outcome_ignored"] * 2, *["returned"] * 2,
        *["stale_epoch/outcome_ignored"] * 2, *["already_ended/outcome_ignored"] * _ENDED,
    ),
    **{
        f"{kind}@stale": (
            "unknown_job/", *["stale_epoch/outcome_ignored"] * 6,
            *["already_ended/outcome_ignored"] * _ENDED,
        )
        for kind in ("started", "progressed", "succeeded", "failed", "skipped", "returned")
    },
    "stepped": (
        "unknown_job/", *["stale_epoch/outcome_ignored"] * 2,
        "attempt_started step_completed", "step_completed",
        *["stale_epoch/outcome_ignored"] * 2, *["already_ended/outcome_ignored"] * _ENDED,
    ),
    "suspended": (
        "unknown_job/", *["stale_epoch/outcome_ignored"] * 2, *["suspended"] * 2,
        *["stale_epoch/outcome_ignored"] * 2, *["already_ended/outcome_ignored"] * _ENDED,
    ),
    "resume": (*["bug"] * 6, "resumed", *["bug"] * _ENDED),
    "cancel": (
        "kept", "cancelled", "cancelled", "cancel_requested",
        "cancel_requested", *["cancelled"] * 2, *["already_ended/command_refused"] * _ENDED,
    ),
    "signal": (*["kept"] * 7, *["already_ended/command_refused"] * _ENDED),
    "redrive": (
        "unknown_job/", *["not_ended/command_refused"] * 6,
        "already_ended/command_refused", "redriven", *["already_ended/command_refused"] * 3,
    ),
}
_COLUMNS: Final = (
    None, State.PENDING, State.SCHEDULED, State.DISPATCHED, State.RUNNING, State.RETRYING,
    State.AWAITING,
    State.SUCCEEDED, State.FAILED, State.CANCELLED, State.SKIPPED, State.EXPIRED,
)
_ROWS: Final = [
    (name, state, expected)
    for name, line in _TABLE.items()
    for state, expected in zip(_COLUMNS, line, strict=True)
]


@pytest.mark.parametrize(("name", "state", "expected"), _ROWS, ids=str)
def test_each_command_in_each_state(name: str, state: State | None, expected: str) -> None:
    job, command = job_in(state), command_named(name, state)
    if expected == "bug":
        with pytest.raises(InvalidTransition):
            decide(job, command, NOW, KNOWN)
        return
    decision = decide(job, command, NOW, KNOWN)
    if isinstance(decision, Accepted):
        assert " ".join(event.kind for event in decision.events) == expected
        assert decision.job.state is decision.events[-1].state_after
        first = 1 if job is None else job.sequence + 1
        numbers = [event.sequence for event in decision.events]
        assert numbers == list(range(first, first + len(numbers)))
    elif isinstance(decision, Kept):
        assert expected == "kept"
    else:
        assert f"{decision.reason}/{decision.audit or ''}" == expected
