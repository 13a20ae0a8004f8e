"""What is asked for, checked before it travels: one way in for every door.

Owns the way from Python values to the bytes of a request or command, for clients, handlers, the
command line and HTTP alike. Refuses to have rules: what comes out was read by the functions with
which the ledger reads it (`tidemill.schemas.codec`), and what JSON would change on its way is
refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn

import orjson
from pydantic import BaseModel, ValidationError

from tidemill.schemas.codec import (
    DEPTH_MAX,
    Refusal,
    decode_command,
    decode_request,
    plain_request,
)
from tidemill.schemas.portable import DUMP_OPTIONS, SENT_FORMS, NotPortable, reader_of
from tidemill.schemas.requests import REQUEST_BYTES_MAX, JobRequest, holds_nan
from tidemill.schemas.words import ErrorCode

_check: Final = JobRequest.__pydantic_validator__.validate_python

SHOWN_LENGTH_MAX: Final = 80  # characters of a wrong value in a message


class Refused(ValueError):
    """What the ledger would refuse. The text names field, reason and way out."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.field = refusal.field


def encode_request(body: Mapping[str, Any]) -> bytes:
    """The value of a record on `jobs.requested`; raises Refused.

    `body` holds the fields of a `JobRequest` that are given. Its payload is a mapping, a pydantic
    model or a dataclass; models may also stand inside a mapping.
    """
    given = dict(body)
    payload = given.get("payload")
    if payload is not None and type(payload) is not dict:
        try:
            given["payload"] = _object_of(payload)
        except _NotJson as error:
            path = f"payload.{error.path}" if error.path else "payload"
            _refuse_field("payload", f"{path!r}: {error}", given)
    elif payload is None:
        given["payload"] = {}
    _settle(given)
    value = _dumped(given)
    if not _is_plainly_right(given, value):
        decoded = decode_request(value, ())
        if isinstance(decoded, Refusal):
            _refuse(decoded, given)
    return value


def _settle(given: dict[str, Any]) -> None:
    """Forms that mean one thing and that JSON would refuse or change."""
    tags = given.get("tags")
    if isinstance(tags, set | frozenset | Iterator):
        given["tags"] = list(tags)
    for name in ("run_at", "expires_at"):
        instant = given.get(name)
        # An offset with seconds in it would be rounded.
        if isinstance(instant, datetime) and instant.tzinfo is not None:
            given[name] = instant.astimezone(UTC) if _has_odd_offset(instant) else instant


def _has_odd_offset(instant: datetime) -> bool:
    offset = instant.utcoffset()
    return offset is not None and bool(offset % timedelta(minutes=1))


def encode_command(body: Mapping[str, Any]) -> bytes:
    """The value of a record on `jobs.commands`; raises Refused."""
    given = dict(body)
    value = _dumped(given)
    decoded = decode_command(value)
    if isinstance(decoded, Refusal):
        _refuse(decoded, given)
    return value


def _is_plainly_right(given: dict[str, Any], value: bytes) -> bool:
    """Nearly all requests: checked as they are, by the rules with which the ledger checks what it
    has read. Only for values that JSON gives back as they were; the others are read."""
    if len(value) > REQUEST_BYTES_MAX or value.count(b"[") + value.count(b"{") > DEPTH_MAX:
        return False
    if type(given["payload"]) is orjson.Fragment:
        given = given | {"payload": {}}  # an object that was read back already
    if plain_request(given) is not None:
        return True
    if not all(_comes_back(each) for name, each in given.items() if name != "payload"):
        return False
    try:
        _check(given)
    except ValidationError:
        return False  # for the ledger's words
    return True


def _comes_back(value: Any) -> bool:
    kind = type(value)
    if kind is list:
        return all(type(each) is str for each in value)
    return kind in (str, int, float) or (kind is datetime and value.tzinfo is not None)


def _object_of(payload: Any) -> Any:
    if isinstance(payload, BaseModel) or _is_dataclass(payload):
        return _fragment(payload, is_object=True)
    return dict(payload) if isinstance(payload, Mapping) else payload


def _is_dataclass(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _fragment(value: Any, *, is_object: bool) -> orjson.Fragment:
    try:
        text = reader_of(type(value)).write(value, SENT_FORMS, is_object=is_object)
    except NotPortable as error:
        name = type(value).__name__
        raise _NotJson(error.field, f"{error.reason} (in a {name})") from None
    return orjson.Fragment(text)


class _NotJson(TypeError):
    """A part of a value that has no JSON form, by its path."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path


def _nested(value: Any) -> Any:
    """What orjson cannot write by itself."""
    if isinstance(value, BaseModel) or _is_dataclass(value):
        return _fragment(value, is_object=False)
    if isinstance(value, Mapping):
        return dict(value)
    raise _NotJson(
        "", f"a {type(value).__name__} is not JSON; send text, or a model whose field it is"
    )


def _dumped(given: dict[str, Any]) -> bytes:
    try:
        value = orjson.dumps(given, _nested, DUMP_OPTIONS)
    except (TypeError, RecursionError) as error:
        _refuse_unwritable(given, error)
    # `find`: `in` costs an exception more.
    if value.find(b"null") >= 0:
        for name, each in given.items():
            if holds_nan(each):
                _refuse_field(
                    name, f"{name!r}: it holds NaN or infinity, which JSON has not; use None or a "
                    "text", given,
                )
    return value


def _refuse_unwritable(given: dict[str, Any], error: Exception) -> NoReturn:
    """Say which field, and where in it, is not JSON."""
    for name, value in given.items():
        found = _unwritable(value, name)
        if found is not None:
            path, reason = found
            _refuse_field(
                name, f"{path!r}: {reason}; use JSON values, and text for what JSON has no form "
                "for", given,
            )
    _refuse_field("payload", f"'payload': {error}", given)


def _unwritable(value: Any, path: str) -> tuple[str, str] | None:
    try:
        orjson.dumps(value, _nested, DUMP_OPTIONS)
    except (TypeError, RecursionError) as error:
        parts: list[tuple[str, Any]] = []
        if isinstance(value, Mapping):
            parts = [(str(key), each) for key, each in value.items()]
        elif isinstance(value, list | tuple):
            parts = [(str(index), each) for index, each in enumerate(value)]
        for name, part in parts if path.count(".") < DEPTH_MAX else ():
            found = _unwritable(part, f"{path}.{name}")
            if found is not None:
                return found
        cause = error if isinstance(error, _NotJson) else error.__cause__
        inner = f".{cause.path}" if isinstance(cause, _NotJson) and cause.path else ""
        return f"{path}{inner}", str(cause or error)
    return None


def _refuse(refusal: Refusal, given: Mapping[str, Any]) -> NoReturn:
    """The ledger's words, with the field and what was given in it."""
    field = refusal.field or "payload"
    message = refusal.message.replace(": Value error, ", ": ", 1)
    if "field '" not in message:
        message = f"field {field!r}: {message}"
    value = given.get(field.partition(".")[0])
    if isinstance(value, datetime) and value.tzinfo is None:
        message += "; use datetime.now(UTC) or .astimezone()"
    if field != "payload" and value is not None:
        shown = repr(value)
        shown = shown if len(shown) <= SHOWN_LENGTH_MAX else f"{shown[:SHOWN_LENGTH_MAX - 3]}..."
        message += f" (given: {shown})"
    refusal.message, refusal.field = message, field
    raise Refused(refusal)


def _refuse_field(field: str, problem: str, given: Mapping[str, Any]) -> NoReturn:
    raise Refused(Refusal(ErrorCode.INVALID_FIELD, f"field {problem}", field=field))
