"""What is read of a handler's gather and of messages between parents and members' homes.

Owns the checks and the bounds of those bodies. Refuses to know what becomes of them.

Messages, all of the policy `gather`; `of` is a `Membership`:
  {"kind": "release", "of", "traceparent", "members": [[index, request, next_id or null], ...]}
      to a member's home. next_id: run it again, under that id if its own cannot be redriven.
  {"kind": "stop", "of", "forgets", "members": [[index, user_id, job_id, next_id or null], ...]}
      to a member's home. forgets: no end is to be sent.
  {"kind": "ends", "of", "ends": [[index, end], ...]}
      to the parent's home. An end is what jobs.completed has, without what is null.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson

from tidemill.schemas.codec import DEPTH_MAX, Decoded, Refusal, check_request, depth_of
from tidemill.schemas.requests import GATHER_MEMBERS_MAX, REQUEST_BYTES_MAX, STEP_NAME_PATTERN
from tidemill.schemas.words import ErrorCode
from tidemill.streams.gathers.table import GATHER
from tidemill.streams.gathers.watchers import Membership
from tidemill.streams.policies.base import CannotTake

PACK_MEMBERS_MAX: Final = 250  # members in one message
PACK_BYTES_MAX: Final = 262_144  # bytes of them, unless it is a single one
SHARE_SLACK: Final = 1e-9  # 0.2 of 5 is one, whatever floats say

_NAME: Final = re.compile(STEP_NAME_PATTERN.removesuffix("$") + r"\Z")

Entry = tuple[int, bytes]
"""A member's index, and its element of a message as JSON."""


def is_part(outcome: dict[str, Any]) -> bool:
    """Whether a `members` says what the engine relies on."""
    requests = outcome.get("requests")
    return (
        _is_name(outcome.get("name")) and type(outcome.get("part")) is int
        and isinstance(requests, list) and bool(requests)
        and all(_is_routable(one) for one in requests)
    )


def _is_routable(request: object) -> bool:
    if not isinstance(request, dict):
        return False
    for name in ("user_id", "job_id"):
        given = request.get(name)
        if given is not None and (not isinstance(given, str) or not given):
            return False
    return True


def is_wait(waits: dict[str, Any]) -> bool:
    """Whether what a `suspended` waits for is a gather that can be."""
    members, parts, parallel = waits.get("members"), waits.get("parts"), waits.get("parallel")
    return (
        waits.get("kind") == GATHER and _is_name(waits.get("name"))
        and type(members) is int and 0 < members <= GATHER_MEMBERS_MAX
        and type(parts) is int and 0 < parts <= members
        and (parallel is None or (type(parallel) is int and parallel > 0))
        and tolerated(waits.get("tolerate"), members) is not None
    )


def _is_name(name: object) -> bool:
    return isinstance(name, str) and _NAME.match(name) is not None


def tolerated(tolerate: object, members: int) -> int | None:
    """How many members may fail; None when it makes no sense."""
    if tolerate is None:
        return 0
    if not isinstance(tolerate, dict):
        return None
    count, share = tolerate.get("count"), tolerate.get("share")
    if type(count) is int and share is None and count >= 0:
        return min(count, members)
    if count is not None or isinstance(share, bool) or not isinstance(share, int | float):
        return None
    return math.floor(share * members + SHARE_SLACK) if 0 <= share <= 1 else None


def asked_tolerance(tolerate: dict[str, Any] | None) -> dict[str, Any]:
    """What is read of it, for the event."""
    if tolerate is None:
        return {"count": 0}
    name = "count" if tolerate.get("share") is None else "share"
    return {name: tolerate[name]}


def check_member(body: dict[str, Any], traceparent: str | None) -> Decoded | Refusal:
    """The request of a member, as it was parsed with the message that it came in."""
    try:
        text = orjson.dumps(body)
    except TypeError as error:
        return Refusal(ErrorCode.TOO_DEEP, f"{error}; flatten it")
    if len(text) > REQUEST_BYTES_MAX:
        return Refusal(
            ErrorCode.REQUEST_TOO_LARGE,
            f"the request has {len(text)} bytes, at most {REQUEST_BYTES_MAX} are taken; store the "
            "data elsewhere and send a reference",
        )
    if text.count(b"[") + text.count(b"{") > DEPTH_MAX and depth_of(text) > DEPTH_MAX:
        return Refusal(
            ErrorCode.TOO_DEEP,
            f"the request is nested more than {DEPTH_MAX} deep; flatten it or send it as a string",
        )
    return check_request(body, traceparent)


def membership_of(body: dict[str, Any]) -> Membership:
    """Raises CannotTake for a body without one."""
    of = body.get("of")
    kinds = [str, str, int, str, int]
    if not isinstance(of, list) or [type(each) for each in of] != kinds:
        raise CannotTake("it names no gather")
    return (of[0], of[1], of[2], of[3], of[4])


def elements_of(
    body: dict[str, Any], name: str, kinds: tuple[type, ...], texts: int
) -> list[list[Any]]:
    """The list of that name, whose elements begin with values of those types; behind them are so
    many texts, or None in place of one. Raises CannotTake for anything else."""
    found = body.get(name)
    if not isinstance(found, list):
        raise CannotTake(f"it has no {name}")
    for one in found:
        if not isinstance(one, list) or len(one) != len(kinds) + texts:
            raise CannotTake(f"one of its {name} is none")
        if not all(type(one[at]) is kind for at, kind in enumerate(kinds)):
            raise CannotTake(f"one of its {name} is none")
        if not all(each is None or type(each) is str for each in one[len(kinds):]):
            raise CannotTake(f"one of its {name} is none")
    return found


def is_end(end: dict[str, Any]) -> bool:
    """Whether it says how a member ended, and can be kept."""
    try:
        orjson.dumps(end)
    except TypeError:
        return False
    return type(end.get("status")) is str


def packs(entries: Iterable[Entry]) -> Iterator[list[bytes]]:
    """As many in one message as fit."""
    pack: list[bytes] = []
    size = 0
    for _, text in entries:
        if pack and (len(pack) >= PACK_MEMBERS_MAX or size + len(text) > PACK_BYTES_MAX):
            yield pack
            pack, size = [], 0
        pack.append(text)
        size += len(text)
    if pack:
        yield pack
