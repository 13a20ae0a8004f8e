"""No input stops a partition: nothing escapes it, and what it writes keeps the contracts.

Hostile outcomes, requests, forwards and changing definitions, group after group, with aborts and
restores in between. Every record that comes out must be one that Kafka and the readers take.
"""

from __future__ import annotations

from itertools import count
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.property.hostile import DEFINITIONS, INPUTS, JOBS, TYPES, USERS, to_json
from tests.property.rig import START_MS, TOPICS, Input, Rig, observable, outcome_of, pack
from tidemill.schemas.batch_builder import OutRecord
from tidemill.schemas.events import CompletedJob, JobEvent
from tidemill.schemas.topics import DEAD_RECORD_BYTES, RECORD_BYTES
from tidemill.schemas.wire import ControlMessage, Definition, ReadyPack

EXAMPLES: Final = 150
# All groups together stay within the day for which ended jobs are remembered.
MOVES_MS: Final = (-(10**13), 0, 1, 1_000, 6_000, 31_000, 3_600_000)
DEEP: Final = "[" * 990 + "]" * 990

CONTRACTS: Final[dict[str, type[BaseModel]]] = {
    TOPICS.events: JobEvent, TOPICS.completed: CompletedJob, TOPICS.control: ControlMessage
}
Group = tuple[list[Input], list[Definition], int, str]
GROUPS: Final = st.lists(
    st.tuples(
        st.lists(INPUTS, min_size=1, max_size=4), st.lists(DEFINITIONS, max_size=2),
        st.sampled_from(MOVES_MS), st.sampled_from(("commit", "commit", "abort", "restore")),
    ),
    min_size=1, max_size=5,
)


def _rig_with_jobs() -> Rig:
    """Jobs of every type; those that may run are dispatched."""
    rig = Rig()
    rig.definitions = {name: Definition(schema_version=1, type=name) for name in TYPES[:4]}
    asked = [
        Input(
            TOPICS.requested,
            to_json({"type": TYPES[(i + j) % len(TYPES)], "user_id": user, "job_id": name}),
        )
        for i, user in enumerate(USERS)
        for j, name in enumerate(JOBS)
    ]
    rig.slots = 20
    rig.commit(rig.records(asked), START_MS)
    running = rig.in_flight()
    assert len(running) > 5
    started = [outcome_of(job, "started", started_at=START_MS) for job in running[::2]]
    rig.commit(rig.records([Input(TOPICS.outcomes, pack(started))]), START_MS + 1)
    return rig


def _keeps_contracts(out: list[OutRecord]) -> None:
    for topic, partition, key, value, headers in out:
        most = DEAD_RECORD_BYTES if topic == TOPICS.dead else RECORD_BYTES
        size = len(key or b"") + len(value or b"")
        assert size + sum(len(name) + len(text or b"") for name, text in headers or ()) < most
        assert partition >= 0
        if topic in CONTRACTS:
            CONTRACTS[topic].model_validate_json(value or b"", extra="forbid")
        elif topic.startswith(TOPICS.ready("")):
            ReadyPack.model_validate_json(value or b"")


def _from_a_place_of_its_own(given: Input, number: int) -> Input:
    """Ledgers forward a record once: no two forwards name the same origin."""
    headers = tuple(
        (name, value.replace(b"/7", b"/%d" % number) if value is not None else None)
        for name, value in given.headers
    )
    return Input(given.topic, given.value, headers)


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)
@given(groups=GROUPS)
def test_nothing_escapes_a_partition(groups: list[Group]) -> None:
    rig = _rig_with_jobs()
    now_ms = START_MS + 10
    forwards = count()
    for drawn, definitions, move_ms, fate in groups:
        now_ms += move_ms
        inputs = [_from_a_place_of_its_own(given, next(forwards)) for given in drawn]
        rig.definitions |= {definition.type: definition for definition in definitions}
        records = rig.records(inputs)
        out, _ = rig.decide(records, now_ms)
        _keeps_contracts(out)
        if fate == "abort":
            rig.engine.rollback()
            out, _ = rig.decide(records, now_ms)
        rig.engine.commit()
        rig.write(out)
        rig.check()
        assert rig.engine.state.applied.items() >= {
            topic: record.offset for topic, record in records
        }.items()
        if fate == "restore":
            rig.engine = rig.restored(now_ms)
    assert observable(rig.engine.state)["accepted"] >= len(rig.engine.state.jobs)


