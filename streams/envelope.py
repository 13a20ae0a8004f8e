"""What is around a record on jobs.internal: {kind, version, policy, body} and where it came from.

Owns the headers of that envelope, the kinds that this version reads, and their bounds. Refuses to
know what becomes of a body.

The body is the record's value; the rest of the envelope is headers behind those of the body, so
that the record of a stranger travels as it was, byte for byte. Kinds:
  request, command   a record of a stranger that belongs to another partition
  message            a JSON object that a policy sends to itself in another partition
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import orjson

from tidemill.schemas.codec import Refusal
from tidemill.schemas.requests import REQUEST_BYTES_MAX
from tidemill.schemas.words import ErrorCode
from tidemill.streams.commands import Cause
from tidemill.streams.decision import NeedsNewer

Headers = Sequence[tuple[str, bytes | None]]
MutableHeaders = list[tuple[str, bytes | None]]

ORIGIN_HEADER: Final = "tidemill-origin"
"""The first header of an envelope: "topic/partition/offset" of a forwarded record as it first
arrived; "jobs.internal/partition/number" of the partition that sent a message, whose messages are
numbered from 1."""
KIND_HEADER: Final = "tidemill-kind"
"""request, command or message. A ledger that does not know a kind ends."""
VERSION_HEADER: Final = "tidemill-version"
"""The version of the kind's form, decimal; without it 1. A ledger that does not know it ends."""
POLICY_HEADER: Final = "tidemill-policy"
"""Of a message: the id of the policy that takes it. A ledger that does not know it ends."""
NEEDS_HEADER: Final = "tidemill-needs"
"""Of what not every ledger reads: the first version of Tidemill that does."""

HEADER_MEANINGS: Final = {
    ORIGIN_HEADER: (
        "topic/partition/offset of a forwarded record as it first arrived; of a message "
        "jobs.internal, the sending partition, and the number of the message, from 1 on and "
        "without gaps."
    ),
    KIND_HEADER: "request, command: a forwarded record. message: of a policy to itself.",
    VERSION_HEADER: "The version of that form, decimal; 1 where it is not there.",
    POLICY_HEADER: "Of a message: the policy that takes it.",
    NEEDS_HEADER: "The first version of Tidemill that reads it.",
}
"""All headers of an envelope."""

REQUEST: Final = "request"
COMMAND: Final = "command"
MESSAGE: Final = "message"
KINDS: Final[dict[str, int]] = {REQUEST: 1, COMMAND: 1, MESSAGE: 1}
"""The newest version of each kind that this ledger reads. It reads the ones before too."""
_KNOWN: Final = {kind.encode(): kind for kind in KINDS}
_FIRST: Final = b"1"
MESSAGES_SINCE: Final = "0.1.0"  # first version of Tidemill that reads messages

# Bytes of a message's body and key: the largest request or result fits, also in base64. The topic
# takes twice as much.
MESSAGE_BYTES_MAX: Final = 2 * REQUEST_BYTES_MAX

_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")  # what Kafka allows as a topic's name
_WORD: Final = re.compile(rb"[a-z][a-z0-9_-]{0,63}")  # what a kind and a policy may be called
_VERSION: Final = re.compile(rb"[1-9][0-9]{0,8}")
_NUMBER: Final = re.compile(r"[0-9]{1,18}")  # fits the 64 bits of an offset


class Envelope:
    """What was read of the headers of a record on jobs.internal."""

    __slots__ = ("carried", "kind", "needs", "origin", "policy")

    def __init__(
        self, kind: str, origin: Cause, carried: MutableHeaders, policy: bytes | None,
        needs: str | None,
    ) -> None:
        self.kind = kind  # one of KINDS
        self.origin = origin
        self.carried = carried  # the headers of the body
        self.policy = policy
        self.needs = needs  # first version of Tidemill that reads it, where that is said


