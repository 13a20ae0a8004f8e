"""From bytes to a checked request or command, or to a refusal that says what to mend.

Owns the three forms of a request (plain JSON, CloudEvents binary and structured), the bounds that
keep hostile input cheap, and the wording of refusals. Refuses to know what happens next.

Never raises for any input: a bug here would stop a partition, so every path ends in a value.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from typing import Any, Final

import orjson
from pydantic import BaseModel, ValidationError

from tidemill.schemas.first_problem import first_problem
from tidemill.schemas.requests import (
    ID_LENGTH_MAX,
    ID_PATTERN,
    REQUEST_BYTES_MAX,
    TAG_LENGTH_MAX,
    TYPE_LENGTH_MAX,
    TYPE_PATTERN,
    Command,
    JobRequest,
    SignalCommand,
)
from tidemill.schemas.schedules import ScheduleCommand
from tidemill.schemas.words import ErrorCode, Priority

Headers = Sequence[tuple[str, bytes | None]]

DEPTH_MAX: Final = 32  # nested arrays and objects of a request, the outermost included
# The same of an event: a result is what orjson writes, 254 deep, and the event is around it.
EVENT_DEPTH_MAX: Final = 256
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**64 - 1  # what ClickHouse and most languages can hold
COUNT_MAX: Final = 2**32 - 1  # of runs, attempts, epochs, sequences: a column of 32 bits
MESSAGE_LENGTH_MAX: Final = 500  # characters of a refusal's message

# Every digit becomes a 0, so that a run of digits is found by a plain substring search.
_DIGITS_TO_ZERO: Final = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_DIGITS: Final = b"0" * 19  # the shortest integer that may not fit 64 bits
# Possessive, with an optional end: an unclosed string is taken whole, so each byte is looked at
# once. Backtracking made 1 MiB of `"[\\` take minutes.
_STRINGS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS: Final = re.compile(rb"[^\[\]{}]+")
_ID: Final = re.compile(ID_PATTERN.removesuffix("$") + r"\Z")  # `$` would let a newline through
_TYPE: Final = re.compile(TYPE_PATTERN.removesuffix("$") + r"\Z")
# Constants of this module: compiled code need not look them up.
_dumps: Final = orjson.dumps
_loads: Final = orjson.loads
_crc32: Final = zlib.crc32
# Types that were checked, each with its checksum: most requests are of a few types.
_usable_types: Final[dict[str, int]] = {}
USABLE_TYPES_MAX: Final = 1_000  # then it starts anew
_CLOUDEVENTS_REQUIRED: Final = ("specversion", "id", "source", "type")
_CLOUDEVENTS_JSON: Final = "application/cloudevents+json"


class Refusal:
    """A record that cannot be taken: the code, the field, the way out, and whose it was if known.

    `user_id` and `job_id` are None when they cannot be read from the record.
    """

    __slots__ = ("code", "field", "job_id", "message", "type", "user_id")

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        field: str | None = None,
        user_id: str | None = None,
        job_id: str | None = None,
        type: str | None = None,
    ) -> None:
        self.code = code
        self.message = message[:MESSAGE_LENGTH_MAX]
        self.field = None if field is None else field[:MESSAGE_LENGTH_MAX]
        self.user_id = user_id
        self.job_id = job_id
        self.type = type


_MEDIUM: Final = Priority.MEDIUM


class PlainRequest:
    """What `JobRequest` is, for the many requests that have only the four common fields.

    Checking those by hand costs a third of what the model costs; a test holds both together.
    """

    __slots__ = ("job_id", "payload", "type", "user_id")

    queue: None = None
    priority = _MEDIUM
    run_at: None = None
    expires_at: None = None
    unique_key: None = None
    max_attempts: None = None
    timeout_seconds: None = None
    source: None = None
    tags: tuple[str, ...] = ()
    batch_id: None = None
    parent_job_id: None = None

    def __init__(
        self, type: str, user_id: str, job_id: str | None, payload: dict[str, Any]
    ) -> None:
        self.type = type
        self.user_id = user_id
        self.job_id = job_id
        self.payload = payload


def plain_request(body: dict[str, Any]) -> PlainRequest | None:
    """The request when it has only common fields and they are right, else None: ask the model."""
    get = body.get
    type_name, user_id, job_id, payload = (
        get("type"), get("user_id"), get("job_id"), get("payload")
    )
    expected = 2 + (job_id is not None) + (payload is not None)
    if (
        len(body) == expected
        and type(type_name) is str
        and type(user_id) is str
        and (job_id is None or (type(job_id) is str and _is_id(job_id)))
        and (payload is None or type(payload) is dict)
        and _is_type(type_name)
        and _is_id(user_id)
    ):
        return PlainRequest(type_name, user_id, job_id, payload or {})
    return None


def _is_type(value: str) -> bool:
    if value in _usable_types:
        return True
    if len(value) > TYPE_LENGTH_MAX or _TYPE.match(value) is None:
        return False
    if len(_usable_types) >= USABLE_TYPES_MAX:
        _usable_types.clear()
    _usable_types[value] = zlib.crc32(value.encode())
    return True


def _checksum_of(type_name: str) -> int:
    found = _usable_types.get(type_name)
    return zlib.crc32(type_name.encode()) if found is None else found


def _is_id(value: str) -> bool:
    if not 0 < len(value) <= ID_LENGTH_MAX:
        return False
    # Nearly all ids: printable ASCII holds no control character. Half as dear as the pattern.
    return (value.isascii() and value.isprintable()) or _ID.match(value) is not None


class Decoded:
    """A checked request: the model, and a fingerprint of its body that ignores formatting."""

    __slots__ = ("fingerprint", "payload_json", "request", "traceparent")

    def __init__(
        self,
        request: JobRequest | PlainRequest,
        payload_json: bytes,
        fingerprint: int,
        traceparent: str | None,
    ) -> None:
        self.request = request
        self.payload_json = payload_json
        self.fingerprint = fingerprint
        self.traceparent = traceparent


class IntegerTooLarge(ValueError):
    """A JSON integer beyond 64 bits. Internal to this module."""


def depth_of(value: bytes) -> int:
    """Deepest nesting of arrays and objects in JSON text, in one pass and without recursion."""
    brackets = _NOT_BRACKETS.sub(b"", _STRINGS.sub(b"", value))
    depth = deepest = 0
    for byte in brackets:
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def _checked_int(digits: str) -> int:
    # Compare by length first: converting a million digits would take seconds.
    if len(digits) > 21:
        raise IntegerTooLarge(digits[:24])
    number = int(digits)
    if not INTEGER_MIN <= number <= INTEGER_MAX:
        raise IntegerTooLarge(digits)
    return number


def parse_json(value: bytes | None, depth_max: int = DEPTH_MAX) -> Any | Refusal:
    """JSON within our bounds -> Python value; else the refusal. Shared by all inputs."""
    if value is None:
        return Refusal(
            ErrorCode.EMPTY_RECORD,
            "the record has no value (a tombstone); send a JSON object as the value",
        )
    if value.count(b"[") + value.count(b"{") > depth_max and depth_of(value) > depth_max:
        return Refusal(
            ErrorCode.TOO_DEEP,
            f"the JSON is nested more than {depth_max} deep; flatten it or send it as a string",
        )
    parsed: Any = None
    try:
        parsed = _loads(value)
        # `find`: `in` would first ask whether the digits are a number, by way of an exception.
        if value.translate(_DIGITS_TO_ZERO).find(_LONG_DIGITS) >= 0:
            # orjson reads integers beyond 64 bits as floats, which would change them silently.
            json.loads(value, parse_int=_checked_int)
    except IntegerTooLarge as too_large:
        user_id, job_id, type_name = owner_of(parsed)
        return Refusal(
            ErrorCode.INTEGER_TOO_LARGE,
            f"the integer {too_large} does not fit 64 bits; send it as a string",
            user_id=user_id, job_id=job_id, type=type_name,
        )
    except (ValueError, RecursionError) as error:
        return _endless_number(value) or Refusal(
            ErrorCode.UNDECODABLE, f"not UTF-8 JSON: {error}; send a JSON object as the value"
        )
    return parsed


def _endless_number(value: bytes) -> Refusal | None:
    """A number so long that orjson gives up is no reason not to know whose request it was."""
    if _LONG_DIGITS not in value.translate(_DIGITS_TO_ZERO):
        return None
    try:
        user_id, job_id, type_name = owner_of(json.loads(value, parse_int=lambda _: 0))
        orjson.dumps((user_id, job_id, type_name))  # json takes half a surrogate pair, we do not
    except (ValueError, TypeError, RecursionError):
        return None
    return Refusal(
        ErrorCode.INTEGER_TOO_LARGE, "a number does not fit 64 bits; send it as a string",
        user_id=user_id, job_id=job_id, type=type_name,
    )


def _header(headers: Headers, name: str) -> str | None:
    for key, value in headers:
        if key.lower() == name and value is not None:
            try:
                return value.decode()
            except UnicodeDecodeError:
                return None
    return None


def _cloudevent_attributes(headers: Headers) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in headers:
        lower = key.lower()
        if lower.startswith("ce_") and value is not None:
            try:
                found[lower[3:]] = value.decode()
            except UnicodeDecodeError:
                continue
    return found


def _usable_id(value: object) -> str | None:
    if isinstance(value, str) and 0 < len(value) <= ID_LENGTH_MAX and _ID.fullmatch(value):
        return value
    return None


def owner_of(body: object) -> tuple[str | None, str | None, str | None]:
    """(user_id, job_id, type) as far as they can be read from a refused body.

    A job_id that is given but unusable makes the user None too: the job is then not known.
    """
    if not isinstance(body, dict):
        return None, None, None
    user_id = _usable_id(body.get("user_id"))
    job_id = body.get("job_id")
    if job_id is not None and _usable_id(job_id) is None:
        return None, None, None
    type_name = body.get("type")
    return user_id, _usable_id(job_id), type_name if isinstance(type_name, str) else None


def _refusal_of(error: ValidationError, body: dict[str, Any], model: type[BaseModel]) -> Refusal:
    first = first_problem(error)
    name = first.path or "value"
    user_id, job_id, type_name = owner_of(body)
    if first.kind == "extra_forbidden":
        code = ErrorCode.UNKNOWN_FIELD
        known = ", ".join(sorted(model.model_fields))
        message = f"unknown field {name!r}; known fields: {known}; put your own data in payload"
    elif first.kind == "missing":
        code, message = ErrorCode.MISSING_FIELD, f"field {name!r} is required; add it"
    else:
        # The words of JSON: our lists are kept as tuples.
        why = first.message.replace("valid tuple", "valid list")
        code, message = ErrorCode.INVALID_FIELD, f"field {name!r}: {why}"
    return Refusal(
        code, message, field=name, user_id=user_id, job_id=job_id, type=type_name
    )


def _unwrap_structured(body: object) -> tuple[object, dict[str, str]] | Refusal:
    if not isinstance(body, dict):
        return Refusal(
            ErrorCode.INVALID_CLOUDEVENT, "a structured CloudEvent is a JSON object; send one"
        )
    attributes = {
        key.lower(): value
        for key, value in body.items()
        if isinstance(value, str) and key not in ("data", "data_base64")
    }
    data = body.get("data")
    if data is None:
        return Refusal(
            ErrorCode.INVALID_CLOUDEVENT,
            "the CloudEvent has no JSON in `data`; put the request there",
            field="data",
        )
    return data, attributes


def _unwrap(
    value: bytes | None, headers: Headers
) -> tuple[object, dict[str, str]] | Refusal:
    """The request's body and the CloudEvents attributes around it ({} when there are none)."""
    parsed = parse_json(value)
    if isinstance(parsed, Refusal):
        if headers and parsed.job_id is None:
            # A CloudEvents header may name the job: then its identity is not known here.
            parsed.user_id = None
        return parsed
    if not headers:
        return parsed, {}
    content_type = (_header(headers, "content-type") or "").lower()
    if content_type.startswith("application/cloudevents"):
        if not content_type.startswith(_CLOUDEVENTS_JSON):
            return Refusal(
                ErrorCode.INVALID_CLOUDEVENT,
                f"content-type {content_type[:80]!r}: only {_CLOUDEVENTS_JSON} is taken",
                field="content-type",
            )
        unwrapped = _unwrap_structured(parsed)
        if isinstance(unwrapped, Refusal):
            return unwrapped
        body, attributes = unwrapped
    else:
        body, attributes = parsed, _cloudevent_attributes(headers)
        if not attributes:
            return body, {}
    for name in _CLOUDEVENTS_REQUIRED:
        if not attributes.get(name):
            user_id, job_id, type_name = owner_of(body)
            return Refusal(
                ErrorCode.INVALID_CLOUDEVENT,
                f"the CloudEvent lacks its attribute {name!r}; add it",
                field=name, user_id=user_id, job_id=job_id, type=type_name,
            )
    if not attributes["specversion"].startswith("1."):
        return Refusal(
            ErrorCode.INVALID_CLOUDEVENT,
            f"CloudEvents {attributes['specversion'][:20]!r} is not known; send specversion 1.0",
            field="specversion",
        )
    return body, attributes


