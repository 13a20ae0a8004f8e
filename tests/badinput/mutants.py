"""Makes bad records: random bytes, and valid requests bent in one or more places.

Owns the shapes of badness. Everything comes from the `Random` that is passed in, so that a seed
names a record. Refuses to know what becomes of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, Final

Headers = list[tuple[str, bytes | None]]
Body = dict[str, Any]

RANDOM_BYTES_MAX: Final = 200  # bytes; length changes nothing in what random bytes can hit
FIELDS: Final = (
    "type", "user_id", "job_id", "payload", "queue", "priority", "run_at", "expires_at",
    "unique_key", "max_attempts", "timeout_seconds", "source", "tags", "batch_id", "parent_job_id",
)
_TEXTS: Final = (
    "", " ", "a", "ü😀", "\u0000", "a\n", "a\x7fb", "\u202e", "a" * 256, "a" * 257, "a" * 5000,
    "null", "../..", "'; DROP TABLE jobs; --", "{{7*7}}", "\ufeffx", "high", "HIGH", "default",
    "2026-01-31T09:00:00Z", "2026-01-31T09:00:00", "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59.999999-23:59", "1970-01-01T00:00:00Z", "2026-W05", "20260131T090000Z",
)
_NUMBERS: Final = (
    0, -1, 1, 2, 100, 101, 86_400, 86_401, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63),
    0.1, -0.0, 1.5, 1e-300, 1e308, 253_402_300_799_999, 253_402_300_800_000, -62_135_596_800_001,
)
_RAW_VALUES: Final = (
    b"18446744073709551616", b"-9223372036854775809", b"1" * 5_000, b"1e999", b"-1e999", b"NaN",
    b"Infinity", b"1.0e+400", b"0x10", b"01", b"+1", b"'a'", b"undefined", b'"\\ud800"',
    b'"\\udfff\\ud800"', b'"\\u0000"', b'"\\x"', b'"\xff\xfe"', b"[" * 40 + b"]" * 40,
    b'{"a":' * 40 + b"1" + b"}" * 40, b'"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["', b"1e5", b"-0",
    b'{"a":1,"a":2}', b"[]", b"{}", b"true", b"1.7976931348623157e308", b"123456789012345678901e-5",
)


def random_bytes(random: Random) -> bytes:
    """Bytes without any structure; now and then with a JSON look."""
    value = random.randbytes(random.randrange(RANDOM_BYTES_MAX))
    if random.random() < 0.2:
        return b"{" + value + b"}"
    return value


def valid_body(random: Random) -> Body:
    """A request that is right in every field, with a random choice of fields."""
    body: Body = {"type": "fuzz.ok", "user_id": f"user-{random.randrange(50)}"}
    optional: Body = {
        "job_id": f"fuzz-{random.getrandbits(64):x}", "payload": {"n": random.randrange(1000)},
        "queue": "default", "priority": random.choice(("high", "medium", "low")),
        "run_at": "2026-01-31T09:00:00Z", "expires_at": "2099-01-31T09:00:00+02:00",
        "unique_key": f"key-{random.randrange(10**9)}", "max_attempts": random.randrange(1, 100),
        "timeout_seconds": random.choice((1, 0.5, 300)), "source": "fuzz", "tags": ["a", "b"],
        "batch_id": "b", "parent_job_id": "p",
    }
    for name, value in optional.items():
        if random.random() < 0.4:
            body[name] = value
    return body


def _any_value(random: Random, depth: int = 0) -> Any:
    match random.randrange(8 if depth < 3 else 6):
        case 0:
            return random.choice(_NUMBERS)
        case 1 | 2:
            return random.choice(_TEXTS)
        case 3:
            return random.choice((None, True, False))
        case 4:
            return random.getrandbits(63)
        case 5:
            return "".join(chr(random.randrange(1, 0xD7FF)) for _ in range(random.randrange(20)))
        case 6:
            return [_any_value(random, depth + 1) for _ in range(random.randrange(4))]
        case _:
            return {
                random.choice(_TEXTS) + str(n): _any_value(random, depth + 1)
                for n in range(random.randrange(4))
            }


def _drop(random: Random, body: Body) -> None:
    body.pop(random.choice(list(body)), None)


def _replace(random: Random, body: Body) -> None:
    body[random.choice(FIELDS)] = _any_value(random)


def _unknown(random: Random, body: Body) -> None:
    body[random.choice((*_TEXTS, "jobid", "userId", "schema_version"))] = _any_value(random)


def _rename(random: Random, body: Body) -> None:
    name = random.choice(list(body) or ["x"])
    body[name.upper()] = body.pop(name, None)


def _payload(random: Random, body: Body) -> None:
    body["payload"] = {random.choice(_TEXTS): _any_value(random)}


_BODY_CHANGES: Final[tuple[Callable[[Random, Body], None], ...]] = (
    _drop, _replace, _replace, _replace, _unknown, _rename, _payload,
)


def _flip(random: Random, text: bytearray) -> None:
    text[random.randrange(len(text))] ^= 1 << random.randrange(8)


def _cut(random: Random, text: bytearray) -> None:
    del text[random.randrange(len(text)) :]


def _insert(random: Random, text: bytearray) -> None:
    at = random.randrange(len(text))
    text[at:at] = random.randbytes(random.randrange(1, 5))


def _splice(random: Random, text: bytearray) -> None:
    start = random.randrange(len(text))
    del text[start : start + random.randrange(1, 20)]


def _repeat(random: Random, text: bytearray) -> None:
    text += text[: random.randrange(len(text))]


def _raw_field(random: Random, text: bytearray) -> None:
    name = random.choice(FIELDS).encode()
    text[1:1] = b'"%b":%b,' % (name, random.choice(_RAW_VALUES))


def _raw_payload(random: Random, text: bytearray) -> None:
    text[1:1] = b'"payload":{"x":%b},' % random.choice(_RAW_VALUES)


def _encode_otherwise(random: Random, text: bytearray) -> None:
    encoding = random.choice(("utf-16", "utf-32", "utf-8-sig"))
    text[:] = bytes(text).decode("utf-8", "replace").encode(encoding)


_TEXT_CHANGES: Final[tuple[Callable[[Random, bytearray], None], ...]] = (
    _flip, _cut, _insert, _splice, _repeat, _raw_field, _raw_field, _raw_payload,
    _encode_otherwise,
)


def mutant(random: Random) -> tuple[bytes | None, Headers]:
    """A valid request bent up to three times, and the headers to send it with."""
    body = valid_body(random)
    for _ in range(random.randrange(3)):
        random.choice(_BODY_CHANGES)(random, body)
    headers = _headers(random)
    wrapped = _wrapped(random, body, headers)
    text = bytearray(json.dumps(wrapped, ensure_ascii=random.random() < 0.5).encode())
    if random.random() < 0.5:
        random.choice(_TEXT_CHANGES)(random, text)
    if random.random() < 0.005:
        return None, headers
    return bytes(text), headers


def _wrapped(random: Random, body: Body, headers: Headers) -> Any:
    draw = random.random()
    if draw < 0.1:
        headers.append(("content-type", b"application/cloudevents+json"))
        event: Body = {
            "specversion": "1.0", "id": f"ce-{random.getrandbits(64):x}", "source": "/fuzz",
            "type": "fuzz.ok", "data": body,
        }
        for _ in range(random.randrange(3)):
            event[random.choice(list(event))] = _any_value(random)
        return event
    if draw < 0.13:
        return _any_value(random)
    return body


def _headers(random: Random) -> Headers:
    if random.random() < 0.7:
        return []
    names = (
        "ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "CE_ID", "content-type",
        "traceparent", "x", "", "tidemill.dead.topic",
    )
    values: tuple[bytes | None, ...] = (
        b"1.0", b"0.3", b"", None, b"\xff\xfe", b"application/json", b"a" * 3000,
        b"application/cloudevents+avro", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    headers: Headers = [
        (random.choice(names), random.choice(values)) for _ in range(random.randrange(8))
    ]
    if random.random() < 0.3:
        headers += [
            ("ce_specversion", b"1.0"), ("ce_id", b"ce-%x" % random.getrandbits(64)),
            ("ce_source", b"/fuzz"), ("ce_type", b"fuzz.ok"),
        ]
    return headers
