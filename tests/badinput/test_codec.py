"""The codec never raises: every input is a checked request or a refusal that says what to mend.

Owns the bulk of it without a broker; `test_engine` sends the same through the real ledger.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.badinput.mutants import FIELDS, Headers, mutant, random_bytes
from tidemill.schemas.codec import Decoded, Refusal, decode_command, decode_request
from tidemill.schemas.requests import SIGNAL_BYTES_MAX, Command, SignalCommand
from tidemill.schemas.words import ErrorCode

pytestmark = pytest.mark.timeout(300)

EXAMPLES: Final = 200
RECORDS_PER_EXAMPLE: Final = 500  # 100,000 in all: one seed of Hypothesis gives many records
SEEDS: Final = st.integers(0, 2**63)
BULK: Final = settings(max_examples=EXAMPLES, deadline=None)


def check(value: bytes | None, headers: Headers) -> Decoded | Refusal:
    answer = decode_request(value, headers)
    if isinstance(answer, Refusal):
        assert isinstance(answer.code, ErrorCode)
        assert answer.message
    else:
        assert answer.request.user_id
        json.loads(answer.payload_json)
        repeated = decode_request(value, headers)
        assert isinstance(repeated, Decoded)
        assert repeated.fingerprint == answer.fingerprint
    return answer


@BULK
@given(SEEDS)
def test_random_bytes(seed: int) -> None:
    random = Random(seed)
    for _ in range(RECORDS_PER_EXAMPLE):
        value = random_bytes(random)
        check(value, [])
        decode_command(value)


@BULK
@given(SEEDS)
def test_bent_requests(seed: int) -> None:
    random = Random(seed)
    for _ in range(RECORDS_PER_EXAMPLE):
        value, headers = mutant(random)
        check(value, headers)
        decode_command(value)


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELD_VALUES: Final = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), JSON)


@settings(max_examples=1_000, deadline=None)
@given(FIELD_VALUES, st.booleans())
def test_any_values_in_any_fields(body: dict[str, Any], is_owned: bool) -> None:
    if is_owned:
        body = {**body, "type": "t", "user_id": "u"}
    check(json.dumps(body).encode("utf-8", "surrogatepass"), [])


def request(**fields: Any) -> bytes:
    return json.dumps({"type": "t", "user_id": "u", "job_id": "j", **fields}).encode()


def raw(field: bytes) -> bytes:
    return b'{"type":"t","user_id":"u","job_id":"j",%b}' % field


DEEP: Final = 10_000
CASES: Final[list[tuple[str, bytes | None, ErrorCode, bool]]] = [
    ("tombstone", None, ErrorCode.EMPTY_RECORD, False),
    ("empty", b"", ErrorCode.UNDECODABLE, False),
    ("bytes", b"\x00\xff\xfe", ErrorCode.UNDECODABLE, False),
    ("utf-16", request().decode().encode("utf-16"), ErrorCode.UNDECODABLE, False),
    ("half", request()[:-5], ErrorCode.UNDECODABLE, False),
    ("lone surrogate", raw(rb'"tags":["\ud800"]'), ErrorCode.UNDECODABLE, False),
    ("NaN", raw(b'"payload":{"x":NaN}'), ErrorCode.UNDECODABLE, False),
    ("beyond doubles", raw(b'"payload":{"x":1e999}'), ErrorCode.UNDECODABLE, False),
    ("array", b"[1]", ErrorCode.NOT_AN_OBJECT, False),
    ("number", b"7", ErrorCode.NOT_AN_OBJECT, False),
    ("deep arrays", b"[" * DEEP + b"]" * DEEP, ErrorCode.TOO_DEEP, False),
    ("deep objects", b'{"a":' * DEEP + b"1" + b"}" * DEEP, ErrorCode.TOO_DEEP, False),
    ("65 bits", raw(b'"payload":{"x":18446744073709551616}'), ErrorCode.INTEGER_TOO_LARGE, True),
    ("-65 bits", raw(b'"payload":{"x":-9223372036854775809}'), ErrorCode.INTEGER_TOO_LARGE, True),
    ("no user", b'{"type":"t"}', ErrorCode.MISSING_FIELD, False),
    ("no type", b'{"user_id":"u","job_id":"j"}', ErrorCode.MISSING_FIELD, True),
    ("unknown field", request(usr=1), ErrorCode.UNKNOWN_FIELD, True),
    ("payload no object", request(payload=[1]), ErrorCode.INVALID_FIELD, True),
    ("priority", request(priority="urgent"), ErrorCode.INVALID_FIELD, True),
    ("queue", request(queue="a/b"), ErrorCode.INVALID_FIELD, True),
    ("attempts", request(max_attempts=0), ErrorCode.INVALID_FIELD, True),
    ("attempts text", request(max_attempts="3"), ErrorCode.INVALID_FIELD, True),
    ("time-out", request(timeout_seconds=-1), ErrorCode.INVALID_FIELD, True),
    ("no offset", request(run_at="2026-01-01T00:00:00"), ErrorCode.INVALID_FIELD, True),
    ("year 10000", request(run_at="9999-12-31T23:59:59-23:59"), ErrorCode.INVALID_FIELD, True),
    ("year 0", request(run_at=-(10**15)), ErrorCode.INVALID_FIELD, True),
    ("instant beyond all", request(run_at=2**63), ErrorCode.INVALID_FIELD, True),
    ("control character", request(user_id="a\nb"), ErrorCode.INVALID_FIELD, False),
    ("newline at the end", request(user_id="a\n"), ErrorCode.INVALID_FIELD, False),
    ("long id", request(job_id="x" * 257), ErrorCode.INVALID_FIELD, False),
    ("2 MB", request(payload={"x": "x" * 2_000_000}), ErrorCode.REQUEST_TOO_LARGE, True),
]


@pytest.mark.parametrize(
    ("value", "code", "is_known"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_refusal_has_its_code(value: bytes | None, code: ErrorCode, is_known: bool) -> None:
    answer = check(value, [])
    assert isinstance(answer, Refusal)
    assert answer.code is code
    assert (answer.user_id is not None) is is_known


@pytest.mark.parametrize(
    "value",
    [
        b'"[\\' * 300_000, b'{"' * 400_000, b'"' * 1_000_000, b"[" * 1_000_000,
        b'{"x":' + b"9" * 1_000_000 + b"}", b"\\" * 1_000_000, b'{"a":"' + b'\\"[' * 300_000,
    ],
    ids=["escaped strings", "open objects", "quotes", "open arrays", "digits", "escapes", "string"],
)
def test_hostile_megabytes_are_refused_in_linear_time(value: bytes) -> None:
    # Backtracking made the first of these take minutes: the test's own time-out is the measure.
    assert isinstance(check(value, []), Refusal)


def signal(**fields: Any) -> bytes:
    body = {"command": "signal", "user_id": "u", "job_id": "j", "name": "go", "value": 1, **fields}
    return json.dumps({name: each for name, each in body.items() if each is not ...}).encode()


@pytest.mark.parametrize(
    ("value", "code", "field"),
    [
        (signal(name=...), ErrorCode.MISSING_FIELD, "name"),
        (signal(name=None), ErrorCode.INVALID_FIELD, "name"),
        (signal(name=""), ErrorCode.INVALID_FIELD, "name"),
        (signal(name=7), ErrorCode.INVALID_FIELD, "name"),
        (signal(name="x" * 129), ErrorCode.INVALID_FIELD, "name"),
        (signal(name="a\x00"), ErrorCode.INVALID_FIELD, "name"),
        (signal(name="go\n"), ErrorCode.INVALID_FIELD, "name"),
        (signal(value="x" * SIGNAL_BYTES_MAX), ErrorCode.INVALID_FIELD, "value"),
        (signal(value=["ü" * 40_000]), ErrorCode.INVALID_FIELD, "value"),
        (signal(user_id=...), ErrorCode.MISSING_FIELD, "user_id"),
        (signal(job_id=7), ErrorCode.INVALID_FIELD, "job_id"),
        (signal(actor="a" * 200), ErrorCode.INVALID_FIELD, "actor"),
        (signal(nmae="go"), ErrorCode.UNKNOWN_FIELD, "nmae"),
        (signal(command="cancel"), ErrorCode.UNKNOWN_FIELD, "name"),
        (signal(command=["signal"]), ErrorCode.INVALID_FIELD, "command"),
        (signal(value=2**70), ErrorCode.INTEGER_TOO_LARGE, None),
        (signal(value=float("nan")), ErrorCode.UNDECODABLE, None),
    ],
    ids=str,
)
def test_each_wrong_signal_names_its_field(
    value: bytes, code: ErrorCode, field: str | None
) -> None:
    refused = decode_command(value)
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.field) == (code, field)


@pytest.mark.parametrize(
    "value", [None, False, 0, "", [], {}, {"deep": [[[1]]]}, "x" * (SIGNAL_BYTES_MAX - 2)], ids=str
)
def test_any_json_may_be_a_signals_value(value: Any) -> None:
    read = decode_command(signal(value=value))
    assert isinstance(read, SignalCommand)
    assert read.value == value


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(tuple(SignalCommand.model_fields)), JSON))
def test_any_values_in_any_fields_of_a_signal(body: dict[str, Any]) -> None:
    value = json.dumps({"command": "signal", **body}).encode("utf-8", "surrogatepass")
    read = decode_command(value)
    assert isinstance(read, SignalCommand | Refusal | Command)
