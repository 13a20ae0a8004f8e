"""What is checked is what travels: every door refuses what the ledger would, and names the field.

Each row is tried through the client's request, the handler's `ctx.enqueue` and the function behind
HTTP and the command line; what passes is read back with the ledger's own reader.
"""

from __future__ import annotations

import datetime
import decimal
from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from tidemill.agents.worker.context import Context, Signal, children_of
from tidemill.requests import InvalidRequest, Request, encode
from tidemill.schemas.codec import DEPTH_MAX, Decoded, decode_command, decode_request
from tidemill.schemas.doors import Refused, encode_command, encode_request
from tidemill.schemas.requests import (
    ID_LENGTH_MAX,
    QUEUE_LENGTH_MAX,
    REQUEST_BYTES_MAX,
    RESULT_BYTES_MAX,
    TAG_LENGTH_MAX,
    TAGS_MAX,
    TYPE_LENGTH_MAX,
    Command,
)

JOB = {"user_id": "u", "job_id": "j", "type": "t", "run": 1, "attempt": 1, "max_attempts": 3}
BASE: dict[str, Any] = {"type": "t", "user_id": "u", "job_id": "j"}
UTC = datetime.UTC
NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=UTC)


class Word(StrEnum):
    HIGH = "high"


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def holds_itself() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["me"] = value
    return value


def by_client(body: dict[str, Any]) -> bytes:
    return encode(Request(**{k: v for k, v in body.items() if k != "job_id"}), body["job_id"])


def by_handler(body: dict[str, Any]) -> bytes:
    ctx = Context(JOB, Signal(), lambda told: None)
    ctx.enqueue(**body)
    children = children_of(ctx)
    assert children is not None
    return orjson.dumps(children[0])


DOORS: list[Callable[[dict[str, Any]], bytes]] = [encode_request, by_client, by_handler]

WRONG: list[tuple[str, Any]] = [
    ("type", ""), ("type", "a b"), ("type", "x" * (TYPE_LENGTH_MAX + 1)), ("type", 5),
    ("type", "a\n"), ("user_id", ""), ("user_id", "u" * (ID_LENGTH_MAX + 1)), ("user_id", 7),
    ("user_id", "a\x00"), ("user_id", "\ud800"), ("user_id", b"u"),
    ("job_id", ""), ("job_id", "j" * (ID_LENGTH_MAX + 1)), ("job_id", 7), ("job_id", "a\nb"),
    ("queue", ""), ("queue", "a/b"), ("queue", "q" * (QUEUE_LENGTH_MAX + 1)), ("queue", "ä"),
    ("priority", "urgent"), ("priority", 1), ("priority", "HIGH"),
    ("run_at", NOON.replace(tzinfo=None)), ("run_at", "2026-01-01T12:00:00"), ("run_at", "soon"),
    ("run_at", NOON.date()), ("run_at", 1.5), ("run_at", True), ("run_at", -1),
    ("run_at", 2**62), ("run_at", NOON.replace(year=2500)), ("run_at", datetime.timedelta(1)),
    ("expires_at", NOON.replace(tzinfo=None)), ("expires_at", "1969-12-31T23:59:59Z"),
    ("unique_key", ""), ("unique_key", "k" * (ID_LENGTH_MAX + 1)), ("unique_key", 5),
    ("max_attempts", 0), ("max_attempts", -1), ("max_attempts", 101), ("max_attempts", 1.5),
    ("max_attempts", True), ("max_attempts", "3"), ("max_attempts", 2**70),
    ("timeout_seconds", 0), ("timeout_seconds", -5), ("timeout_seconds", float("nan")),
    ("timeout_seconds", float("inf")), ("timeout_seconds", 1e9), ("timeout_seconds", "soon"),
    ("timeout_seconds", datetime.timedelta(1)), ("timeout_seconds", decimal.Decimal(1)),
    ("tags", "one"), ("tags", ["x" * (TAG_LENGTH_MAX + 1)]), ("tags", [""]), ("tags", [5]),
    ("tags", ["t"] * (TAGS_MAX + 1)), ("tags", {"a": 1}), ("tags", [float("nan")]),
    ("batch_id", ""), ("batch_id", 5), ("batch_id", "b" * (ID_LENGTH_MAX + 1)),
    ("payload", {"x": float("nan")}), ("payload", {"x": [{"y": float("-inf")}]}),
    ("payload", {"x": 2**64}), ("payload", {"x": -(2**63) - 1}), ("payload", {"x": {1, 2}}),
    ("payload", {"x": b"bytes"}), ("payload", {"x": decimal.Decimal("1.5")}),
    ("payload", {"x": object()}), ("payload", {1: "number as key"}), ("payload", {"x": "\udfff"}),
    ("payload", {"\ud800": 1}), ("payload", {"x": "y" * REQUEST_BYTES_MAX}),
    ("payload", nested(DEPTH_MAX + 1)), ("payload", holds_itself()), ("payload", [1]),
    ("payload", "text"), ("payload", 5),
]