def _fill_from_cloudevent(body: dict[str, Any], attributes: dict[str, str]) -> dict[str, Any]:
    """`id` is the idempotency key, `type` and `source` stand in where the body has none."""
    filled = dict(body)
    filled.setdefault("job_id", attributes["id"])
    filled.setdefault("type", attributes["type"])
    if len(attributes["source"]) <= TAG_LENGTH_MAX:
        filled.setdefault("source", attributes["source"])
    return filled


def decode_request(value: bytes | None, headers: Headers) -> Decoded | Refusal:
    """A record of `jobs.requested` -> the checked request, or why it is refused."""
    unwrapped = _unwrap(value, headers)
    if isinstance(unwrapped, Refusal):
        return unwrapped
    body, attributes = unwrapped
    if not isinstance(body, dict):
        return Refusal(
            ErrorCode.NOT_AN_OBJECT, "the request is not a JSON object; send {…} with its fields"
        )
    if attributes:
        body = _fill_from_cloudevent(body, attributes)
    if value is not None and len(value) > REQUEST_BYTES_MAX:
        user_id, job_id, type_name = owner_of(body)
        return Refusal(
            ErrorCode.REQUEST_TOO_LARGE,
            f"the request has {len(value)} bytes, at most {REQUEST_BYTES_MAX} are taken; store the "
            "data elsewhere and send a reference",
            user_id=user_id, job_id=job_id, type=type_name,
        )
    traceparent = attributes.get("traceparent")
    if headers and traceparent is None:
        traceparent = _header(headers, "traceparent")
    return check_request(body, traceparent)


