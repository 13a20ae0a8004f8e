"""Schedules of one partition, over rows in memory and a clock that the test moves."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.unit.core_kit import NOW, SLEEPS
from tests.unit.partition_kit import TOPICS, Scene, events_in, outcome, outcomes
from tidemill.agents import zones
from tidemill.schemas.batch_builder import OutRecord
from tidemill.schemas.schedules import ScheduleSpec
from tidemill.schemas.wire import Definition
from tidemill.schemas.words import State
from tidemill.streams.occurrences.due import occurrence_id
from tidemill.streams.schedules.announced import Announced, Announcement
from tidemill.streams.schedules.ticking import GRACE_MS, ORPHAN_AFTER_MS

TICK = Definition(schema_version=1, type="t", takes_tick=True)
SECOND = 1_000
MINUTE = 60 * SECOND
USER = "schedule:x"


class Clockwork(Scene):
    """A partition whose workers announce schedules."""

    def __init__(self, **plan: Any) -> None:
        self.announced: Announced = ()
        super().__init__(TICK)
        self.begins = self.engine.begin
        if plan:
            self.announce(x=self.spec(**plan))

    def spec(self, **plan: Any) -> ScheduleSpec:
        return ScheduleSpec(type="t", **plan)

    def restore(self, now_ms: int) -> None:
        super().restore(now_ms)
        self.engine.ticking.set_zones(zones.zone, "test")
        self.engine.ticking.set_announced(self.announced)

    def announce(self, worker: str = "w", **specs: ScheduleSpec) -> None:
        others = tuple(one for one in self.announced if one.worker_id != worker)
        self.announced = (*others, Announcement(worker, ("jobs",), specs))
        self.engine.ticking.set_announced(self.announced)

    def leave(self, worker: str) -> None:
        self.announced = tuple(one for one in self.announced if one.worker_id != worker)
        self.engine.ticking.set_announced(self.announced)

    def end(
        self, job_id: str, now_ms: int, kind: str = "succeeded", epoch: int = 1
    ) -> list[OutRecord]:
        facts: dict[str, object] = {"started_at": now_ms, "finished_at": now_ms, "epoch": epoch}
        if kind == "suspended":
            facts["waits"] = SLEEPS
        done = outcome((USER, job_id), kind, **facts)
        return self.group(now_ms, outcomes(done))

    @property
    def row(self) -> Any:
        return self.engine.ticking.table.get("x")


def asked(records: list[OutRecord]) -> list[str]:
    return [each["job_id"] for each in events_in(records) if each["event"] == "requested"]


def skipped(records: list[OutRecord]) -> list[tuple[str, str]]:
    return [
        (each["job_id"], each["reason"]) for each in events_in(records)
        if each["event"] == "skipped"
    ]


def tick_id(after_ms: int) -> str:
    return occurrence_id("x", NOW + after_ms)


def test_an_interval_counts_from_creation() -> None:
    scene = Clockwork(every_ms=2_000)
    assert asked(scene.group(NOW)) == []
    assert scene.engine.next_tick_at() <= NOW + 2_000
    assert asked(scene.group(NOW + 1_999)) == []
    assert asked(scene.group(NOW + 2_003)) == [tick_id(2_000)]
    scene.end(tick_id(2_000), NOW + 2_100)
    assert asked(scene.group(NOW + 4_000)) == [tick_id(4_000)]


def test_the_payload_is_the_tick() -> None:
    scene = Clockwork(every_ms=2_000, payload={"a": 1})
    scene.group(NOW)
    first = events_in(scene.group(NOW + 2_003))[0]
    scene.end(tick_id(2_000), NOW + 2_100)
    second = events_in(scene.group(NOW + 4_000))[0]
    assert first["user_id"] == USER
    told = first["data"]["payload"]
    assert told["previous"] is None
    assert told["payload"] == {"a": 1}
    assert told["is_catch_up"] is False
    assert second["data"]["payload"]["previous"] == told["scheduled_for"]


def test_first_now_ticks_at_creation_and_not_at_a_restart() -> None:
    scene = Clockwork(every_ms=MINUTE, is_first_now=True)
    assert asked(scene.group(NOW)) == [tick_id(0)]
    scene.restore(NOW + SECOND)
    assert asked(scene.group(NOW + SECOND)) == []
    assert skipped(scene.group(NOW + MINUTE)) == [(tick_id(MINUTE), "overlap")]
    scene.end(tick_id(0), NOW + MINUTE)
    assert asked(scene.group(NOW + 2 * MINUTE)) == [tick_id(2 * MINUTE)]


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_tick_is_asked_for_once(is_committed: bool) -> None:
    """By the owner that has done so, by one that comes after it, and after an aborted group."""
    scene = Clockwork(every_ms=2_000, overlap="allow")
    scene.group(NOW)
    first = scene.group(NOW + 2_000, is_committed=is_committed)
    assert asked(first) == [tick_id(2_000)]
    if is_committed:
        scene.restore(NOW + 2_100)
    again = scene.group(NOW + 2_100)
    assert asked(again) == ([] if is_committed else [tick_id(2_000)])
    assert asked(scene.group(NOW + 4_000)) == [tick_id(4_000)]


def test_a_pattern_is_read_in_its_zone() -> None:
    scene = Clockwork(cron="0 9 * * *", zone="Europe/Berlin")
    scene.group(NOW)
    due_ms = scene.row.next_ms
    (job_id,) = asked(scene.group(due_ms))
    assert job_id == occurrence_id("x", due_ms)
    local = zones.zone("Europe/Berlin").local(due_ms // 1000) % 86_400
    assert local == 9 * 3_600


def test_the_row_fires_whatever_zone_data_say_by_then() -> None:
    scene = Clockwork(cron="0 9 * * *", zone="Europe/Berlin")
    scene.group(NOW)
    due_ms = scene.row.next_ms
    scene.restore(due_ms)
    scene.engine.ticking.set_zones(lambda name: zones.zone("Asia/Tokyo"), "another")
    assert asked(scene.group(due_ms)) == [occurrence_id("x", due_ms)]
    assert scene.row.zone_data == "another"


def test_new_zone_data_move_instants_to_come() -> None:
    scene = Clockwork(cron="0 9 * * *", zone="Europe/Berlin")
    scene.group(NOW)
    before = scene.row.next_ms
    scene.restore(NOW + SECOND)
    scene.engine.ticking.set_zones(lambda name: zones.zone("Asia/Tokyo"), "another")
    scene.group(NOW + SECOND)
    assert scene.row.next_ms != before
    assert scene.row.change == "zone data"


def test_an_unknown_zone_stops_the_schedule_and_says_so() -> None:
    scene = Clockwork(cron="0 9 * * *", zone="Europe/Atlantis")
    scene.group(NOW)
    assert scene.row.next_ms is None
    assert "Europe/Atlantis" in scene.row.problem


# --- overlap ---


def test_overlap_skip() -> None:
    scene = Clockwork(every_ms=2_000)
    scene.group(NOW)
    scene.group(NOW + 2_000)
    out = scene.group(NOW + 4_000)
    assert skipped(out) == [(tick_id(4_000), "overlap")]
    scene.end(tick_id(2_000), NOW + 4_500)
    assert skipped(scene.group(NOW + 6_000)) == []


def test_overlap_queue_one() -> None:
    scene = Clockwork(every_ms=2_000, overlap="queue_one")
    scene.group(NOW)
    scene.group(NOW + 2_000)
    assert skipped(scene.group(NOW + 4_000)) == []
    assert skipped(scene.group(NOW + 6_000)) == [(tick_id(6_000), "overlap")]
    assert len(scene.in_flight()) == 1
    scene.end(tick_id(2_000), NOW + 6_500)
    assert scene.in_flight() == [(USER, tick_id(4_000))]


def test_overlap_queue_all() -> None:
    scene = Clockwork(every_ms=2_000, overlap="queue_all")
    scene.group(NOW)
    for at in range(2_000, 10_000, 2_000):
        assert skipped(scene.group(NOW + at)) == []
    for at in range(2_000, 10_000, 2_000):
        assert scene.in_flight() == [(USER, tick_id(at))]
        scene.end(tick_id(at), NOW + 9_000)


def test_overlap_cancel_old() -> None:
    scene = Clockwork(every_ms=2_000, overlap="cancel_old")
    scene.group(NOW)
    scene.group(NOW + 2_000)
    out = events_in(scene.group(NOW + 4_000))
    assert [(one["event"], one["job_id"]) for one in out[:1]] == [
        ("cancel_requested", tick_id(2_000))
    ]
    assert scene.in_flight() == [(USER, tick_id(2_000))]
    scene.end(tick_id(2_000), NOW + 4_500)
    assert scene.in_flight() == [(USER, tick_id(4_000))]


def test_overlap_allow() -> None:
    scene = Clockwork(every_ms=2_000, overlap="allow")
    scene.group(NOW)
    scene.group(NOW + 2_000)
    scene.group(NOW + 4_000)
    assert len(scene.in_flight()) == 2


# --- a tick whose handler sleeps has not ended ---


def asleep(overlap: str) -> Clockwork:
    """The first tick sleeps for a minute, and the second instant has come."""
    scene = Clockwork(every_ms=2_000, overlap=overlap)
    scene.group(NOW)
    scene.group(NOW + 2_000)
    scene.end(tick_id(2_000), NOW + 2_100, "suspended")
    assert scene.state.jobs[(USER, tick_id(2_000))].state is State.AWAITING
    assert scene.in_flight() == []
    return scene


def test_a_sleeping_tick_is_skipped_over() -> None:
    scene = asleep("skip")
    assert skipped(scene.group(NOW + 4_000)) == [(tick_id(4_000), "overlap")]
    scene.restore(NOW + 5_000)  # what is open is found again in the rows of jobs
    assert skipped(scene.group(NOW + 6_000)) == [(tick_id(6_000), "overlap")]
    scene.group(NOW + 2_100 + 60_000)
    scene.end(tick_id(2_000), NOW + 62_200, epoch=2)
    assert asked(scene.group(NOW + 64_000))[-1] == tick_id(64_000)
    assert scene.in_flight() == [(USER, tick_id(64_000))]


@pytest.mark.parametrize(("overlap", "waiting"), [("queue_one", 1), ("queue_all", 2)])
def test_ticks_wait_for_one_that_sleeps(overlap: str, waiting: int) -> None:
    scene = asleep(overlap)
    out = [*scene.group(NOW + 4_000), *scene.group(NOW + 6_000)]
    assert len(asked(out)) - len(skipped(out)) == waiting
    assert scene.in_flight() == []
    scene.group(NOW + 2_100 + 60_000)
    assert scene.in_flight() == [(USER, tick_id(2_000))]  # it goes on first
    scene.end(tick_id(2_000), NOW + 62_200, epoch=2)
    assert scene.in_flight() == [(USER, tick_id(4_000))]


def test_a_later_tick_cancels_one_that_sleeps_and_starts_at_once() -> None:
    scene = asleep("cancel_old")
    out = events_in(scene.group(NOW + 4_000))
    assert (out[0]["event"], out[0]["job_id"]) == ("cancelled", tick_id(2_000))
    assert scene.in_flight() == [(USER, tick_id(4_000))]


# --- after down-time ---


@pytest.mark.parametrize(
    ("catch_up", "runs"),
    [("none", 1), ("last", 1), ("all", 10)],
)
def test_catch_up_of_a_quick_schedule(catch_up: str, runs: int) -> None:
    """The newest tick is on time; those before it were missed."""
    scene = Clockwork(every_ms=2_000, overlap="allow", catch_up=catch_up)
    scene.group(NOW)
    scene.restore(NOW + 20_000)
    out = scene.group(NOW + 20_500)
    assert len(asked(out)) - len(skipped(out)) == runs
    assert asked(out)[-1] == tick_id(20_000)
    gone = [one for one in skipped(out) if one[1] == "missed"]
    assert len(gone) == (runs < 10)
    if gone:
        told = next(one for one in events_in(out) if one["job_id"] == gone[0][0])
        assert told["tags"] == ["missed: 9"]


@pytest.mark.parametrize(("catch_up", "runs"), [("none", 0), ("last", 1), ("all", 3)])
def test_catch_up_of_a_slow_schedule(catch_up: str, runs: int) -> None:
    hour = 60 * MINUTE
    scene = Clockwork(every_ms=hour, overlap="allow", catch_up=catch_up)
    scene.group(NOW)
    back = NOW + 3 * hour + GRACE_MS + 1
    scene.restore(back)
    out = scene.group(back)
    assert len(asked(out)) - len(skipped(out)) == runs
    assert len(skipped(out)) == (runs < 3)
    for one in events_in(out):
        if one["event"] == "requested":
            assert one["data"]["payload"]["is_catch_up"] is True


def test_a_short_pause_misses_nothing() -> None:
    scene = Clockwork(every_ms=60 * MINUTE, catch_up="none")
    scene.group(NOW)
    assert skipped(scene.group(NOW + 60 * MINUTE + GRACE_MS)) == []


def test_caught_up_ticks_wait_for_one_another() -> None:
    scene = Clockwork(every_ms=2_000, catch_up="all")
    scene.group(NOW)
    out = scene.group(NOW + 7_900)
    assert skipped(out) == [(tick_id(6_000), "overlap")]  # on time, and an earlier one runs
    assert len(asked(out)) == 3
    assert len(scene.in_flight()) == 1


def test_a_clock_that_goes_back_fires_nothing_twice() -> None:
    scene = Clockwork(every_ms=2_000, overlap="allow")
    scene.group(NOW)
    scene.group(NOW + 2_000)
    assert asked(scene.group(NOW - 100_000)) == []


# --- jitter ---


def test_jitter_moves_the_start_and_not_the_id() -> None:
    scene = Clockwork(every_ms=60_000, jitter_ms=30_000)
    scene.group(NOW)
    out = events_in(scene.group(NOW + 60_000))
    assert out[0]["job_id"] == tick_id(60_000)
    assert [one["event"] for one in out] == ["requested", "scheduled"]
    assert (scene.engine.state.jobs[(USER, tick_id(60_000))].due_at or 0) > NOW + 60_000


# --- who announces ---


def test_workers_that_are_down_orphan_nothing() -> None:
    scene = Clockwork(every_ms=MINUTE)
    scene.group(NOW)
    scene.leave("w")
    scene.group(NOW + 30_000)
    assert asked(scene.group(NOW + MINUTE)) == [tick_id(MINUTE)]
    assert not scene.row.is_orphaned


@pytest.mark.parametrize("worker", ["w", "another id"])
def test_a_schedule_that_left_the_code_is_orphaned(worker: str) -> None:
    scene = Clockwork(every_ms=MINUTE)
    scene.group(NOW)
    scene.leave("w")
    scene.announce(worker)
    scene.group(NOW + SECOND)
    assert not scene.row.is_orphaned
    scene.group(NOW + SECOND + ORPHAN_AFTER_MS)
    assert scene.row.is_orphaned
    assert asked(scene.group(NOW + MINUTE)) == []
    scene.announce(worker, x=scene.spec(every_ms=MINUTE, is_first_now=True))
    assert len(asked(scene.group(NOW + 2 * MINUTE))) == 1  # revival, and first="now"


def test_a_worker_of_other_modules_orphans_nothing() -> None:
    scene = Clockwork(every_ms=MINUTE)
    scene.group(NOW)
    scene.leave("w")
    scene.announced = (Announcement("v", ("mail",), {}),)
    scene.engine.ticking.set_announced(scene.announced)
    scene.group(NOW + SECOND)
    assert asked(scene.group(NOW + MINUTE)) == [tick_id(MINUTE)]


def test_the_plan_that_was_announced_later_rules() -> None:
    scene = Clockwork(every_ms=MINUTE)
    old, new = scene.spec(every_ms=MINUTE), scene.spec(every_ms=2 * MINUTE)
    scene.group(NOW)
    scene.announce("v", x=new)
    scene.group(NOW + SECOND)
    assert scene.row.spec == new
    scene.leave("w")  # a restart of old code
    scene.group(NOW + 2 * SECOND)
    scene.announce("w", x=old)
    scene.group(NOW + 3 * SECOND)
    assert scene.row.spec == new
    scene.leave("v")
    scene.group(NOW + 4 * SECOND)
    assert scene.row.spec == old


def test_the_row_is_read_as_it_was_written() -> None:
    scene = Clockwork(cron="*/5 * * * *", zone="Europe/Berlin", payload={"a": [1]})
    scene.group(NOW)
    key = b"sx"
    before = orjson.loads(scene.rows[key])
    name, row = scene.engine.ticking.table.read(key, scene.rows[key])
    assert orjson.loads(scene.engine.ticking.table.row_value(name, row)) == before


# --- what people ask ---


def command(word: str, number: int = 1, name: str = "x", **fields: Any) -> tuple[str, bytes]:
    body = {
        "command": "schedule", "word": word, "name": name, "command_id": f"c{number}",
        "actor": "ada", **fields,
    }
    return TOPICS.commands, orjson.dumps(body)


def told(records: list[OutRecord]) -> list[Any]:
    """What the group says of schedules: a dict, or None for one that is gone."""
    return [
        None if value is None else orjson.loads(value)
        for topic, _, key, value, _ in records
        if topic == TOPICS.schedules and key == b"x"
    ]


def test_what_changes_is_told_and_a_tick_is_not() -> None:
    scene = Clockwork(every_ms=2_000)
    (record,) = told(scene.group(NOW))
    assert record["origin"] == "code"
    assert record["change"] == "created"
    assert record["next_at"] == NOW + 2_000
    assert told(scene.group(NOW + 2_000)) == []


def test_a_new_owner_tells_all_again() -> None:
    """The topic may have been deleted and made anew."""
    scene = Clockwork(every_ms=2_000)
    (first,) = told(scene.group(NOW))
    assert told(scene.group(NOW + 2_000)) == []
    scene.restore(NOW + 2_100)
    (again,) = told(scene.group(NOW + 2_100))
    assert again == first | {"next_at": NOW + 4_000}
    assert told(scene.group(NOW + 4_000)) == []


def test_set_makes_a_schedule_of_any_type() -> None:
    scene = Clockwork()
    scene.definitions = [Definition(schema_version=1, type="t")]
    spec = {"type": "t", "every_ms": 2_000, "payload": {"a": 1}}
    (record,) = told(scene.group(NOW, command("set", spec=spec)))
    assert record["origin"] == "live"
    assert record["command_id"] == "c1"
    assert record["actor"] == "ada"
    out = events_in(scene.group(NOW + 2_000))
    assert out[0]["data"]["payload"] == {"a": 1}
    assert told(scene.group(NOW + 2_500, command("remove", 2))) == [None]
    assert asked(scene.group(NOW + 10_000)) == []


def test_live_settings_rule_until_they_are_removed() -> None:
    scene = Clockwork(every_ms=2_000)
    scene.group(NOW)
    scene.group(NOW + 100, command("set", spec={"type": "t", "every_ms": 60_000}))
    scene.restore(NOW + 200)
    assert asked(scene.group(NOW + 4_000)) == []
    (record,) = told(scene.group(NOW + 4_100, command("remove", 2)))
    assert record["origin"] == "code"
    assert asked(scene.group(NOW + 6_000)) == [tick_id(6_000)]
    (record,) = told(scene.group(NOW + 6_100, command("remove", 3)))
    assert "take it out there" in record["refused"]


def test_an_orphaned_schedule_is_removed() -> None:
    scene = Clockwork(every_ms=MINUTE)
    scene.group(NOW)
    scene.announce("w")
    scene.group(NOW + SECOND)
    scene.group(NOW + SECOND + ORPHAN_AFTER_MS)
    assert told(scene.group(NOW + MINUTE, command("remove"))) == [None]
    assert scene.row is None
    assert b"sx" not in scene.rows


def test_pause_and_resume() -> None:
    scene = Clockwork(every_ms=2_000)
    scene.group(NOW)
    (record,) = told(scene.group(NOW + 100, command("pause")))
    assert record["is_paused"]
    assert record["next_at"] is None
    assert asked(scene.group(NOW + 10_000)) == []
    (record,) = told(scene.group(NOW + 11_000, command("resume", 2)))
    assert record["next_at"] == NOW + 12_000
    assert asked(scene.group(NOW + 12_000)) == [tick_id(12_000)]
    (record,) = told(scene.group(NOW + 12_100, command("resume", 3)))
    assert record["refused"] == "it is not paused"


@pytest.mark.parametrize("word", ["pause", "set", "announced"])
def test_what_was_due_before_a_change_is_dealt_with(word: str) -> None:
    """The first group after a down-time has a command, or another plan of the workers."""
    scene = Clockwork(every_ms=2_000)
    scene.group(NOW)
    scene.restore(NOW + 9_000)
    given = []
    if word == "announced":
        scene.announce("w", x=scene.spec(every_ms=MINUTE))
    else:
        plan = {"spec": {"type": "t", "every_ms": MINUTE}} if word == "set" else {}
        given = [command(word, 1, "x", **plan)]
    out = scene.group(NOW + 9_000, *given)
    assert asked(out) == [tick_id(6_000), tick_id(8_000)]
    assert skipped(out) == [(tick_id(6_000), "missed")]
    assert asked(scene.group(NOW + 12_000)) == []


def test_run_now_waits_for_a_tick_that_runs() -> None:
    scene = Clockwork(every_ms=2_000)
    scene.group(NOW)
    scene.group(NOW + 2_000)
    out = scene.group(NOW + 2_500, command("run", at=NOW + 2_500))
    assert asked(out) == [tick_id(2_500) + "!c1"]
    assert skipped(out) == []
    scene.end(tick_id(2_000), NOW + 2_600)
    assert scene.in_flight() == [(USER, tick_id(2_500) + "!c1")]


def test_a_command_that_comes_again_does_nothing() -> None:
    scene = Clockwork(every_ms=60_000)
    scene.group(NOW)
    scene.group(NOW + 100, command("run"))
    assert asked(scene.group(NOW + 200, command("run"))) == []


def test_backfill_of_a_range() -> None:
    scene = Clockwork(every_ms=2_000, overlap="allow")
    scene.group(NOW)
    scene.restore(NOW + 100_000)
    scene.group(NOW + 100_000)
    out = scene.group(NOW + 100_100, command("backfill", since=NOW + 2_000, until=NOW + 8_000))
    assert asked(out) == [f"{tick_id(at)}!c1" for at in (4_000, 6_000, 8_000)]
    (record,) = told(out)
    assert record["change"] == "backfill of 3"
    assert asked(scene.group(NOW + 102_000)) == [tick_id(102_000)]


@pytest.mark.parametrize(
    ("since", "until", "said"),
    [(0, 3_000_000, "more than 1000"), (10_000, 5_000, "since must be before"),
     (2_000, 3_000, "no tick"), (0, 10**9, "must be past")],
)
def test_a_backfill_that_cannot_be(since: int, until: int, said: str) -> None:
    scene = Clockwork(every_ms=2_000, overlap="allow", catch_up="none")
    scene.group(NOW)
    scene.group(NOW + 3_000_100)
    out = scene.group(
        NOW + 3_000_200, command("backfill", since=NOW + since, until=NOW + until)
    )
    assert asked(out) == []
    assert said in told(out)[-1]["refused"]


@pytest.mark.parametrize(
    ("word", "fields"),
    [
        ("pause", {}), ("run", {}), ("set", {}), ("set", {"spec": {"type": "t"}}),
        ("set", {"spec": {"type": "t", "cron": "61 * * * *"}}),
        ("set", {"spec": {"type": "t", "cron": "* * * * *", "zone": "Mars/Base"}}),
        ("set", {"spec": {"type": "t", "every_ms": 10}}),
        ("explode", {}),
    ],
)
def test_what_cannot_be_is_a_dead_letter(word: str, fields: dict[str, Any]) -> None:
    scene = Clockwork()
    scene.group(NOW)
    out = scene.group(NOW + 100, command(word, **fields))
    assert [topic for topic, *_ in out].count(TOPICS.dead) == 1
    assert scene.row is None
