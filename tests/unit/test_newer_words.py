"""Roles of two versions in one installation: what is new in a record silences nobody."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from types import SimpleNamespace
from typing import Any, Final

import orjson
import pytest
from pydantic import BaseModel, ValidationError

import tidemill.agents
import tidemill.schemas
import tidemill.streams
from tidemill.agents.api.schedules import Range, Settings
from tidemill.agents.ledger.clock import LedgerClock
from tidemill.agents.ledger.workers import WorkerBook, WorkerReader
from tidemill.doctor import workers
from tidemill.schemas import events, wire
from tidemill.schemas.requests import Command, JobRequest, SignalCommand
from tidemill.schemas.schedules import ScheduleCommand
from tidemill.schemas.topics import Topics

TOPICS = Topics()
#: What people and their programs write: a misspelt field is theirs to mend, and nothing is lost.
STRICT: Final = {JobRequest, Command, SignalCommand, ScheduleCommand, Settings, Range}
SLOTS = {"slots": 4, "free": 4}
BEAT: dict[str, Any] = {
    "schema_version": 1, "worker_id": "w", "incarnation": 7, "at": 1, "types": ["t"], "running": 0,
    "queues": {"default": {"kinds": {"async": SLOTS}, "partitions": [0, 1]}},
}
JOB: dict[str, Any] = {
    "user_id": "u", "job_id": "j", "type": "t", "run": 1, "attempt": 1, "max_attempts": 3,
    "epoch": 1, "timeout_ms": 1, "requested_at": 1, "dispatched_at": 2, "payload": {},
}
OUTCOME: dict[str, Any] = {
    "kind": "succeeded", "user_id": "u", "job_id": "j", "run": 1, "attempt": 1, "epoch": 1,
}
RECORDS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (wire.Heartbeat, BEAT),
    (wire.ReadyJob, JOB),
    (wire.ReadyPack,
     {"schema_version": 1, "ledger_partition": 0, "queue": "default", "jobs": [JOB],
      "parted": {"type": "t", "parts": 2}}),
    (wire.ReadyPack,
     {"schema_version": 1, "ledger_partition": 0, "queue": "default", "jobs": [],
      "part": {"user_id": "u", "job_id": "j", "run": 1, "epoch": 1, "number": 0, "parts": 2,
               "entries": [["s", "step", 1]]}}),
    (wire.Outcome, OUTCOME),
    (wire.OutcomePack,
     {"schema_version": 1, "worker_id": "w", "incarnation": 7, "outcomes": [OUTCOME]}),
    (wire.ControlMessage, {"schema_version": 1, "word": "cancel", "user_id": "u", "job_id": "j",
                        "run": 1, "epoch": 1}),
    (wire.Definition, {"schema_version": 1, "type": "t", "backoff": {"base_ms": 5},
                       "limits": [{"limit": 1, "window_ms": 1, "over": "skip"}]}),
    (events.JobEvent, {
        "schema_version": 1, "event_id": "e", "event": "attempt_failed", "job_id": "j",
        "user_id": "u", "type": "t", "queue": "q", "priority": "low", "incarnation": 1, "run": 1,
        "sequence": 3, "attempt": 1, "epoch": 1, "occurred_at": "2025-11-24T16:00:00.000Z",
        "state_before": "running", "state_after": "retrying", "reason": None, "worker_id": "w",
        "error": {"code": "E", "message": "m", "retryable": True}, "due_at": None, "wait_ms": 1,
        "run_ms": 1, "cause": {"topic": "t", "partition": 0, "offset": 1}, "data": None,
    }),
    (events.CompletedJob, {
        "job_id": "j", "user_id": "u", "type": "t", "queue": "q", "status": "failed",
        "reason": None, "result": None, "attempts": 1, "run": 1, "sequence": 3, "wait_ms": 1,
        "error": {"code": "E", "message": "m", "retryable": False}, "run_ms": 1,
        "requested_at": "x", "started_at": None, "finished_at": "x", "schema_version": 1,
    }),
]


def models() -> set[type[BaseModel]]:
    """Every model that stands in a module of ours below the public face, settings left out."""
    found: set[type[BaseModel]] = set()
    for package in (tidemill.schemas, tidemill.streams, tidemill.agents):
        for each in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "__main__" in each.name:
                continue
            for value in vars(importlib.import_module(each.name)).values():
                if isinstance(value, type) and issubclass(value, BaseModel):
                    found.add(value)
    return {one for one in found if one.__module__.startswith("tidemill.") and not _is_setting(one)}


def _is_setting(model: type[BaseModel]) -> bool:
    return model.__module__ == "tidemill.agents.settings"


def parts_of(model: type[BaseModel]) -> set[type[BaseModel]]:
    """The model and those inside of it."""
    inner = {
        part
        for field in model.model_fields.values()
        for part in models()
        if part.__name__ in str(field.annotation)
    }
    return {model}.union(*map(parts_of, inner - {model}))


def strict_ones(found: set[type[BaseModel]]) -> set[type[BaseModel]]:
    return {one for one in found if one.model_config.get("extra", "ignore") != "ignore"}


def test_only_what_people_write_is_refused_for_a_field_that_is_not_known() -> None:
    assert strict_ones(models()) == STRICT


def test_a_model_that_refuses_new_fields_is_caught() -> None:
    class Told(wire.Heartbeat, extra="forbid"): ...

    assert strict_ones({wire.Heartbeat, Told}) == {Told}


def test_every_model_between_roles_is_tried_here() -> None:
    """A new one needs a record in RECORDS."""
    between = {one for one in models() if one.__module__ in (wire.__name__, events.__name__)}
    assert len(between) > 10
    assert between == set().union(*(parts_of(model) for model, _ in RECORDS))


def renewed(value: Any) -> Any:
    """The record with a field that nobody knows in each of its objects."""
    if isinstance(value, list):
        return [renewed(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {name: renewed(one) for name, one in value.items()} | {"new_in_2030": {"a": [1]}}


@pytest.mark.parametrize(("model", "record"), RECORDS, ids=[one.__name__ for one, _ in RECORDS])
def test_a_field_that_is_new_is_passed_over(
    model: type[BaseModel], record: dict[str, Any]
) -> None:
    new = renewed(record)
    if model in (wire.ReadyJob, wire.ReadyPack):
        # A payload is the user's, whatever is in it.
        new = record | {"new_in_2030": 1}
    if model is wire.Heartbeat:
        new["queues"].pop("new_in_2030")  # a queue's name, not a field
    found = model.model_validate_json(orjson.dumps(new))
    assert found == model.model_validate(record)


def test_a_kind_of_handler_that_is_new_leaves_the_others() -> None:
    kinds = {"async": SLOTS, "subinterpreter": {"slots": 9, "free": 9, "pinned": True}}
    queues = {"default": {"kinds": kinds, "partitions": [0]}}
    beat = wire.Heartbeat.model_validate_json(orjson.dumps(BEAT | {"queues": queues}))
    assert list(beat.queues["default"].kinds) == ["async"]


def reader() -> tuple[WorkerReader, WorkerBook]:
    book = WorkerBook(LedgerClock())
    return WorkerReader("nowhere:9092", TOPICS, book, lambda: None), book


def message(topic: str, key: bytes, value: bytes) -> Any:
    return SimpleNamespace(
        error=lambda: None, topic=lambda: topic, partition=lambda: 0, offset=lambda: 5,
        key=lambda: key, value=lambda: value,
    )


@pytest.mark.parametrize(
    "broken", [{"at": "noon"}, {"queues": []}, {"worker_id": None}, {"types": [{}]}]
)
def test_what_cannot_be_read_is_counted_named_and_told_once(
    caplog: pytest.LogCaptureFixture, broken: dict[str, Any]
) -> None:
    ours, book = reader()
    value = orjson.dumps(BEAT | broken)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            assert not ours._note(message(TOPICS.heartbeats, b"loud-worker", value))
        assert ours._note(message(TOPICS.heartbeats, b"w", orjson.dumps(renewed_beat())))
    assert book.unreadable_total == 5
    assert list(book.alive()) == ["w"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "loud-worker" in line
    assert next(iter(broken)) in line
    said = workers._Said({}, {})
    workers._note(said, b"loud-worker", value)
    assert list(said.unreadable) == ["loud-worker"]
    assert next(iter(broken)) in said.unreadable["loud-worker"]


def renewed_beat() -> dict[str, Any]:
    return BEAT | {"battery": 0.5}


def test_a_limit_that_is_not_understood_is_not_left_out() -> None:
    with pytest.raises(ValidationError):
        wire.Definition.model_validate(
            {"schema_version": 1, "type": "t",
             "limits": [{"limit": 1, "window_ms": 1, "over": "queue"}]}
        )
