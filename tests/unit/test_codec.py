"""From bytes to a checked request, or to a refusal that says what to mend."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from tidemill.schemas.codec import (
    DEPTH_MAX,
    Decoded,
    PlainRequest,
    Refusal,
    check_request,
    decode_command,
    decode_request,
    depth_of,
    owner_of,
    parse_json,
)
from tidemill.schemas.requests import REQUEST_BYTES_MAX, Command, JobRequest
from tidemill.schemas.words import ErrorCode

Headers = list[tuple[str, bytes | None]]
CE: Final[Headers] = [
    ("ce_specversion", b"1.0"), ("ce_id", b"id-1"), ("ce_source", b"/shop"), ("ce_type", b"t"),
]
STRUCTURED: Final[Headers] = [("content-type", b"application/cloudevents+json; charset=utf-8")]
BODY: Final = {"type": "t", "user_id": "u", "job_id": "j"}


def text(**fields: Any) -> bytes:
    return json.dumps({**BODY, **fields}).encode()


def refused(value: bytes | None, headers: Headers = ()) -> Refusal:  # type: ignore[assignment]
    found = decode_request(value, headers)
    assert isinstance(found, Refusal), found
    return found


def taken(value: bytes, headers: Headers = ()) -> Decoded:  # type: ignore[assignment]
    found = decode_request(value, headers)
    assert isinstance(found, Decoded), found.message
    return found


HUGE: Final = 10**400
KNOWN: Final = ("u", "j", "t")
NOBODY: Final = (None, None, None)


@pytest.mark.parametrize(
    ("value", "code", "field", "owner"),
    [
        (None, ErrorCode.EMPTY_RECORD, None, NOBODY),
        (b"", ErrorCode.UNDECODABLE, None, NOBODY),
        (b"\xff\xfe", ErrorCode.UNDECODABLE, None, NOBODY),
        (b"{", ErrorCode.UNDECODABLE, None, NOBODY),
        (b'{"type":"t","user_id":"u","x":NaN}', ErrorCode.UNDECODABLE, None, NOBODY),
        (b'{"type":"t","user_id":"\\ud800"}', ErrorCode.UNDECODABLE, None, NOBODY),
        (b"[]", ErrorCode.NOT_AN_OBJECT, None, NOBODY),
        (b'"text"', ErrorCode.NOT_AN_OBJECT, None, NOBODY),
        (b"null", ErrorCode.NOT_AN_OBJECT, None, NOBODY),
        (b"[" * 10_000 + b"]" * 10_000, ErrorCode.TOO_DEEP, None, NOBODY),
        (b"{" * 10_000, ErrorCode.TOO_DEEP, None, NOBODY),
        (text(payload={"n": 2**64}), ErrorCode.INTEGER_TOO_LARGE, None, KNOWN),
        (text(payload={"n": -(2**63) - 1}), ErrorCode.INTEGER_TOO_LARGE, None, KNOWN),
        (text(payload={"n": 10**4_000}), ErrorCode.INTEGER_TOO_LARGE, None, KNOWN),
        (text(payload=[HUGE, "\\ud800"]), ErrorCode.INTEGER_TOO_LARGE, None, KNOWN),
        (b'{"user_id":"\\ud800","type":"t","x":%d}' % HUGE, ErrorCode.UNDECODABLE, None, NOBODY),
        (b'{"user_id":"u","type":"t","x":%d' % HUGE, ErrorCode.UNDECODABLE, None, NOBODY),
        (b'{"user_id":"u","type":"t","x":1e400}', ErrorCode.UNDECODABLE, None, NOBODY),
        (text(payload={"x": "x" * REQUEST_BYTES_MAX}), ErrorCode.REQUEST_TOO_LARGE, None, KNOWN),
        (text(payload={"x": [1e15] * 150_000}).replace(b"000000000000000.0", b"e15"),
         ErrorCode.REQUEST_TOO_LARGE, "payload", KNOWN),
        (text(surprise=1), ErrorCode.UNKNOWN_FIELD, "surprise", KNOWN),
        (b'{"user_id":"u","job_id":"j"}', ErrorCode.MISSING_FIELD, "type", ("u", "j", None)),
        (b'{"type":"t","job_id":"j"}', ErrorCode.MISSING_FIELD, "user_id", (None, "j", "t")),
        (text(payload=[1]), ErrorCode.INVALID_FIELD, "payload", KNOWN),
        (text(payload="{}"), ErrorCode.INVALID_FIELD, "payload", KNOWN),
        (text(type=""), ErrorCode.INVALID_FIELD, "type", ("u", "j", "")),
        (text(type="a b"), ErrorCode.INVALID_FIELD, "type", ("u", "j", "a b")),
        (text(type="t\n"), ErrorCode.INVALID_FIELD, "type", ("u", "j", "t\n")),
        (text(type="t" * 129), ErrorCode.INVALID_FIELD, "type", ("u", "j", "t" * 129)),
        (text(type=7), ErrorCode.INVALID_FIELD, "type", ("u", "j", None)),
        (text(user_id=""), ErrorCode.INVALID_FIELD, "user_id", (None, "j", "t")),
        (text(user_id="u\x00"), ErrorCode.INVALID_FIELD, "user_id", (None, "j", "t")),
        (text(user_id="u\n"), ErrorCode.INVALID_FIELD, "user_id", (None, "j", "t")),
        (text(user_id="u" * 257), ErrorCode.INVALID_FIELD, "user_id", (None, "j", "t")),
        (text(user_id=1), ErrorCode.INVALID_FIELD, "user_id", (None, "j", "t")),
        # A job_id that cannot be used leaves the job unknown, and so nobody's.
        (text(job_id=""), ErrorCode.INVALID_FIELD, "job_id", NOBODY),
        (text(job_id="\x7f"), ErrorCode.INVALID_FIELD, "job_id", NOBODY),
        (text(queue="a/b"), ErrorCode.INVALID_FIELD, "queue", KNOWN),
        (text(queue="q" * 101), ErrorCode.INVALID_FIELD, "queue", KNOWN),
        (text(queue="."), ErrorCode.INVALID_FIELD, "queue", KNOWN),
        (text(priority="urgent"), ErrorCode.INVALID_FIELD, "priority", KNOWN),
        (text(run_at="tomorrow"), ErrorCode.INVALID_FIELD, "run_at", KNOWN),
        (text(run_at="2026-01-01T00:00:00"), ErrorCode.INVALID_FIELD, "run_at", KNOWN),
        (text(run_at="1969-12-31T23:59:59Z"), ErrorCode.INVALID_FIELD, "run_at", KNOWN),
        (text(run_at="0001-01-01T00:00:00+23:59"), ErrorCode.INVALID_FIELD, "run_at", KNOWN),
        (text(run_at=2**63), ErrorCode.INVALID_FIELD, "run_at", KNOWN),
        (text(run_at=-1), ErrorCode.INVALID_FIELD, "run_at", KNOWN),
        (text(run_at=True), ErrorCode.INVALID_FIELD, "run_at", KNOWN),
        (text(expires_at=1.5), ErrorCode.INVALID_FIELD, "expires_at", KNOWN),
        (text(max_attempts=0), ErrorCode.INVALID_FIELD, "max_attempts", KNOWN),
        (text(max_attempts=101), ErrorCode.INVALID_FIELD, "max_attempts", KNOWN),
        (text(max_attempts="3"), ErrorCode.INVALID_FIELD, "max_attempts", KNOWN),
        (text(timeout_seconds=0), ErrorCode.INVALID_FIELD, "timeout_seconds", KNOWN),
        (text(timeout_seconds=86_401), ErrorCode.INVALID_FIELD, "timeout_seconds", KNOWN),
        (text(tags=["x"] * 33), ErrorCode.INVALID_FIELD, "tags", KNOWN),
        (text(tags=[""]), ErrorCode.INVALID_FIELD, "tags.0", KNOWN),
        (text(source="s" * 129), ErrorCode.INVALID_FIELD, "source", KNOWN),
        (text(unique_key="\t"), ErrorCode.INVALID_FIELD, "unique_key", KNOWN),
    ],
)
def test_refusals(
    value: bytes | None, code: ErrorCode, field: str | None,
    owner: tuple[str | None, str | None, str | None],
) -> None:
    refusal = refused(value)
    assert (refusal.code, refusal.field) == (code, field)
    assert (refusal.user_id, refusal.job_id, refusal.type) == owner
    assert 10 < len(refusal.message) <= 500
    if field is not None:
        assert field.split(".")[0] in refusal.message


@pytest.mark.parametrize(
    "value",
    [
        text(), text(payload={}), text(user_id="\U0001f409/\u2028\"\\"), text(user_id="u" * 256),
        text(payload={"n": [2**64 - 1, -(2**63), 1.5, None, True, "1" * 99]}),
        text(job_id=None), text(payload={"deep": json.loads("[" * 30 + "]" * 30)}),
        text(type="A_1.b:c-d"),
    ],
)
def test_plain_requests(value: bytes) -> None:
    body = json.loads(value)
    found = taken(value)
    assert (found.request.user_id, found.request.job_id) == (body["user_id"], body["job_id"])
    assert json.loads(found.payload_json) == body.get("payload", {})


def test_the_short_way_and_the_model_say_the_same() -> None:
    """A request with only common fields does not pass through the model: both must agree."""
    full = {**BODY, "payload": {"b": 1, "a": [None, "x"]}}
    plain = taken(json.dumps(full).encode())
    modelled = taken(json.dumps({**full, "priority": "medium"}).encode())
    assert isinstance(plain.request, PlainRequest)
    assert isinstance(modelled.request, JobRequest)
    for name in JobRequest.model_fields:
        if name != "payload":
            assert getattr(plain.request, name) == getattr(modelled.request, name), name
    assert plain.payload_json == modelled.payload_json
    for bent in ({"type": "a b"}, {"user_id": ""}, {"job_id": 5}, {"payload": [1]}, {"x": 1}):
        value = json.dumps({**full, **bent}).encode()
        longer = json.dumps({**full, "priority": "medium", **bent}).encode()
        assert refused(value).code == refused(longer).code
        assert refused(value).message == refused(longer).message


def test_a_whole_request() -> None:
    found = taken(
        text(
            payload={"x": 1}, queue="q", priority="high", run_at="2026-01-31T09:00:00+02:00",
            expires_at=1_769_900_000_123, unique_key="k", max_attempts=100, timeout_seconds=0.5,
            source="s", tags=["a"], batch_id="b", parent_job_id="p",
        )
    ).request
    assert found.run_at is not None
    assert found.run_at.isoformat() == "2026-01-31T09:00:00+02:00"
    assert found.expires_at is not None
    assert round(found.expires_at.timestamp() * 1000) == 1_769_900_000_123
    assert (found.queue, found.priority, found.tags) == ("q", "high", ("a",))


def test_fingerprints_ignore_formatting_and_see_content() -> None:
    spread = b' {"user_id":"u","type":"t",\n"job_id":"j"}'
    assert taken(text()).fingerprint == taken(spread).fingerprint
    assert taken(text()).fingerprint == taken(text(payload={})).fingerprint
    ordered = text(payload={"a": 1, "b": {"c": 2, "d": 3}})
    turned = text(payload={"b": {"d": 3, "c": 2}, "a": 1})
    assert taken(ordered).fingerprint == taken(turned).fingerprint
    assert taken(ordered).payload_json != taken(turned).payload_json
    assert taken(text(payload={"n": 1})).fingerprint != taken(text(payload={"n": 2})).fingerprint
    assert taken(text()).fingerprint != taken(text(type="t2")).fingerprint
    assert (
        taken(text(queue="a", payload={"a": 1, "b": 2})).fingerprint
        == taken(text(payload={"b": 2, "a": 1}, queue="a")).fingerprint
    )
    assert taken(text(queue="a")).fingerprint != taken(text(queue="b")).fingerprint


@pytest.mark.parametrize("more", [{}, {"priority": "low"}])
def test_a_body_that_never_was_text_is_checked_too(more: dict[str, Any]) -> None:
    deep: list[Any] = []
    for _ in range(400):
        deep = [deep]
    for payload, code in (
        ({"x": deep}, ErrorCode.INVALID_FIELD), ({"x": 2**64}, ErrorCode.INVALID_FIELD),
        ({"x": "x" * REQUEST_BYTES_MAX}, ErrorCode.REQUEST_TOO_LARGE),
    ):
        found = check_request({**BODY, **more, "payload": payload})
        assert isinstance(found, Refusal)
        assert (found.code, found.field) == (code, "payload")
        assert (found.user_id, found.job_id, found.type) == KNOWN


# --- CloudEvents ---------------------------------------------------------------------------------


def structured(**attributes: Any) -> bytes:
    event = {"specversion": "1.0", "id": "id-1", "source": "/shop", "type": "t"}
    data = {"user_id": "u", "payload": {"n": 1}}
    return json.dumps({**event, "data": data, **attributes}).encode()


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (b'{"user_id":"u","payload":{"n":1}}', CE),
        (b'{"user_id":"u","payload":{"n":1}}', [(name.upper(), text) for name, text in CE]),
        (structured(), STRUCTURED),
        (structured(), [("Content-Type", b"APPLICATION/CLOUDEVENTS+JSON")]),
    ],
)
def test_both_modes_of_cloudevents(value: bytes, headers: Headers) -> None:
    found = taken(value, headers)
    request = found.request
    assert (request.type, request.user_id, request.job_id) == ("t", "u", "id-1")
    assert request.source == "/shop"
    assert found.payload_json == b'{"n":1}'


def test_the_body_rules_over_the_event_around_it() -> None:
    found = taken(text(source="mine", type="mine"), CE).request
    assert (found.type, found.job_id, found.source) == ("mine", "j", "mine")
    long_source = [*CE[:2], ("ce_source", b"s" * 300), CE[3]]
    assert taken(b'{"user_id":"u"}', long_source).request.source is None


@pytest.mark.parametrize(
    ("value", "headers", "field"),
    [
        *((b'{"user_id":"u"}', [pair for pair in CE if pair[0] != f"ce_{name}"], name)
          for name in ("specversion", "id", "source", "type")),
        (b'{"user_id":"u"}', [("ce_specversion", b"0.3"), *CE[1:]], "specversion"),
        (b'{"user_id":"u"}', [("ce_id", b"\xff"), CE[0], *CE[2:]], "id"),
        (b'{"user_id":"u"}', [("ce_id", None), CE[0], *CE[2:]], "id"),
        (structured(id=""), STRUCTURED, "id"),
        (structured(id=5), STRUCTURED, "id"),
        (structured(data=None), STRUCTURED, "data"),
        (structured(data=None, data_base64="e30="), STRUCTURED, "data"),
        (b"[]", STRUCTURED, None),
        (b"{}", [("content-type", b"application/cloudevents-batch+json")], "content-type"),
        (b"{}", [("content-type", b"application/cloudevents+avro")], "content-type"),
    ],
)
def test_broken_cloudevents(value: bytes, headers: Headers, field: str | None) -> None:
    refusal = refused(value, headers)
    assert (refusal.code, refusal.field) == (ErrorCode.INVALID_CLOUDEVENT, field)


def test_other_headers_change_nothing() -> None:
    headers: Headers = [("content-type", b"application/json"), ("x", None), ("y", b"\xff")]
    assert taken(text(), headers).request.job_id == "j"


def test_the_trace_comes_along() -> None:
    assert taken(text()).traceparent is None
    assert taken(text(), [("traceparent", b"00-a-b-01")]).traceparent == "00-a-b-01"
    assert taken(text(), [*CE, ("ce_traceparent", b"00-c")]).traceparent == "00-c"
    assert taken(text(), [("traceparent", b"\xff")]).traceparent is None


def test_an_event_whose_name_is_in_the_headers_is_nobody_s_when_it_cannot_be_read() -> None:
    value = b'{"type":"t","user_id":"u","payload":{"n":%d}}' % 2**64
    assert refused(value).user_id == "u"
    assert refused(value, CE).user_id is None


# --- commands and JSON ---------------------------------------------------------------------------


def test_commands() -> None:
    value = b'{"command":"cancel","user_id":"u","job_id":"j","actor":"a","reason":"r"}'
    found = decode_command(value)
    assert isinstance(found, Command)
    assert (found.command, found.user_id, found.job_id, found.actor) == ("cancel", "u", "j", "a")


@pytest.mark.parametrize(
    ("value", "code", "field"),
    [
        (None, ErrorCode.EMPTY_RECORD, None),
        (b"x", ErrorCode.UNDECODABLE, None),
        (b"7", ErrorCode.NOT_AN_OBJECT, None),
        (b'{"command":"explode","user_id":"u","job_id":"j"}', ErrorCode.INVALID_FIELD, "command"),
        (b'{"command":"cancel","user_id":"u"}', ErrorCode.MISSING_FIELD, "job_id"),
        (b'{"command":"cancel","user_id":"u","job_id":"j","x":1}', ErrorCode.UNKNOWN_FIELD, "x"),
    ],
)
def test_refused_commands(value: bytes | None, code: ErrorCode, field: str | None) -> None:
    found = decode_command(value)
    assert isinstance(found, Refusal)
    assert (found.code, found.field) == (code, field)


@pytest.mark.parametrize(
    ("value", "depth"),
    [
        (b"1", 0), (b"[]", 1), (b'{"a":[1,{"b":2}]}', 3), (b'"[[["', 0), (b'["\\"[[", []]', 2),
        (b"[" * 99, 99), (b"]]]][[", 0), (b'["', 1),
    ],
)
def test_depth(value: bytes, depth: int) -> None:
    assert depth_of(value) == depth


def test_depth_is_bounded_exactly() -> None:
    assert not isinstance(parse_json(b"[" * DEPTH_MAX + b"]" * DEPTH_MAX), Refusal)
    deeper = DEPTH_MAX + 1
    assert isinstance(parse_json(b"[" * deeper + b"]" * deeper), Refusal)
    many = b"[" + b"[]," * 500 + b"[]]"
    assert not isinstance(parse_json(many), Refusal)


@pytest.mark.parametrize(
    "value", [b'"%s"' % (b"9" * 100), b"0.1234567890123456789012345", b"1e300", b"[1e19,-1.0]"]
)
def test_long_digits_that_are_no_integers_pass(value: bytes) -> None:
    assert not isinstance(parse_json(value), Refusal)


def test_owners() -> None:
    assert owner_of([]) == NOBODY
    assert owner_of({"user_id": "u"}) == ("u", None, None)
    assert owner_of({"user_id": "u", "job_id": "a\nb", "type": "t"}) == NOBODY