def _unusable_payload(problem: str, body: dict[str, Any]) -> Refusal:
    user_id, job_id, type_name = owner_of(body)
    return Refusal(
        ErrorCode.INVALID_FIELD, f"field 'payload': {problem}",
        field="payload", user_id=user_id, job_id=job_id, type=type_name,
    )


def _grown_payload(length: int, body: dict[str, Any]) -> Refusal:
    """JSON may grow when it is written again: 1e15 becomes 1000000000000000.0."""
    user_id, job_id, type_name = owner_of(body)
    return Refusal(
        ErrorCode.REQUEST_TOO_LARGE,
        f"the payload has {length} bytes with its numbers written out, at most "
        f"{REQUEST_BYTES_MAX} are taken; store the data elsewhere and send a reference",
        field="payload", user_id=user_id, job_id=job_id, type=type_name,
    )


def _fitted(text: bytes) -> bytes:
    """The same bytes in memory of their own size: orjson's results keep its 4 KiB buffer, and a
    million waiting payloads of 100 bytes would hold four gigabytes."""
    return b"%b" % text


def check_request(body: dict[str, Any], traceparent: str | None = None) -> Decoded | Refusal:
    """A parsed body -> the checked request, or why it is refused."""
    plain = plain_request(body)
    if plain is not None:
        payload = plain.payload
        try:
            text = canonical = _dumps(payload)
            # Producers order the keys of one and the same request as they like.
            if len(payload) > 1 or text.count(b"{") > 1:
                canonical = orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)
        except TypeError as error:
            return _unusable_payload(str(error), body)
        if len(text) > REQUEST_BYTES_MAX:
            return _grown_payload(len(text), body)
        fingerprint = _crc32(canonical, _checksum_of(plain.type))
        return Decoded(plain, _fitted(text), fingerprint, traceparent)
    try:
        request = JobRequest.model_validate(body)
    except ValidationError as invalid:
        return _refusal_of(invalid, body, JobRequest)
    try:
        canonical = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        payload_json = orjson.dumps(request.payload)
    except (TypeError, ValueError) as unwritable:
        return _unusable_payload(str(unwritable), body)
    if len(payload_json) > REQUEST_BYTES_MAX:
        return _grown_payload(len(payload_json), body)
    return Decoded(request, _fitted(payload_json), zlib.crc32(canonical), traceparent)


def decode_command(
    value: bytes | None,
) -> Command | SignalCommand | ScheduleCommand | Refusal:
    """A record of `jobs.commands` -> the checked command, or why it is refused."""
    body = parse_json(value)
    if isinstance(body, Refusal):
        return body
    if not isinstance(body, dict):
        return Refusal(ErrorCode.NOT_AN_OBJECT, "the command is not a JSON object; send {…}")
    word = body.get("command")
    model: type[Command | SignalCommand | ScheduleCommand] = Command
    if word == "signal":
        model = SignalCommand
    elif word == "schedule":
        model = ScheduleCommand
    try:
        return model.model_validate(body)
    except ValidationError as error:
        return _refusal_of(error, body, model)
