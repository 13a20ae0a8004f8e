"""At most so many attempts of a user and type at once; the others wait, in their order."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.core_kit import NOW
from tests.unit.partition_kit import Input, Scene, events_in, outcome, outcomes, request
from tidemill import Concurrency, RateLimit, job
from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.agents.worker.handlers import build_handler
from tidemill.schemas.wire import ConcurrencySpec, Definition, LimitSpec
from tidemill.schemas.words import Reason, State
from tidemill.streams.job import JobKey

LIMIT = 2


def limited(most: int | None = LIMIT, *limits: LimitSpec) -> Definition:
    found = None if most is None else ConcurrencySpec(limit=most)
    return Definition(schema_version=1, type="t", concurrency=found, limits=limits)


class Crowd:
    """Jobs of two users under the limit."""

    def __init__(self, *definitions: Definition) -> None:
        self.scene = Scene(*(definitions or (limited(),)))
        self.now_ms = NOW

    def group(self, *inputs: Input, **facts: Any) -> list[tuple[str, str]]:
        self.now_ms += 10
        found = events_in(self.scene.group(self.now_ms, *inputs, **facts))
        return [(event["event"], event["job_id"]) for event in found]

    def ask(self, *names: str, **fields: object) -> list[str]:
        """What starts at once."""
        events = self.group(*(request(name, **fields) for name in names))
        return [name for kind, name in events if kind == "dispatched"]

    def tell(self, name: str, kind: str, user: str = "u", **facts: object) -> list[str]:
        """What starts because of an outcome."""
        found = self.scene.state.jobs[(user, name)]
        told = outcome(
            (user, name), kind, epoch=found.epoch, attempt=found.attempt, run=found.run, **facts
        )
        return [job_id for event, job_id in self.group(outcomes(told)) if event == "dispatched"]

    def out(self) -> list[JobKey]:
        return self.scene.in_flight()


def test_no_more_than_the_limit_are_out_and_the_next_follows_in_order() -> None:
    crowd = Crowd()
    assert crowd.ask("a", "b", "c", "d") == ["a", "b"]
    waiting = crowd.scene.state.jobs[("u", "c")]
    assert (waiting.state, waiting.reason) == (State.SCHEDULED, Reason.CONCURRENCY_LIMITED)
    assert waiting.due_at is None
    assert crowd.ask("e") == []
    assert crowd.tell("a", "succeeded") == ["c"]
    assert crowd.tell("c", "succeeded") == ["d"]
    assert crowd.tell("b", "failed", retry_after_ms=60_000) == ["e"], "a retry takes up nothing"


def test_users_and_types_do_not_count_for_each_other() -> None:
    other = Definition(schema_version=1, type="other")
    crowd = Crowd(limited(1), other)
    assert crowd.ask("a", "b") == ["a"]
    assert crowd.ask("a", user_id="v") == ["a"]
    assert crowd.ask("x", type="other") == ["x"]


@pytest.mark.parametrize("reason", ["no_free_slot", "interrupted", "worker_stopping"])
def test_what_is_given_back_is_free_and_asked_about_again(reason: str) -> None:
    crowd = Crowd(limited(1))
    crowd.ask("a", "b")
    crowd.tell("a", "returned", reason=reason)
    crowd.group()
    assert len(crowd.out()) == 1


def test_a_waiting_job_can_be_cancelled_and_expires() -> None:
    crowd = Crowd(limited(1))
    crowd.ask("a")
    crowd.ask("b", expires_at=crowd.now_ms + 5_000)
    crowd.ask("c")
    cancel = b'{"command":"cancel","user_id":"u","job_id":"c"}'
    assert crowd.group(("jobs.commands", cancel)) == [("cancelled", "c")]
    crowd.now_ms += 5_000
    assert crowd.group() == [("expired", "b")]
    crowd.ask("d")
    assert crowd.tell("a", "succeeded") == ["d"]


def test_a_restore_and_an_undo_count_anew() -> None:
    crowd = Crowd()
    crowd.ask("a", "b", "c")
    crowd.scene.restore(crowd.now_ms)
    assert crowd.group() == []
    crowd.group(request("d"), is_committed=False)
    assert crowd.ask("d") == []
    assert crowd.tell("a", "succeeded") == ["c"]
    assert sorted(key[1] for key in crowd.out()) == ["b", "c"]


@pytest.mark.parametrize("most", [1, 3, None])
def test_what_the_limit_is_now_holds_for_who_waits(most: int | None) -> None:
    crowd = Crowd()
    assert crowd.ask("a", "b", "c", "d") == ["a", "b"]
    crowd.scene.definitions = [limited(most)]
    started = {1: [], 3: ["c"], None: ["c", "d"]}[most]
    assert [name for kind, name in crowd.group() if kind == "dispatched"] == started
    crowd.tell("a", "succeeded")
    assert len(crowd.out()) == {1: 1, 3: 3, None: 3}[most]


def test_a_limit_that_comes_later_counts_who_is_out() -> None:
    crowd = Crowd(limited(None))
    assert crowd.ask("a", "b", "c") == ["a", "b", "c"]
    crowd.scene.definitions = [limited(2)]
    assert crowd.ask("d") == []
    assert crowd.tell("a", "succeeded") == []
    assert crowd.tell("b", "succeeded") == ["d"]


def test_a_rate_and_a_concurrency_hold_both() -> None:
    rate = LimitSpec(limit=3, window_ms=60_000, over="delay")
    skip = LimitSpec(limit=5, window_ms=60_000, over="skip")
    crowd = Crowd(limited(1, rate, skip))
    assert crowd.ask("a", "b", "c", "d") == ["a"]
    assert crowd.tell("a", "succeeded") == ["b"]
    assert crowd.tell("b", "succeeded") == ["c"]
    assert crowd.tell("c", "succeeded") == []
    crowd.now_ms += 60_000
    started = [name for _ in range(3) for kind, name in crowd.group() if kind == "dispatched"]
    assert started == ["d"]


def test_the_definition_carries_it_and_older_ledgers_pass_over_it() -> None:
    async def handler(payload: dict[str, Any]) -> None: ...

    made = build_handler("t", handler, concurrency=Concurrency(3, by="user").spec())
    text = made.definition().model_dump_json()
    assert Definition.model_validate_json(text).concurrency == ConcurrencySpec(limit=3)


@pytest.mark.parametrize("limit", [0, -1, 1_001, True, "2", 1.5])
def test_a_limit_that_is_no_number_is_refused(limit: Any) -> None:
    with pytest.raises(JobDefinitionError, match="from 1 to 1000"):
        Concurrency(limit)


def test_what_is_wrong_in_limits_is_named() -> None:
    with pytest.raises(JobDefinitionError, match="use by='user'"):
        Concurrency(1, by="queue")
    with pytest.raises(JobDefinitionError, match="2 times Concurrency"):
        job("t.twice", limits=[Concurrency(1), RateLimit("1/h"), Concurrency(2)])(_nothing)
    with pytest.raises(JobDefinitionError, match=r"Concurrency\(2"):
        job("t.wrong", limits=["2"])(_nothing)  # type: ignore[list-item]


async def _nothing(payload: dict[str, Any]) -> None: ...