def shown(value: Any) -> str:
    return ascii(value)[:40] if type(value) is not dict else ascii(list(value))


@pytest.mark.parametrize("door", DOORS, ids=lambda door: str(door.__name__))
@pytest.mark.parametrize(("field", "value"), WRONG, ids=shown)
def test_what_the_ledger_would_refuse_is_refused_at_the_door(
    field: str, value: Any, door: Callable[[dict[str, Any]], bytes]
) -> None:
    with pytest.raises(ValueError, match=f"field '{field}[.']"):
        door(BASE | {field: value})


RIGHT: list[tuple[str, Any]] = [
    ("type", "mail.send"), ("user_id", "ä" * ID_LENGTH_MAX), ("job_id", "j" * ID_LENGTH_MAX),
    ("queue", "a.b-c_d"), ("priority", "low"), ("priority", Word.HIGH), ("run_at", NOON),
    ("run_at", "2026-01-01T12:00:00+02:00"), ("run_at", 1_767_268_800_000),
    ("expires_at", NOON.astimezone(datetime.timezone(datetime.timedelta(hours=5, minutes=45)))),
    ("run_at", NOON.astimezone(datetime.timezone(datetime.timedelta(seconds=3_630)))),
    ("max_attempts", 100), ("timeout_seconds", 0.5), ("timeout_seconds", 86_400),
    ("tags", ["a", "b"]), ("tags", ("a",)), ("tags", {"a"}), ("tags", []), ("tags", ["a"] * 32),
    ("payload", {"x": 2**64 - 1}), ("payload", {"x": [None, True, 1.5, "ü", -(2**63)]}),
    ("payload", nested(DEPTH_MAX - 1)), ("payload", OrderedDict(a=1)), ("payload", None),
    ("payload", MappingProxyType({"a": MappingProxyType({"b": 1})})), ("payload", {"n": None}),
    ("payload", {"x": "y" * (RESULT_BYTES_MAX - 500)}), ("payload", {"at": NOON}),
]


@pytest.mark.parametrize("door", DOORS, ids=lambda door: str(door.__name__))
@pytest.mark.parametrize(("field", "value"), RIGHT, ids=shown)
def test_what_passes_a_door_is_what_the_ledger_reads(
    field: str, value: Any, door: Callable[[dict[str, Any]], bytes]
) -> None:
    decoded = decode_request(door(BASE | {field: value}), ())
    assert isinstance(decoded, Decoded)
    read = getattr(decoded.request, field)
    names = ("type", "user_id", "job_id", "queue", "priority", "max_attempts")
    if isinstance(value, datetime.datetime) or field in names:
        assert read == value
    elif field == "tags":
        assert list(read) == list(value)


def test_an_empty_id_is_not_taken_for_none() -> None:
    with pytest.raises(InvalidRequest, match="job_id"):
        encode(Request(type="t", user_id="u", job_id=""), "")


def test_a_naive_instant_says_what_to_write() -> None:
    for door in DOORS:
        with pytest.raises(ValueError, match=r"datetime\.now\(UTC\)"):
            door(BASE | {"run_at": NOON.replace(tzinfo=None)})


def test_where_in_a_payload_something_is_wrong_is_said() -> None:
    with pytest.raises(Refused, match=r"payload\.a\.1\.price.*Decimal") as raised:
        encode_request(BASE | {"payload": {"a": [0, {"price": decimal.Decimal(1)}]}})
    assert raised.value.field == "payload"


class Big(BaseModel):
    text: str


def test_children_together_fit_the_outcome_that_carries_them() -> None:
    ctx = Context(JOB, Signal(), lambda told: None)
    half = Big(text="x" * (RESULT_BYTES_MAX // 2))
    ctx.enqueue("t", half)
    with pytest.raises(ValueError, match=r"field 'payload'.*bytes"):
        ctx.enqueue("t", half)
    ctx.enqueue("t", Big(text="small"))
    assert len(children_of(ctx) or ()) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("command", "stop"), ("user_id", ""), ("user_id", "u" * 257), ("job_id", 5),
        ("actor", "a" * (TAG_LENGTH_MAX + 1)), ("reason", ""), ("reason", b"why"),
        ("reason", float("nan")), ("command_id", "\ud800"),
    ],
    ids=shown,
)
def test_commands_are_checked_by_the_ledgers_rules(field: str, value: Any) -> None:
    body = {"command": "cancel", "user_id": "u", "job_id": "j"}
    with pytest.raises(Refused, match=f"field '{field}'"):
        encode_command(body | {field: value})
    assert isinstance(decode_command(encode_command(body | {"reason": "why"})), Command)