def read_envelope(headers: Headers, here: Cause) -> Envelope | Refusal:
    """The envelope of the record at `here`, or why it has none.

    Raises NeedsNewer for a kind or a version that came later than this ledger.
    """
    begin = _begin_of(headers)
    ours = dict(headers[begin:])
    origin = _parse_origin(ours.get(ORIGIN_HEADER))
    if origin is None:
        return _broken(here, f"without a usable {ORIGIN_HEADER} header")
    # A header of that name before the envelope is a stranger's, unless the envelope has none.
    kind = ours.get(KIND_HEADER) or dict(headers).get(KIND_HEADER)
    version = ours.get(VERSION_HEADER)
    known = REQUEST if kind is None else _KNOWN.get(kind)
    if known is None or version not in (None, _FIRST):
        refusal = _unknown(here, headers, b"request" if kind is None else kind, version)
        if refusal is not None:
            return refusal
    carried = list(headers[:begin])
    carried += [header for header in headers[begin:] if header[0] not in HEADER_MEANINGS]
    needs = _text_of(ours.get(NEEDS_HEADER))
    return Envelope(known or "", origin, carried, ours.get(POLICY_HEADER), needs)


def _unknown(
    here: Cause, headers: Headers, kind: bytes, version: bytes | None
) -> Refusal | None:
    """What is said of a kind or a version that is not of the first ones; None when it is known."""
    if _WORD.fullmatch(kind) is None and kind not in _KNOWN:
        return _broken(here, f"whose {KIND_HEADER} header is no word")
    if version is not None and _VERSION.fullmatch(version) is None:
        return _broken(here, f"whose {VERSION_HEADER} header is no version")
    newest = KINDS.get(kind.decode())
    what = f"{place_of(here)} is a record of the kind {kind.decode()!r}"
    if newest is not None and version is not None:
        if int(version) <= newest:
            return None
        what += f" in version {version.decode()}"
    raise NeedsNewer(what, _text_of(dict(headers).get(NEEDS_HEADER)))


def place_of(here: Cause) -> str:
    """The place of a record, for people."""
    return f"{here[0]}[{here[1]}]@{here[2]}"


def _begin_of(headers: Headers) -> int:
    """Where the envelope begins: a stranger's headers may have any names, ours come behind them."""
    for index in range(len(headers) - 1, -1, -1):
        if headers[index][0] == ORIGIN_HEADER:
            return index
    return len(headers)


def _broken(here: Cause, what: str) -> Refusal:
    """A record that no ledger has written."""
    return Refusal(
        ErrorCode.BROKEN_FORWARD,
        f"a record on {here[0]} {what}; only ledgers write there: send requests to the requests "
        "topic",
    )


def policy_of(envelope: Envelope) -> str | None:
    """The policy that takes a message; None when the envelope names none."""
    policy = envelope.policy
    return None if policy is None or _WORD.fullmatch(policy) is None else policy.decode()


def read_body(value: bytes | None) -> dict[str, Any] | Refusal:
    """The body of a message."""
    if value is None:
        return broken_message("has no body")
    if len(value) > MESSAGE_BYTES_MAX:
        return broken_message(f"has {len(value)} bytes, at most {MESSAGE_BYTES_MAX} are taken")
    try:
        body = orjson.loads(value)
    except ValueError as error:
        return broken_message(f"is no JSON: {error}")
    if not isinstance(body, dict):
        return broken_message("is no JSON object")
    return body


def broken_message(what: str) -> Refusal:
    """A message that no ledger can have written."""
    return Refusal(ErrorCode.BROKEN_MESSAGE, f"a message that {what}; only ledgers write messages")


def forward_headers(headers: Headers, kind: str, origin: Cause) -> MutableHeaders:
    """The headers of a forwarded record: its own, then the envelope. Both kinds are of version 1,
    which every ledger reads without being told."""
    text = f"{origin[0]}/{origin[1]}/{origin[2]}"
    return [*headers, (ORIGIN_HEADER, text.encode()), (KIND_HEADER, kind.encode())]


def message_headers(
    *, policy: str, internal: str, partition: int, number: int, needs: str
) -> MutableHeaders:
    """The headers of the message with that number of that partition."""
    return [
        (ORIGIN_HEADER, f"{internal}/{partition}/{number}".encode()),
        (KIND_HEADER, MESSAGE.encode()),
        (VERSION_HEADER, b"%d" % KINDS[MESSAGE]),
        (POLICY_HEADER, policy.encode()),
        (NEEDS_HEADER, needs.encode()),
    ]


def _text_of(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")[:64]


def _parse_origin(value: bytes | None) -> Cause | None:
    if value is None:
        return None
    parts = value.decode("utf-8", "replace").rsplit("/", 2)
    if len(parts) != 3 or _TOPIC.fullmatch(parts[0]) is None:
        return None
    if not all(_NUMBER.fullmatch(part) for part in parts[1:]):
        return None
    return parts[0], int(parts[1]), int(parts[2])