@pytest.mark.parametrize(
    "bent",
    [
        {"kind": []}, {"kind": {}}, {"kind": None}, {"kind": 1}, {"user_id": 1},
        {"job_id": None}, {"epoch": True}, {"epoch": "1"}, {"epoch": 1.0}, {"started_at": "x"},
        {"finished_at": 1.5}, {"retry_after_ms": "1"}, {"error": "text"}, {"children": {}},
    ],
)
def test_a_bad_outcome_is_buried_and_its_neighbours_go_on(bent: dict[str, Any]) -> None:
    rig = _rig_with_jobs()
    first, second = rig.in_flight()[:2]
    told = [outcome_of(first, "succeeded") | bent, outcome_of(second, "succeeded")]
    out, _ = rig.decide(rig.records([Input(TOPICS.outcomes, pack(told))]), START_MS + 2)
    (letter,) = [record for record in out if record[0] == TOPICS.dead]
    headers = dict(letter[4] or ())
    assert headers["tidemill.dead.stage"] == b"outcome"
    assert headers["tidemill.dead.error.code"] == b"INVALID_FIELD"
    rig.engine.commit()
    rig.write(out)
    rig.check()
    assert first.key in rig.engine.state.jobs
    assert second.key not in rig.engine.state.jobs


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("result", DEEP), ("result", '"' + "x" * 800_000 + '"'), ("progress", DEEP),
        ("reason", DEEP), ("reason", '"' + "x" * 1_900_000 + '"'), ("error", f'{{"code":{DEEP}}}'),
        ("error", '{"message":"%s"}' % ("x" * 1_900_000)), ("children", f"[{DEEP}]"),
        ("children", f'[{{"type":"plain","payload":{{"x":{DEEP}}}}}]'),
        ("children", '[{"type":"plain","payload":{"x":"%s"}}]' % ("x" * 1_900_000)),
        ("children", '[{"type":"plain","job_id":null},{"type":"plain","job_id":null}]'),
    ],
)
@pytest.mark.parametrize("kind", ["progressed", "succeeded", "failed", "skipped", "returned"])
def test_an_outsized_part_of_an_outcome_becomes_one_within_bounds(
    kind: str, name: str, text: str
) -> None:
    rig = _rig_with_jobs()
    job = next(job for job in rig.in_flight() if job.started_at is not None)
    value = pack([outcome_of(job, kind)]).replace(b'"kind":', b'"%b":%b,"kind":' % (
        name.encode(), text.encode()
    ))
    out, _ = rig.decide(rig.records([Input(TOPICS.outcomes, value)]), START_MS + 2)
    _keeps_contracts(out)
    rig.engine.commit()
    written = rig.write(out)
    rig.check()
    assert any(event["job_id"] == job.spec.job_id for event in written)


def test_numbers_that_grow_when_written_out_are_refused() -> None:
    rig = _rig_with_jobs()
    numbers = b"[" + b",".join([b"1e15"] * 180_000) + b"]"
    value = b'{"type":"plain","user_id":"u","job_id":"grown","payload":{"x":%b}}' % numbers
    out, _ = rig.decide(rig.records([Input(TOPICS.requested, value)]), START_MS + 2)
    _keeps_contracts(out)
    codes = {dict(headers or ()).get("tidemill.dead.error.code") for *_, headers in out}
    assert b"REQUEST_TOO_LARGE" in codes


def test_a_worker_that_is_gone_is_told_from_one_not_heard_yet() -> None:
    """A new owner may decide before it has read a heartbeat: nothing is rescued in error."""
    rig = _rig_with_jobs()
    rig.engine = rig.restored(START_MS + 20_000)
    rig.alive = {}
    assert rig.commit([], START_MS + 20_001) == []
    assert rig.commit([], START_MS + 29_999) == []
    running = {job.key for job in rig.in_flight() if job.started_at is not None}
    events = rig.commit([], START_MS + 31_000)
    rescued = [event for event in events if event["event"] == "rescued"]
    assert {(event["user_id"], event["job_id"]) for event in rescued} == running
    assert {event["reason"] for event in rescued} == {"worker_lost"}
