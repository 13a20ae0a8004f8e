"""Requests for the same thing share one run, and each joiner ends when its winner does."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from tests.unit.partition_kit import Input, events_in, outcome, outcomes, request
from tests.unit.test_concurrency import Crowd
from tidemill import job
from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.agents.worker.handlers import build_handler
from tidemill.schemas.events import CompletedJob
from tidemill.schemas.wire import Definition, LimitSpec
from tidemill.schemas.words import Reason, State
from tidemill.streams.policies import collapse
from tidemill.streams.policies.collapse import value_at

SAME = {"x": 1}


def collapsing(path: str | None = "payload.x", type: str = "t", **more: Any) -> Definition:
    return Definition(schema_version=1, type=type, collapse_by=path, **more)


class Shared(Crowd):
    """Jobs of a type whose requests collapse."""

    def __init__(self, *definitions: Definition) -> None:
        super().__init__(*(definitions or (collapsing(),)))

    def out_of(self, *inputs: Input, **facts: Any) -> tuple[list[str], dict[str, CompletedJob]]:
        """The events, each with its job, and the ends."""
        self.now_ms += 10
        records = self.scene.group(self.now_ms, *inputs, **facts)
        events = [f"{each['event']} {each['job_id']}" for each in events_in(records)]
        ends = [
            CompletedJob.model_validate_json(value)
            for topic, *_, value, _ in records
            if topic.endswith("jobs.completed") and isinstance(value, bytes)
        ]
        return events, {end.job_id: end for end in ends}

    def told(self, name: str, kind: str, **facts: object) -> Input:
        found = self.scene.state.jobs[("u", name)]
        return outcomes(outcome(
            ("u", name), kind, epoch=found.epoch, attempt=found.attempt, run=found.run, **facts
        ))


def test_later_requests_for_the_same_thing_join_and_end_with_the_winner() -> None:
    shared = Shared()
    assert shared.ask("a", "b", payload=SAME) == ["a"]
    assert shared.ask("c", payload={"x": 1, "other": 2}) == []
    assert shared.ask("d", payload={"x": 2}) == ["d"], "another thing"
    joiner = shared.scene.state.jobs[("u", "b")]
    assert (joiner.state, joiner.reason, joiner.due_at) == (State.SCHEDULED, Reason.JOINED, None)
    assert joiner.waits_for == ("collapse", "u", "t", "a")
    events, ends = shared.out_of(shared.told("a", "succeeded", result={"n": 7}))
    assert [one for one in events if one.startswith("skipped")] == ["skipped b", "skipped c"]
    for name in "bc":
        end = ends[name]
        assert (end.status, end.reason, end.result) == (State.SKIPPED, "collapsed", {"n": 7})
        assert end.collapsed_into is not None
        assert end.collapsed_into.model_dump(mode="json") == {
            "job_id": "a", "run": 1, "status": "succeeded", "result_omitted": False
        }
        assert (end.attempts, end.started_at) == (0, None)
    assert ends["a"].collapsed_into is None
    assert shared.ask("e", payload=SAME) == ["e"], "the run that was shared is over"


@pytest.mark.parametrize(
    ("kind", "status"), [("failed", State.FAILED), ("skipped", State.SKIPPED)]
)
def test_a_winner_that_does_not_succeed_ends_them_likewise(kind: str, status: State) -> None:
    shared = Shared(collapsing(max_attempts=1))
    shared.ask("a", "b", payload=SAME)
    _, ends = shared.out_of(shared.told("a", kind))
    assert ends["b"].collapsed_into is not None
    assert (ends["b"].status, ends["b"].collapsed_into.status) == (State.SKIPPED, status)
    assert ends["b"].result is None


def cancel(name: str) -> Input:
    body = {"command": "cancel", "user_id": "u", "job_id": name}
    return "jobs.commands", orjson.dumps(body)


def test_a_cancelled_winner_ends_them_and_a_cancelled_joiner_ends_alone() -> None:
    shared = Shared()
    shared.ask("a", "b", "c", payload=SAME)
    events, ends = shared.out_of(cancel("b"))
    assert list(ends) == ["b"]
    assert (ends["b"].status, ends["b"].reason) == (State.CANCELLED, "cancelled_by_command")
    events, ends = shared.out_of(cancel("a"))
    assert events == ["cancel_requested a"], "it runs, and is only asked to stop"
    events, ends = shared.out_of(shared.told("a", "failed"))
    assert {name: end.status for name, end in ends.items()} == {
        "a": State.CANCELLED, "c": State.SKIPPED
    }


def test_a_winner_that_waits_for_its_next_attempt_is_still_joined() -> None:
    shared = Shared()
    shared.ask("a", "b", payload=SAME)
    assert shared.tell("a", "failed", retry_after_ms=60_000) == []
    assert shared.ask("c", payload=SAME) == []
    shared.now_ms += 60_000
    assert shared.group()[0][0] == "dispatched"
    _, ends = shared.out_of(shared.told("a", "succeeded", result=1))
    assert sorted(ends) == ["a", "b", "c"]


def test_a_joiner_outlives_a_restore_and_an_undo() -> None:
    shared = Shared()
    shared.ask("a", "b", payload=SAME)
    shared.scene.restore(shared.now_ms)
    assert shared.ask("c", payload=SAME) == []
    told = shared.told("a", "succeeded", result=1)
    _, ends = shared.out_of(told, is_committed=False)
    assert sorted(ends) == ["a", "b", "c"]
    _, ends = shared.out_of(told)
    assert sorted(ends) == ["a", "b", "c"]
    assert not [one for one in shared.scene.state.jobs.values() if one.waits_for is not None]


def test_a_redriven_winner_runs_again_and_is_joined_again() -> None:
    shared = Shared(collapsing(max_attempts=1))
    shared.ask("a", "b", payload=SAME)
    shared.out_of(shared.told("a", "failed"))
    redrive = orjson.dumps({"command": "redrive", "user_id": "u", "job_id": "a"})
    assert ("dispatched", "a") in shared.group(("jobs.commands", redrive))
    assert shared.ask("c", payload=SAME) == []
    _, ends = shared.out_of(shared.told("a", "succeeded", result=2))
    assert ends["c"].collapsed_into is not None
    assert (ends["c"].collapsed_into.run, ends["c"].result) == (2, 2)


def test_users_types_and_missing_values_do_not_meet() -> None:
    other = collapsing(type="other")
    shared = Shared(collapsing(), other)
    assert shared.ask("a", payload=SAME) == ["a"]
    assert shared.ask("a", payload=SAME, user_id="v") == ["a"]
    assert shared.ask("b", payload=SAME, type="other") == ["b"]
    assert shared.ask("c", "d", payload={}) == ["c", "d"], "nothing to be the same by"
    assert shared.ask("e", "f", payload={"x": None}) == ["e", "f"]


def test_a_repeat_of_a_joiner_is_a_repeat() -> None:
    shared = Shared()
    shared.ask("a", "b", payload=SAME)
    events, _ = shared.out_of(request("b", payload=SAME), request("a", payload=SAME))
    assert events == ["duplicate_ignored b", "duplicate_ignored a"]


def test_what_is_asked_for_a_later_instant_takes_part_when_it_is_due() -> None:
    shared = Shared()
    later = shared.now_ms + 5_000
    assert shared.ask("late", payload=SAME, run_at=later) == []
    assert shared.ask("a", payload=SAME) == ["a"], "it does not wait for an instant of another's"
    shared.now_ms = later
    assert ("deferred", "late") in shared.group()
    _, ends = shared.out_of(shared.told("a", "succeeded", result=1))
    assert sorted(ends) == ["a", "late"]


@pytest.mark.interpreted
def test_a_payload_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []

    def noting(payload: bytes, path: tuple[str, ...]) -> bytes | None:
        read.append(payload)
        return value_at(payload, path)

    monkeypatch.setattr(collapse, "value_at", noting)
    shared = Shared()
    shared.ask("a", "b", payload=SAME)
    shared.ask("c", payload={"x": None})
    assert len(read) == 3


@pytest.mark.interpreted
def test_a_winner_takes_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapse, "JOINERS_MAX", 2)
    shared = Shared()
    assert shared.ask("a", "b", "c", "d", "e", payload=SAME) == ["a", "d"]
    _, ends = shared.out_of(shared.told("d", "succeeded", result=1))
    assert sorted(ends) == ["d", "e"]
    _, ends = shared.out_of(shared.told("a", "succeeded", result=1))
    assert sorted(ends) == ["a", "b", "c"]


@pytest.mark.interpreted
def test_results_that_are_too_large_for_so_many_stay_at_the_winner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collapse, "RESULTS_BYTES_MAX", 100)
    shared = Shared()
    shared.ask("a", "b", "c", payload=SAME)
    _, ends = shared.out_of(shared.told("a", "succeeded", result="x" * 60))
    assert ends["b"].result is None
    assert ends["b"].collapsed_into is not None
    assert ends["b"].collapsed_into.result_omitted


def test_when_the_type_no_longer_collapses_joiners_run_by_themselves() -> None:
    shared = Shared()
    shared.ask("a", "b", payload=SAME)
    shared.scene.definitions = [collapsing(None)]
    found = shared.group() + shared.group()
    assert ("dispatched", "b") in found
    _, ends = shared.out_of(shared.told("a", "succeeded", result=1))
    assert list(ends) == ["a"]


def test_when_a_type_begins_to_collapse_living_jobs_are_joined() -> None:
    shared = Shared(collapsing(None))
    assert shared.ask("a", payload=SAME) == ["a"]
    shared.scene.definitions = [collapsing()]
    shared.group()
    assert shared.ask("b", payload=SAME) == []


def test_jobs_that_waited_for_their_type_join_once_it_is_known() -> None:
    shared = Shared(collapsing(type="other"))
    shared.ask("a", "b", payload=SAME)
    shared.scene.definitions.append(collapsing(queue="default"))
    found = shared.group() + shared.group()
    assert [name for kind, name in found if kind == "dispatched"] == ["a"]
    joiner = shared.scene.state.jobs[("u", "b")]
    assert joiner.waits_for == ("collapse", "u", "t", "a")
    assert joiner.spec.queue == "default"
    _, ends = shared.out_of(shared.told("a", "succeeded", result=1))
    assert sorted(ends) == ["a", "b"]


def test_a_joiner_takes_nothing_of_a_rate_limit() -> None:
    once = LimitSpec(limit=1, window_ms=60_000, over="skip")
    shared = Shared(collapsing(limits=(once,)))
    assert shared.ask("a", "b", "c", payload=SAME) == ["a"]
    _, ends = shared.out_of(shared.told("a", "succeeded", result=1))
    assert [ends[name].reason for name in "bc"] == ["collapsed", "collapsed"]
    _, ends = shared.out_of(request("d", payload=SAME))
    assert ends["d"].reason == "rate_limited"


def test_what_has_expired_joins_nobody() -> None:
    shared = Shared()
    shared.ask("a", payload=SAME)
    _, ends = shared.out_of(request("b", payload=SAME, expires_at=shared.now_ms - 1))
    assert ends["b"].status is State.EXPIRED


def test_a_joiner_that_expires_ends_alone() -> None:
    shared = Shared()
    shared.ask("a", payload=SAME)
    shared.ask("b", payload=SAME, expires_at=shared.now_ms + 1_000)
    shared.now_ms += 1_000
    _, ends = shared.out_of()
    assert {name: end.status for name, end in ends.items()} == {"b": State.EXPIRED}


def test_the_value_at_a_path() -> None:
    payload = b'{"x": {"b": 1, "a": [2]}, "y": null, "z": 0}'
    assert value_at(payload, ("x",)) == b'{"a":[2],"b":1}'
    assert value_at(payload, ("x", "b")) == b"1"
    assert value_at(payload, ("z",)) == b"0"
    for path in (("y",), ("w",), ("x", "b", "c"), ("x", "a", "0")):
        assert value_at(payload, path) is None
    long = value_at(orjson.dumps({"x": "v" * 5_000}), ("x",))
    assert long is not None
    assert len(long) == 32


@pytest.mark.parametrize("path", ["x", "payload", "payload.", "payload..x", "", "payload.x\n", 3])
def test_a_path_that_is_none_is_refused_at_definition(path: Any) -> None:
    with pytest.raises(JobDefinitionError, match=r"such as 'payload\.report_id'"):
        build_handler("t", lambda payload: None, collapse_by=path)
    with pytest.raises(ValidationError):
        collapsing(path)


def test_the_decorator_publishes_the_path() -> None:
    @job("collapse.it", collapse_by="payload.report.id")
    async def it(payload: dict[str, Any]) -> None: ...

    handler = build_handler("t", it.__wrapped__, collapse_by="payload.report.id")
    assert handler.definition().collapse_by == "payload.report.id"
    old = Definition.model_validate({"schema_version": 1, "type": "t"})
    assert old.collapse_by is None
