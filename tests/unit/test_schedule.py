"""Who is next and when: timers, gates of delayed limits, order through a rebuild, what is lost."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.property.rig import START_MS, TOPICS, WORKER, Input, Rig, outcome_of, pack
from tests.unit.core_kit import DEFAULT, HELD, NOW, after, arranged, defer, define, job_in, submit
from tidemill.schemas.wire import Definition, LimitSpec
from tidemill.schemas.words import State
from tidemill.streams.absences import UNKNOWN_TYPE_WAIT_MS
from tidemill.streams.commands import Dispatch, Resolve
from tidemill.streams.dispatch.schedule import Schedule
from tidemill.streams.intake import derived_job_id
from tidemill.streams.job import UNKNOWN_TYPE
from tidemill.streams.job_type import JobType
from tidemill.streams.partition import FORGET_EVERY_MS, Capacity, Partition
from tidemill.streams.partitioner import partition_of
from tidemill.streams.policies.rescue import DISPATCH_LOST_MS
from tidemill.streams.store.jobs import DEDUPE_RETENTION_MS
from tidemill.streams.store.state import PartitionState

WINDOW_MS = 10_000


def ask(job_id: str, type: str = "t", **fields: Any) -> Input:
    body = {"type": type, "user_id": "u", "job_id": job_id, **fields}
    return Input(TOPICS.requested, orjson.dumps(body))


def rig_with(**facts: Any) -> Rig:
    rig = Rig()
    rig.definitions = {"t": define(**facts)}
    return rig


def done(rig: Rig) -> list[Input]:
    """Everything that is out succeeds."""
    return [Input(TOPICS.outcomes, pack([outcome_of(j, "succeeded")])) for j in rig.in_flight()]


def dispatched(events: list[dict[str, Any]]) -> list[str]:
    return [event["job_id"] for event in events if event["event"] == "dispatched"]


# --- the indices alone ---------------------------------------------------------------------------


def test_timers_fire_in_their_order_and_not_before() -> None:
    schedule = Schedule({})
    assert schedule.next_timer_at() is None
    for at_ms, name in ((30, "c"), (10, "a"), (20, "b"), (10, "a2")):
        schedule.set_due(at_ms, ("u", name))
    assert schedule.next_timer_at() == 10
    assert schedule.pop_due(9) is None
    fired = []
    while (due := schedule.pop_due(20)) is not None:
        fired.append(due[1][1])
    assert fired == ["a", "a2", "b"]
    assert schedule.next_timer_at() == 30


@pytest.mark.parametrize("state", State)
def test_each_state_has_its_place(state: State) -> None:
    job = job_in(state)
    assert job is not None
    schedule = Schedule({})
    schedule.place(None, job)
    assert (job.key in schedule.pool(DEFAULT).waiting) == (state is State.PENDING)
    in_flight = state in (State.DISPATCHED, State.RUNNING)
    assert (job.key in schedule.pool(DEFAULT).in_flight) == in_flight
    waits = state in (State.SCHEDULED, State.RETRYING, State.AWAITING)
    assert (schedule.next_timer_at() == job.due_at) == waits or job.due_at is None
    schedule.rebuild([job], NOW)
    assert (job.key in schedule.pool(DEFAULT).waiting) == (state is State.PENDING)


def test_deferred_jobs_wait_in_the_list_of_their_limit_or_for_their_type() -> None:
    held = after(None, submit(), defer(NOW + 7))
    unknown = after(None, submit(), around=arranged())
    schedule = Schedule({})
    schedule.rebuild([held, unknown], NOW + 100)
    assert list(schedule.wait_lists[HELD]) == [held.key]
    assert list(schedule.wait_lists[(UNKNOWN_TYPE, "t")]) == [unknown.key]
    assert schedule.next_timer_at() == NOW + 100  # the limit itself is asked at once
    assert not len(schedule.pool(DEFAULT).waiting)


def test_a_job_that_is_due_keeps_its_place_through_a_rebuild() -> None:
    waited = after(after(None, submit(), around=arranged()), Resolve(JobType(define())))
    schedule = Schedule({})
    schedule.rebuild([waited], NOW - 1)
    assert not len(schedule.pool(DEFAULT).waiting)
    schedule.rebuild([waited], NOW)
    assert list(schedule.pool(DEFAULT).waiting) == [waited.key]


def test_what_leaves_flight_leaves_its_index() -> None:
    out = after(None, submit(), Dispatch())
    schedule = Schedule({})
    schedule.place(None, out)
    ended = job_in(State.SUCCEEDED)
    assert ended is not None
    schedule.place(out, ended)
    assert not schedule.pool(DEFAULT).in_flight


# --- with the partition --------------------------------------------------------------------------


def test_a_delayed_limit_lets_the_next_in_at_the_window_s_end() -> None:
    rig = rig_with(limits=[{"limit": 2, "window_ms": WINDOW_MS, "over": "delay"}])
    first = rig.commit(rig.records([ask(str(n)) for n in range(5)]), START_MS)
    assert dispatched(first) == ["0", "1"]
    deferred = [event for event in first if event["event"] == "deferred"]
    assert [event["job_id"] for event in deferred] == ["2", "3", "4"]
    assert {event["reason"] for event in deferred} == {"rate_limited"}
    # What comes later does not overtake what waits.
    assert dispatched(rig.commit(rig.records([*done(rig), ask("5")]), START_MS + 1)) == []
    assert dispatched(rig.commit([], START_MS + WINDOW_MS - 1)) == []
    assert dispatched(rig.commit([], START_MS + WINDOW_MS)) == ["2", "3"]
    rig.commit(rig.records(done(rig)), START_MS + WINDOW_MS + 1)
    assert dispatched(rig.commit([], START_MS + 2 * WINDOW_MS)) == ["4", "5"]
    rig.check()


def test_a_limit_that_is_lifted_lets_all_in() -> None:
    rig = rig_with(limits=[{"limit": 1, "window_ms": WINDOW_MS, "over": "delay"}])
    rig.slots = 50
    rig.commit(rig.records([ask(str(n)) for n in range(5)]), START_MS)
    rig.definitions = {"t": define()}
    assert dispatched(rig.commit([], START_MS + WINDOW_MS)) == ["1", "2", "3", "4"]


def test_a_skip_limit_counts_who_was_let_in_before_they_start() -> None:
    rig = rig_with(limits=[{"limit": 2, "window_ms": WINDOW_MS, "over": "skip"}])
    rig.slots = 0
    events = rig.commit(rig.records([ask(str(n)) for n in range(3)]), START_MS)
    assert [event["job_id"] for event in events if event["event"] == "skipped"] == ["2"]
    cancel = Input(TOPICS.commands, b'{"command":"cancel","user_id":"u","job_id":"0"}')
    events = rig.commit(rig.records([cancel, ask("3"), ask("4")]), START_MS + 1)
    assert [event["job_id"] for event in events if event["event"] == "skipped"] == ["4"]


def test_an_unknown_type_waits_and_keeps_its_place_when_it_comes() -> None:
    rig = Rig()
    rig.commit(rig.records([ask("0"), ask("1")]), START_MS)
    rig.definitions = {"t": define()}
    events = rig.commit(rig.records([ask("2")]), START_MS + 1)
    assert dispatched(events) == ["0", "1", "2"]


def test_an_unknown_type_fails_in_the_end_and_may_run_once_it_is_known() -> None:
    rig = Rig()
    rig.commit(rig.records([ask("0", queue="side")]), START_MS)
    assert rig.commit([], START_MS + UNKNOWN_TYPE_WAIT_MS - 1) == []
    (failed,) = rig.commit([], START_MS + UNKNOWN_TYPE_WAIT_MS)
    assert failed["error"]["code"] == "UNKNOWN_TYPE"
    rig.definitions = {"t": define()}
    redrive = Input(TOPICS.commands, b'{"command":"redrive","user_id":"u","job_id":"0"}')
    events = rig.commit(rig.records([redrive]), START_MS + UNKNOWN_TYPE_WAIT_MS + 1)
    assert [event["event"] for event in events] == [
        "redriven", "deferred", "scheduled", "dispatched"
    ]
    assert rig.engine.state.jobs[("u", "0")].spec.max_attempts == 3


def test_an_expiry_ends_what_waits_and_spares_what_runs() -> None:
    rig = rig_with()
    rig.slots = 1
    expires_at = START_MS + 1_000
    rig.commit(rig.records([ask(str(n), expires_at=expires_at) for n in range(4)]), START_MS)
    assert len(rig.in_flight()) == 2  # twice the slots
    events = rig.commit([], expires_at)
    assert [event["event"] for event in events] == ["expired", "expired"]
    assert len(rig.in_flight()) == 2


def test_a_retry_waits_for_its_instant() -> None:
    rig = rig_with()
    rig.commit(rig.records([ask("0")]), START_MS)
    (job,) = rig.in_flight()
    failed = pack([outcome_of(job, "failed", retry_after_ms=700)])
    rig.commit(rig.records([Input(TOPICS.outcomes, failed)]), START_MS + 1)
    assert rig.engine.next_tick_at() == START_MS + 701
    assert dispatched(rig.commit([], START_MS + 700)) == []
    assert dispatched(rig.commit([], START_MS + 701)) == ["0"]


def test_a_dispatch_that_reached_nobody_is_rescued_only_while_workers_live() -> None:
    rig = rig_with()
    rig.commit(rig.records([ask("0")]), START_MS)
    rig.alive = {}
    assert rig.commit([], START_MS + 2 * DISPATCH_LOST_MS) == []
    rig.alive = {WORKER: 1}
    events = rig.commit([], START_MS + 2 * DISPATCH_LOST_MS + 1_000)
    assert [event["event"] for event in events] == ["rescued", "dispatched"]
    assert events[0]["reason"] == "dispatch_lost"


def test_a_worker_that_came_back_anew_has_lost_its_attempts() -> None:
    rig = rig_with()
    rig.commit(rig.records([ask("0")]), START_MS)
    (job,) = rig.in_flight()
    started = pack([outcome_of(job, "started")])
    rig.commit(rig.records([Input(TOPICS.outcomes, started)]), START_MS + 1)
    assert rig.commit([], START_MS + 2_000) == []
    rig.alive = {WORKER: 2}
    events = rig.commit([], START_MS + 4_000)
    assert (events[0]["event"], events[0]["reason"]) == ("rescued", "worker_restarted")


def test_a_job_given_back_goes_before_those_that_came_later() -> None:
    rig = rig_with()
    rig.slots = 1
    rig.commit(rig.records([ask(str(n)) for n in range(4)]), START_MS)
    first, _ = rig.in_flight()
    back = pack([outcome_of(first, "returned", reason="worker_stopping")])
    events = rig.commit(rig.records([Input(TOPICS.outcomes, back)]), START_MS + 1)
    assert dispatched(events) == ["0"]


def test_workers_without_partitions_get_nothing() -> None:
    engine = Partition(0, 1, TOPICS, PartitionState())
    engine.restored(START_MS)
    engine.begin(START_MS)
    engine.set_capacity({DEFAULT: Capacity(4, 4, 1, ())})
    engine.define(define())
    rig = Rig()
    for topic, record in rig.records([ask("0")]):
        engine.take(topic, 0, record)
    engine.tick()
    assert not [topic for topic, *_ in engine.seal() if topic == TOPICS.ready("default")]
    assert engine.state.jobs[("u", "0")].state is State.PENDING


# --- where things belong -------------------------------------------------------------------------


def elsewhere() -> Partition:
    """A partition that is not the home of user u."""
    number = 1 - partition_of("u", 2)
    engine = Partition(number, 2, TOPICS, PartitionState())
    engine.restored(START_MS)
    engine.begin(START_MS)
    return engine


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (ask("0"), b"request"),
        (ask("0", surprise=1), b"request"),
        (Input(TOPICS.commands, b'{"command":"cancel","user_id":"u","job_id":"0"}'), b"command"),
    ],
)
def test_what_belongs_elsewhere_is_forwarded_as_it_was(given: Input, kind: bytes) -> None:
    engine = elsewhere()
    ((topic, record),) = Rig().records([given])
    engine.take(topic, engine.number, record)
    engine.tick()
    forward, position = engine.seal()
    assert forward[:4] == (TOPICS.internal, 1 - engine.number, record.key, record.value)
    headers = dict(forward[4] or ())
    assert headers["tidemill-kind"] == kind
    assert headers["tidemill-origin"] == f"{topic}/{engine.number}/{record.offset}".encode()
    assert position[0] == TOPICS.state
    engine.commit()
    home = Partition(1 - engine.number, 2, TOPICS, PartitionState())
    home.restored(START_MS)
    home.begin(START_MS)
    moved = Input(TOPICS.internal, forward[3], tuple(forward[4] or ()))
    for internal, again in Rig().records([moved]):
        home.take(internal, home.number, again)
    assert TOPICS.internal not in {out[0] for out in home.seal()}


def test_a_job_without_an_id_is_named_after_its_first_place() -> None:
    assert derived_job_id(("jobs.requested", 3, 14)) == "jobs.requested-3-14"


def test_children_are_born_with_the_outcome_here_and_elsewhere() -> None:
    home = partition_of("u", 2)
    other = next(name for name in "abcdef" if partition_of(name, 2) != home)
    engine = Partition(home, 2, TOPICS, PartitionState())
    engine.restored(START_MS)
    engine.begin(START_MS)
    engine.set_capacity({DEFAULT: Capacity(4, 4, 1, (0,))})
    engine.define(define())
    rig = Rig()
    traced = Input(TOPICS.requested, ask("0").value, (("traceparent", b"00-trace"),))
    for topic, record in rig.records([traced]):
        engine.take(topic, home, record)
    engine.tick()
    engine.commit()
    engine.begin(START_MS + 1)
    children: list[Any] = [
        {"type": "t", "payload": {"n": 1}}, {"type": "t", "user_id": other},
        {"type": "t", "surprise": 1}, "no request",
    ]
    job = engine.state.jobs[("u", "0")]
    told = pack([outcome_of(job, "succeeded", children=children)])
    for topic, record in rig.records([Input(TOPICS.outcomes, told)]):
        engine.take(topic, home, record)
    out = engine.seal()
    born = engine.state.jobs[("u", "0.1.0")]
    assert (born.spec.parent_job_id, born.spec.traceparent) == ("0", "00-trace")
    assert engine.state.jobs[("u", "0.1.2")].state is State.FAILED
    (forward,) = [record for record in out if record[0] == TOPICS.internal]
    body = orjson.loads(forward[3] or b"")
    assert (body["user_id"], body["job_id"], body["parent_job_id"]) == (other, "0.1.1", "0")
    assert ("traceparent", b"00-trace") in (forward[4] or ())
    letters = [dict(record[4] or ()) for record in out if record[0] == TOPICS.dead]
    assert [letter["tidemill.dead.error.code"] for letter in letters] == [
        b"UNKNOWN_FIELD", b"NOT_AN_OBJECT"
    ]


@pytest.mark.parametrize(
    ("value", "stage", "code"),
    [
        (b'{"command":"redrive","user_id":"u","job_id":"nobody"}', b"command", b"UNKNOWN_JOB"),
        (b'{"command":"dance","user_id":"u","job_id":"0"}', b"command", b"INVALID_FIELD"),
        (None, b"command", b"EMPTY_RECORD"),
    ],
)
def test_commands_that_cannot_be_done(value: bytes | None, stage: bytes, code: bytes) -> None:
    rig = rig_with()
    out, _ = rig.decide(rig.records([Input(TOPICS.commands, value)]), START_MS)
    (letter,) = [dict(record[4] or ()) for record in out if record[0] == TOPICS.dead]
    assert (letter["tidemill.dead.stage"], letter["tidemill.dead.error.code"]) == (stage, code)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"x", b"UNDECODABLE"), (None, b"UNDECODABLE"), (b"[]", b"NOT_AN_OBJECT"),
        (b'{"outcomes":1}', b"NOT_AN_OBJECT"),
        (b'{"outcomes":[],"schema_version":2}', b"UNKNOWN_VERSION"),
        (b'{"outcomes":[],"schema_version":1}', b"MISSING_FIELD"),
        (b'{"outcomes":[],"schema_version":1,"worker_id":"w","incarnation":true}',
         b"MISSING_FIELD"),
    ],
)
def test_outcome_records_that_cannot_be_read(value: bytes | None, code: bytes) -> None:
    rig = rig_with()
    out, _ = rig.decide(rig.records([Input(TOPICS.outcomes, value)]), START_MS)
    (letter,) = [dict(record[4] or ()) for record in out if record[0] == TOPICS.dead]
    assert letter["tidemill.dead.error.code"] == code


def test_a_command_about_an_ended_job_is_answered() -> None:
    rig = rig_with()
    rig.commit(rig.records([ask("0")]), START_MS)
    rig.commit(rig.records(done(rig)), START_MS + 1)
    for command in ("cancel", "redrive"):
        body = orjson.dumps({"command": command, "user_id": "u", "job_id": "0"})
        (event,) = rig.commit(rig.records([Input(TOPICS.commands, body)]), START_MS + 2)
        assert (event["event"], event["reason"]) == ("command_refused", "already_ended")


def test_a_queue_of_its_own_and_definitions_that_change() -> None:
    rig = rig_with()
    rig.commit(rig.records([ask("0", queue="side")]), START_MS)
    (job,) = rig.in_flight()
    assert job.spec.queue == "side"
    rig.definitions = {
        "t": Definition(
            schema_version=1, type="t", queue="side",
            limits=(LimitSpec(limit=1, window_ms=1, over="delay"),),
        )
    }
    events = rig.commit(rig.records([ask("1")]), START_MS + 1)
    assert dispatched(events) == ["1"]
    assert rig.engine.state.jobs[("u", "1")].spec.queue == "side"


def test_an_id_may_be_used_again_once_it_is_forgotten() -> None:
    rig = rig_with()
    rig.commit(rig.records([ask("0")]), START_MS)
    rig.commit(rig.records(done(rig)), START_MS + 1)
    later = START_MS + FORGET_EVERY_MS + DEDUPE_RETENTION_MS
    engine = rig.engine
    for now_ms, expected in ((later - FORGET_EVERY_MS, "duplicate_ignored"), (later, "requested")):
        engine.begin(now_ms)
        engine.tick()
        engine.commit()
        engine.begin(now_ms)
        for topic, record in rig.records([ask("0")]):
            engine.take(topic, 0, record)
        events = [
            orjson.loads(value or b"") for topic, _, _, value, _ in engine.seal()
            if topic == TOPICS.events
        ]
        engine.commit()
        assert events[0]["event"] == expected
    assert (events[0]["sequence"], events[0]["incarnation"]) == (1, later)
