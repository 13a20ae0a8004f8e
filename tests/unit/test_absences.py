"""Jobs that nobody can run: they wait, their story says why, and nobody else waits for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
import pytest

from tests.unit.core_kit import DEFAULT, NOW
from tests.unit.partition_kit import (
    TOPICS,
    Input,
    Scene,
    events_in,
    outcome,
    outcomes,
    request,
)
from tidemill.agents.ledger.workers import groups_of
from tidemill.schemas.batch_builder import OutRecord
from tidemill.schemas.wire import Definition, LimitSpec
from tidemill.streams.absences import (
    NOT_SERVED_MS,
    NOT_SERVED_TOLD_MAX,
    PORTION,
    TELL_AFTER_MS,
    UNKNOWN_TYPE_WAIT_MS,
)
from tidemill.streams.attempts import RETURN_MS, RETURN_MS_MAX, return_delay_ms
from tidemill.streams.dispatch.slot_pool import Groups, SlotPoolName
from tidemill.streams.partition import Capacity

Event = dict[str, Any]

OLD: Final = SlotPoolName("default", "async", "old")
OTHER: Final = SlotPoolName("other", "async")
ROOM: Final = Capacity(4, 4, 1, (0, 1))
FEW: Final = 20


def defined(*types: str, **facts: Any) -> list[Definition]:
    return [Definition(schema_version=1, type=name, **facts) for name in types]


class Fleet(Scene):
    """A partition that knows `good` and `old`, whose workers change what they run."""

    def __init__(self) -> None:
        super().__init__(*defined("good", "old"))
        self.now_ms = NOW
        self.serve(good=[1], old=[1])

    def serve(self, queue: str = "default", /, **runners: list[int]) -> None:
        """Which workers run which types; worker n owns ready partition n."""
        workers = sorted({number for numbers in runners.values() for number in numbers})
        groups = groups_of(
            [[name for name, who in runners.items() if number in who] for number in workers]
        )
        told: Mapping[str, Groups] = {**(self.told or {}), queue: groups}
        self.told = told
        rooms = {name: room for name, room in self.rooms.items() if name.queue != queue}
        for group in set(groups.values()):
            owned = {
                number for name, who in runners.items() if groups[name] == group for number in who
            }
            count = len(owned)
            room = Capacity(4 * count, 4 * count, count, tuple(sorted(owned)))
            rooms[SlotPoolName(queue, "async", group)] = room
        self.rooms = rooms

    def stop(self, queue: str = "default") -> None:
        """The workers of a queue are gone."""
        self.told = {name: groups for name, groups in (self.told or {}).items() if name != queue}
        self.rooms = {name: room for name, room in self.rooms.items() if name.queue != queue}

    def records(self, after_ms: int, *inputs: Input) -> list[OutRecord]:
        """Groups until so much time has passed and nothing is due."""
        until_ms = self.now_ms + after_ms
        found = self.group(self.now_ms, *inputs)
        while (next_ms := max(self.now_ms + 1, self.engine.next_tick_at())) <= until_ms:
            self.now_ms = next_ms
            found += self.group(next_ms)
        self.now_ms = until_ms
        return found + self.group(until_ms)

    def pass_ms(self, after_ms: int, *inputs: Input) -> list[Event]:
        """The events of that."""
        return events_in(self.records(after_ms, *inputs))


def asked(type: str, count: int = FEW, **fields: object) -> list[Input]:
    return [request(f"{type}-{number:05}", type=type, **fields) for number in range(count)]


def kinds(events: list[Event], type: str = "old") -> list[str]:
    return [event["event"] for event in events if event["type"] == type]


def reasons(events: list[Event], kind: str) -> set[str]:
    return {event["reason"] for event in events if event["event"] == kind}


# --- a type that is gone -------------------------------------------------------------------------


def test_a_handler_is_removed_while_its_jobs_wait() -> None:
    fleet = Fleet()
    fleet.stop()
    fleet.pass_ms(0, *asked("old"))
    fleet.serve(good=[1])
    events = fleet.pass_ms(UNKNOWN_TYPE_WAIT_MS - 1)
    assert kinds(events) == ["deferred"] * FEW
    assert reasons(events, "deferred") == {"type_not_run"}
    events = fleet.pass_ms(1_500)
    assert kinds(events) == ["failed"] * FEW
    assert {event["error"]["code"] for event in events} == {"UNKNOWN_TYPE"}
    assert "queue 'default'" in events[0]["error"]["message"]


def test_a_request_names_a_queue_whose_workers_lack_the_type() -> None:
    fleet = Fleet()
    fleet.serve("other", good=[1])
    events = fleet.pass_ms(UNKNOWN_TYPE_WAIT_MS + 1_500, *asked("old", queue="other"))
    assert kinds(events) == [*["requested"] * FEW, *["deferred"] * FEW, *["failed"] * FEW]
    # In its own queue the type runs on.
    assert "dispatched" in kinds(fleet.pass_ms(0, request("here", type="old")))


def test_a_kind_of_slots_that_no_worker_of_the_queue_has() -> None:
    fleet = Fleet()
    fleet.definitions += defined("slow", runs_as="process")
    events = fleet.pass_ms(UNKNOWN_TYPE_WAIT_MS + 1_500, *asked("slow", 1))
    assert kinds(events, "slow") == ["requested", "deferred", "failed"]


def test_a_job_that_retries_is_given_up_as_well() -> None:
    fleet = Fleet()
    fleet.pass_ms(0, request("r", type="old"))
    fleet.serve(good=[1])
    events = fleet.pass_ms(40_000, outcomes(outcome(("u", "r"), "failed", retry_after_ms=5_000)))
    assert kinds(events) == ["attempt_failed", "retry_scheduled", "deferred", "failed"]
    times = {event["event"]: event["occurred_at"] for event in events}
    assert times["deferred"] < times["failed"]


def test_what_was_given_up_runs_when_it_is_redriven_and_its_type_is_back() -> None:
    fleet = Fleet()
    fleet.serve(good=[1])
    fleet.pass_ms(40_000, request("r", type="old"))
    redrive = (TOPICS.commands, b'{"command":"redrive","user_id":"u","job_id":"r"}')
    fleet.serve(good=[1], old=[1])
    assert kinds(fleet.pass_ms(0, redrive))[-1] == "dispatched"


def test_a_redrive_while_the_type_is_still_gone_waits_again() -> None:
    fleet = Fleet()
    fleet.serve(good=[1])
    fleet.pass_ms(40_000, request("r", type="old"))
    redrive = (TOPICS.commands, b'{"command":"redrive","user_id":"u","job_id":"r"}')
    events = fleet.pass_ms(UNKNOWN_TYPE_WAIT_MS - 1, redrive)
    assert "failed" not in kinds(events)
    assert kinds(fleet.pass_ms(1_500)) == ["failed"]


@pytest.mark.parametrize(
    ("late_ms", "expected"),
    [
        (-1, ("redriven", "operator")), (0, ("command_refused", "expired_before_start")),
        (60_000, ("command_refused", "expired_before_start")),
    ],
)
def test_a_redrive_after_its_expiry_is_refused_and_the_dead_letter_stays(
    late_ms: int, expected: tuple[str, str]
) -> None:
    fleet = Fleet()
    fleet.serve(good=[1])
    expires_at = NOW + 60_000
    assert kinds(fleet.pass_ms(40_000, request("r", type="old", expires_at=expires_at)))[-1] == (
        "failed"
    )
    fleet.serve(good=[1], old=[1])
    fleet.pass_ms(expires_at + late_ms - fleet.now_ms)
    redrive = (TOPICS.commands, b'{"command":"redrive","user_id":"u","job_id":"r"}')
    events = [event for event in fleet.pass_ms(0, redrive) if event["job_id"] == "r"]
    assert (events[0]["event"], events[0]["reason"]) == expected
    if late_ms >= 0:
        assert kinds(fleet.pass_ms(1_000, redrive)) == ["command_refused"]  # it is still failed


def test_what_was_dispatched_before_it_failed_is_redriven_after_its_expiry() -> None:
    fleet = Fleet()
    fleet.pass_ms(0, request("r", type="old", expires_at=NOW + 5_000))
    error = {"code": "X", "message": "m", "retryable": False}
    fleet.pass_ms(9_000, outcomes(outcome(("u", "r"), "failed", error=error)))
    redrive = (TOPICS.commands, b'{"command":"redrive","user_id":"u","job_id":"r"}')
    assert kinds(fleet.pass_ms(0, redrive)) == ["redriven", "dispatched"]


@pytest.mark.parametrize("away_ms", [0, TELL_AFTER_MS - 1, 20_000])
def test_a_type_that_comes_back_in_time_runs_in_the_order_of_its_requests(away_ms: int) -> None:
    fleet = Fleet()
    fleet.serve(good=[1])
    told = fleet.pass_ms(away_ms, *asked("old"))
    assert ("deferred" in kinds(told)) == (away_ms >= TELL_AFTER_MS)
    fleet.serve(good=[1], old=[1])
    order: list[str] = []
    events = fleet.pass_ms(1)
    while new := [event["job_id"] for event in events if event["event"] == "dispatched"]:
        order += new
        done = [outcome(key, "succeeded") for key in fleet.in_flight()]
        events = fleet.pass_ms(1, outcomes(*done))
    assert len(order) == FEW
    assert order == sorted(order)


def test_a_new_request_for_a_type_that_has_long_been_gone_waits_its_own_time() -> None:
    fleet = Fleet()
    fleet.serve(good=[1])
    fleet.pass_ms(300_000)
    events = fleet.pass_ms(UNKNOWN_TYPE_WAIT_MS - 1, request("late", type="old"))
    assert kinds(events) == ["requested", "deferred"]
    assert kinds(fleet.pass_ms(1_500)) == ["failed"]


# --- nothing is failed in error ------------------------------------------------------------------


def test_a_queue_without_workers_fails_nothing_and_says_so() -> None:
    fleet = Fleet()
    fleet.stop()
    fleet.pass_ms(0, *asked("old"))
    assert fleet.pass_ms(NOT_SERVED_MS - 1_001) == []
    events = fleet.pass_ms(600_000)
    assert kinds(events) == ["deferred"] * FEW
    assert reasons(events, "deferred") == {"queue_not_served"}
    fleet.serve(good=[1], old=[1])
    assert "dispatched" in kinds(fleet.pass_ms(0))


def test_after_a_night_without_workers_a_backlog_costs_no_event_a_job() -> None:
    fleet = Fleet()
    fleet.stop()
    fleet.pass_ms(0, *asked("old", NOT_SERVED_TOLD_MAX + 500))
    events = fleet.pass_ms(200_000)
    assert kinds(events) == ["deferred"] * NOT_SERVED_TOLD_MAX


def test_the_wait_begins_when_workers_of_the_queue_live() -> None:
    fleet = Fleet()
    fleet.stop()
    fleet.pass_ms(600_000, *asked("old"))
    fleet.serve(good=[1])
    assert "failed" not in kinds(fleet.pass_ms(UNKNOWN_TYPE_WAIT_MS - 1))
    assert kinds(fleet.pass_ms(1_500)) == ["failed"] * FEW


@pytest.mark.parametrize("type_name", ["old", "never"])
def test_a_ledger_that_catches_up_fails_nothing(type_name: str) -> None:
    fleet = Fleet()
    fleet.serve(good=[1])
    fleet.pass_ms(25_000, request("j", type=type_name))
    # The owner is away for an hour; the new one has heard nobody yet.
    fleet.now_ms += 3_600_000
    fleet.restore(fleet.now_ms)
    told, fleet.told = fleet.told, {}
    assert "failed" not in kinds(fleet.pass_ms(20_000), type_name)
    fleet.told = told
    assert "failed" not in kinds(fleet.pass_ms(UNKNOWN_TYPE_WAIT_MS - 1), type_name)
    assert kinds(fleet.pass_ms(6_000), type_name) == ["failed"]


def test_time_that_was_not_heard_does_not_count() -> None:
    fleet = Fleet()
    fleet.serve(good=[1])
    fleet.pass_ms(29_000, request("j", type="old"))
    engine = fleet.engine
    heard_since = fleet.now_ms
    for passed_ms in (0, 1_000, 2_000, UNKNOWN_TYPE_WAIT_MS - 1, UNKNOWN_TYPE_WAIT_MS):
        engine.begin(heard_since + passed_ms)
        # A broker outage has just ended; then nothing is heard any more.
        engine.set_workers(
            fleet.alive, heard_since_ms=heard_since, heard_until_ms=heard_since + 29_999
        )
        engine.tick()
        assert events_in(list(engine.seal())) == []
        engine.commit()


def test_a_worker_that_is_seen_before_the_others_does_no_harm() -> None:
    fleet = Fleet()
    fleet.stop()
    fleet.pass_ms(0, *asked("old"))
    fleet.serve(good=[1])  # the first beat that is read
    assert fleet.pass_ms(2_000) == []
    fleet.serve(good=[1, 2], old=[2])
    assert "dispatched" in kinds(fleet.pass_ms(0))


# --- some of the workers -------------------------------------------------------------------------


def partitions(records: list[OutRecord]) -> dict[str, set[int]]:
    """Job type -> ready partitions that its jobs went to."""
    found: dict[str, set[int]] = {}
    for topic, partition, _, value, _ in records:
        if topic.startswith(TOPICS.ready("default")):
            for job in orjson.loads(value or b"")["jobs"]:
                found.setdefault(job["type"], set()).add(partition)
    return found


def test_jobs_go_to_the_workers_that_run_their_type() -> None:
    fleet = Fleet()
    fleet.serve(good=[1, 2, 3], old=[3])
    seen: dict[str, set[int]] = {}
    for number in range(30):
        both = [request(f"{name}{number}", type=name) for name in ("good", "old")]
        sent = fleet.records(1, *both)
        for type_name, found in partitions(sent).items():
            seen.setdefault(type_name, set()).update(found)
        fleet.records(1, outcomes(*(outcome(key, "succeeded") for key in fleet.in_flight())))
    assert seen == {"good": {1, 2, 3}, "old": {3}}


def test_a_half_deployed_queue_is_quick() -> None:
    fleet = Fleet()
    fleet.serve(good=[1, 2], old=[2])
    ended = 0
    events = fleet.pass_ms(0, *asked("old", 100))
    while ended < 100:
        flying = fleet.in_flight()
        assert flying
        ended += len(flying)
        events += fleet.pass_ms(10, outcomes(*(outcome(key, "succeeded") for key in flying)))
    assert set(kinds(events)) == {"requested", "dispatched", "attempt_succeeded", "succeeded"}
    assert fleet.now_ms - NOW < 5_000


def test_types_of_the_same_workers_share_their_slots() -> None:
    assert groups_of([["a", "b", "x"], ["b", "c", "d"]]) == {
        "a": "a", "b": "", "c": "c", "d": "c", "x": "a",
    }
    assert groups_of([["a", "b"]]) == {"a": "", "b": ""}
    assert groups_of([["a"], []]) == {"a": "a"}


def test_what_is_out_stays_known_while_lines_change() -> None:
    fleet = Fleet()
    fleet.pass_ms(0, *asked("old", 4), *asked("good", 4))
    flying = set(fleet.in_flight())
    assert len(flying) == 8
    for runners in ({"good": [1]}, {"good": [1, 2], "old": [2]}, {"good": [1], "old": [1]}):
        fleet.serve("default", **runners)
        fleet.pass_ms(1)
        assert set(fleet.in_flight()) == flying
        assert len(fleet.in_flight()) == 8
    fleet.pass_ms(0, outcomes(*(outcome(key, "succeeded") for key in flying)))
    assert not fleet.in_flight()
    assert not fleet.state.jobs


# --- nobody else waits ---------------------------------------------------------------------------


def test_twenty_thousand_jobs_that_nobody_can_run_keep_no_other_waiting() -> None:
    fleet = Fleet()
    fleet.stop()
    for first in range(0, 20_000, 2_000):
        fleet.pass_ms(
            0, *[request(f"o{number}", type="old") for number in range(first, first + 2_000)]
        )
    fleet.serve(good=[1])
    counts: dict[str, int] = {}
    for number in range(300):
        fleet.now_ms += 200
        events = events_in(fleet.group(fleet.now_ms, request(f"g{number}", type="good")))
        # The good one goes at once, and no group has much else to do.
        assert [e["event"] for e in events if e["type"] == "good"][-1] == "dispatched"
        assert len(events) <= 110
        fleet.group(fleet.now_ms, outcomes(outcome(("u", f"g{number}"), "succeeded")))
        for event in events:
            if event["type"] == "old":
                counts[event["event"]] = counts.get(event["event"], 0) + 1
    assert counts.keys() == {"deferred", "failed"}
    assert sum(counts.values()) >= 300 * PORTION * 0.9  # a portion in each look, none is idle


def test_large_ones_are_given_up_one_at_a_time() -> None:
    fleet = Fleet()
    fleet.serve(good=[1])
    big = {"text": "x" * 300_000}
    fleet.pass_ms(29_000, *asked("old", 10, payload=big))
    found: list[str] = []
    while len(found) < 10:
        events = events_in(fleet.group(fleet.now_ms))
        failed = kinds(events).count("failed")
        assert failed <= 1
        found += ["failed"] * failed
        fleet.now_ms += 100
        assert fleet.now_ms < NOW + 60_000


# --- hand-backs ----------------------------------------------------------------------------------


def test_a_hand_back_by_a_worker_that_lacks_the_type_backs_off_and_counts() -> None:
    fleet = Fleet()
    fleet.pass_ms(0, request("j", type="old"))
    waits: list[int] = []
    for count in range(1, 9):
        (key,) = fleet.in_flight()
        epoch = fleet.state.jobs[key].epoch
        given_back_at = fleet.now_ms
        told = outcome(key, "returned", reason="type_not_run", epoch=epoch)
        events = fleet.pass_ms(0, outcomes(told))
        assert kinds(events) == ["returned", "deferred"]
        assert events[0]["data"] == {"returns": count}
        assert fleet.state.jobs[key].returns == count
        assert fleet.restored(fleet.now_ms).state.jobs[key].returns == count
        while not fleet.in_flight():
            fleet.pass_ms(100)
        waits.append(fleet.now_ms - given_back_at)
    assert waits == sorted(waits)
    assert waits[0] <= RETURN_MS + 100
    assert RETURN_MS_MAX <= waits[-1] <= RETURN_MS_MAX + 100
    assert fleet.state.jobs["u", "j"].attempt == 1  # none of them spent one


def test_the_back_off_is_bounded() -> None:
    counts = (0, 1, 2, 7, 10**9)
    assert [return_delay_ms(count) for count in counts] == [500, 500, 1_000, 30_000, 30_000]


def test_a_row_of_a_former_release_has_no_hand_backs() -> None:
    fleet = Fleet()
    fleet.stop()
    fleet.pass_ms(0, request("j", type="old"))
    for key, row in list(fleet.rows.items()):
        if key.startswith(b"j"):
            head, _, payload = row.partition(b"\n")
            fleet.rows[key] = head.removesuffix(b",0]") + b"]\n" + payload
            assert fleet.rows[key] != row
    assert fleet.restored(fleet.now_ms).state.jobs["u", "j"].returns == 0


# --- with the policies ---------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["skip", "delay"])
def test_limits_hold_for_jobs_that_waited_for_their_type(over: str) -> None:
    fleet = Fleet()
    limit = LimitSpec.model_validate({"limit": 2, "window_ms": 60_000, "over": over})
    fleet.definitions = [*defined("good"), *defined("old", limits=(limit,))]
    fleet.serve(good=[1])
    fleet.pass_ms(10_000, *asked("old", 2))
    fleet.serve(good=[1], old=[1])
    assert kinds(fleet.pass_ms(0)).count("dispatched") == 2
    late = kinds(fleet.pass_ms(0, request("third", type="old")))
    assert late[-1] == ("skipped" if over == "skip" else "deferred")


def test_an_aborted_group_leaves_no_trace_of_what_it_gave_up() -> None:
    fleet = Fleet()
    fleet.serve(good=[1])
    fleet.pass_ms(29_900, *asked("old"))
    fleet.group(fleet.now_ms + 1_000, is_committed=False)
    assert {job.state.value for job in fleet.state.jobs.values()} == {"scheduled"}
    assert kinds(fleet.pass_ms(3_000)) == ["failed"] * FEW
    assert DEFAULT in fleet.rooms
