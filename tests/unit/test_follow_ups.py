"""What one decision means for other jobs: commands of the same group, by the law, within bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.core_kit import CAUSE, NOW
from tests.unit.partition_kit import TOPICS, Scene, events_in, plain, request
from tidemill.schemas.words import TERMINAL_STATES
from tidemill.streams import processor as processor_
from tidemill.streams.commands import Cancel
from tidemill.streams.decision import Accepted, Decision, FollowUp, FollowUpsWithoutEnd
from tidemill.streams.decisions import decide
from tidemill.streams.job import Job
from tidemill.streams.partition import DECISIONS_MAX

pytestmark = pytest.mark.interpreted  # puts a policy of its own behind `decide`

Policy = Callable[[Job], tuple[FollowUp, ...]]
CANCEL_FIRST = (TOPICS.commands, b'{"command":"cancel","user_id":"u","job_id":"j0"}')


def cancel(number: int) -> FollowUp:
    key = ("u", f"j{number}")
    return key, Cancel(key, "policy", None, CAUSE)


def follow(monkeypatch: pytest.MonkeyPatch, policy: Policy) -> None:
    """An artificial policy: what follows once a job has ended."""

    def with_policy(job: Job | None, *rest: Any) -> Decision:
        decision = decide(job, *rest)
        if isinstance(decision, Accepted) and decision.job.state in TERMINAL_STATES:
            decision.follow_ups = policy(decision.job)
        return decision

    monkeypatch.setattr(processor_, "decide", with_policy)


def next_one(most: int) -> Policy:
    """Each end is the end of the next job."""

    def policy(job: Job) -> tuple[FollowUp, ...]:
        number = int(job.spec.job_id[1:])
        return (cancel(number + 1),) if number < most else ()

    return policy


def waiting(count: int) -> Scene:
    scene = Scene(plain())
    scene.rooms = {}
    for begin in range(0, count, 500):
        names = range(begin, min(count, begin + 500))
        scene.group(NOW, *(request(f"j{number}") for number in names))
    return scene


@pytest.mark.parametrize("fans_out", [True, False])
def test_what_follows_is_decided_in_the_same_group(
    monkeypatch: pytest.MonkeyPatch, fans_out: bool
) -> None:
    scene = waiting(4)
    every = tuple(cancel(number) for number in range(1, 4))
    policy = (lambda job: every if job.key[1] == "j0" else ()) if fans_out else next_one(3)
    follow(monkeypatch, policy)
    wrote = scene.group(NOW + 1, CANCEL_FIRST)
    told = [(event["event"], event["job_id"]) for event in events_in(wrote)]
    assert told == [("cancelled", f"j{number}") for number in range(4)]
    scene.restore(NOW + 2)
    assert not scene.state.jobs


def test_an_undone_group_undoes_what_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = waiting(4)
    follow(monkeypatch, next_one(3))
    first = scene.group(NOW + 1, CANCEL_FIRST, is_committed=False)
    assert len(scene.state.jobs) == 4
    again = scene.group(NOW + 1, CANCEL_FIRST)
    assert [event["job_id"] for event in events_in(again)] == [
        event["job_id"] for event in events_in(first)
    ]


def test_a_command_that_follows_is_held_to_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has ended, and one that nobody knows."""
    scene = waiting(2)
    follow(monkeypatch, lambda job: (cancel(0), cancel(7)) if job.key[1] == "j1" else ())
    scene.group(NOW + 1, CANCEL_FIRST)
    second = (TOPICS.commands, CANCEL_FIRST[1].replace(b"j0", b"j1"))
    wrote = scene.group(NOW + 2, second)
    told = [(event["event"], event["job_id"]) for event in events_in(wrote)]
    assert told == [("cancelled", "j1"), ("command_refused", "j0"), ("cancel_kept", "j7")]


def test_what_follows_counts_against_the_work_of_its_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = waiting(DECISIONS_MAX + 3)
    scene.rooms = Scene().rooms
    follow(monkeypatch, next_one(DECISIONS_MAX))
    wrote = scene.group(NOW + 1, CANCEL_FIRST)
    kinds = {event["event"] for event in events_in(wrote)}
    assert kinds == {"cancelled"}
    assert scene.engine.next_tick_at() == 0
    # A place in line that nobody wants any more counts as well.
    wrote = [*scene.group(NOW + 1), *scene.group(NOW + 1)]
    assert {event["event"] for event in events_in(wrote)} == {"dispatched"}


def test_commands_without_an_end_are_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = waiting(1)
    monkeypatch.setattr(processor_, "FOLLOW_UPS_MAX", 10)
    loop = Cancel(("u", "j0"), "policy", None, CAUSE)

    def endless(job: Job | None, *rest: Any) -> Decision:
        found = scene.state.jobs[("u", "j0")]
        return Accepted([], found, ((found.key, loop),))

    monkeypatch.setattr(processor_, "decide", endless)
    with pytest.raises(FollowUpsWithoutEnd):
        scene.group(NOW + 1, CANCEL_FIRST)
