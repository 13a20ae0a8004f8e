"""A fan-out as its handler asks for it, and the ends of its members as the handler gets them.

Owns the check of requests, of `parallel` and `tolerate`, the parts in which requests travel, and
what a gather returns or raises. Refuses to know how a part becomes durable
(`tidemill.agents.worker.suspending`) and when a member runs (the ledger's partition of the job).

Both ways may be long for a loop that others share, so both are generators that pause.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson

from tidemill.agents.worker.completed import CompletedJob
from tidemill.agents.worker.errors import MembersFailed
from tidemill.agents.worker.requests import Request, body_of
from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.doors import Refused, encode_request
from tidemill.schemas.requests import (
    GATHER_BYTES_MAX,
    GATHER_MEMBERS_MAX,
    GATHER_PART_BYTES_MAX,
)
from tidemill.schemas.words import Reason, State

KIND: Final = "gather"  # of what is remembered of a gather that is over
ENDS: Final = "ends"  # of the entries beside it, under the same name
PAUSE_EVERY: Final = 200  # requests, or ends, between two pauses: some 5 ms of work
PART_HEAD_BYTES: Final = 2_048  # of a part beside its requests: whose it is, and its name
NAMED_MAX: Final = 10  # failed members that an error names
FAILED_STATES: Final = frozenset({State.FAILED, State.CANCELLED, State.EXPIRED})

_SHARE: Final = re.compile(r"(\d{1,3}(?:\.\d+)?)\s*%", re.ASCII)
# What an end leaves out where there is nothing to say: a member that was never asked for, say.
_BLANK: Final[dict[str, Any]] = {
    "queue": "", "reason": None, "result": None, "error": None, "attempts": 0, "started_at": None,
    "wait_ms": None, "run_ms": None, "run": 1, "sequence": 0, "schema_version": SCHEMA_VERSION,
}


class Gather:
    """What one call asks for."""

    def __init__(
        self, name: str, requests: Iterable[Request], parallel: object, tolerate: object,
        user_id: str,
    ) -> None:
        self.name = name
        self._what = f"gather {name!r}"
        self._user_id = user_id
        self._requests = self._listed(requests)
        self._parallel = self._checked_parallel(parallel)
        self._tolerate = self._checked_tolerate(tolerate)
        self._parts: list[list[orjson.Fragment]] = []

    def __len__(self) -> int:
        return len(self._requests)

    def prepare(self) -> Iterator[None]:
        """Checks all requests and puts them into parts. Raises ValueError."""
        size, total = GATHER_PART_BYTES_MAX, 0
        for index, request in enumerate(self._requests):
            if index and index % PAUSE_EVERY == 0:
                yield
            text = self._encoded(index, request)
            total += len(text)
            if total > GATHER_BYTES_MAX:
                raise ValueError(
                    f"{self._what}: requests[{index}].payload: with this one the requests have "
                    f"{total} bytes, at most {GATHER_BYTES_MAX} are taken; store the data "
                    "elsewhere and send references"
                )
            if size + len(text) > GATHER_PART_BYTES_MAX:
                self._parts.append([])
                size = PART_HEAD_BYTES
            self._parts[-1].append(orjson.Fragment(text))
            size += len(text) + 1

    def words(self) -> list[dict[str, Any]]:
        """What is said of the members before the attempt ends, in order."""
        return [
            {"kind": "members", "name": self.name, "part": number, "requests": requests}
            for number, requests in enumerate(self._parts)
        ]

    def waits(self) -> dict[str, Any]:
        """What the attempt ends with."""
        return {
            "kind": KIND, "name": self.name, "parts": len(self._parts), "members": len(self),
            "parallel": self._parallel, "tolerate": self._tolerate,
        }

    def _listed(self, requests: Iterable[Request]) -> list[Request]:
        if isinstance(requests, str | bytes | dict) or not isinstance(requests, Iterable):
            raise ValueError(
                f"{self._what}: requests: a {type(requests).__name__} was given; give a list of "
                "tidemill.Request"
            )
        listed = list(requests)
        if len(listed) > GATHER_MEMBERS_MAX:
            raise ValueError(
                f"{self._what}: requests: {len(listed)} were given, at most {GATHER_MEMBERS_MAX} "
                "are taken; gather them in several calls, or let members gather the others"
            )
        return listed

    def _checked_parallel(self, parallel: object) -> int | None:
        if parallel is None:
            return None
        if type(parallel) is not int or parallel < 1:
            raise ValueError(
                f"{self._what}: parallel: {parallel!r} was given; give 1 or more, or None for all "
                "at once"
            )
        return parallel

    def _checked_tolerate(self, tolerate: object) -> dict[str, Any]:
        if tolerate is None:
            return {"count": 0}
        if type(tolerate) is int and tolerate >= 0:
            return {"count": tolerate}
        share = _SHARE.fullmatch(tolerate.strip()) if isinstance(tolerate, str) else None
        if share is None or float(share[1]) > 100:
            raise ValueError(
                f"{self._what}: tolerate: {tolerate!r} was given; give how many members may fail, "
                "such as 5, or which share of them, such as '20%'"
            )
        return {"share": float(share[1]) / 100}

    def _encoded(self, index: int, request: object) -> bytes:
        where = f"{self._what}: requests[{index}]"
        if not isinstance(request, Request):
            raise ValueError(
                f"{where}: a {type(request).__name__} is no tidemill.Request; write "
                "Request(type=…, user_id=…, payload=…), or job.request(payload, user_id=…)"
            )
        body = body_of(request, request.job_id)
        body = {name: value for name, value in body.items() if value is not None}
        body.setdefault("user_id", self._user_id)
        try:
            return encode_request(body)
        except Refused as error:
            raise ValueError(f"{where}.{error.field}: {error}") from None


class Ends:
    """What a gather has brought."""

    def __init__(self, name: str, told: dict[str, Any], ends: list[list[Any]]) -> None:
        self._name = name
        self._is_tolerated: bool = told["is_tolerated"]
        self._ends = ends
        #: In the order of the requests, once all are read.
        self.found: list[CompletedJob] = []

    def read(self) -> Iterator[None]:
        """Reads all ends. Raises MembersFailed when more have failed than are tolerated."""
        for count, (_, end) in enumerate(sorted(self._ends, key=_index_of)):
            if count and count % PAUSE_EVERY == 0:
                yield
            self.found.append(_completed(end))
        if not self._is_tolerated:
            bad = [one for one in self.found if one.status in FAILED_STATES]
            failed = [one for one in bad if one.reason != Reason.NOT_RELEASED]
            text = _told(self._name, failed, len(self.found), len(bad) - len(failed))
            raise MembersFailed(text, failed=failed)


def _index_of(end: list[Any]) -> int:
    index: int = end[0]
    return index


def _completed(end: dict[str, Any]) -> CompletedJob:
    fields = _BLANK | {"requested_at": end["finished_at"]} | end
    return CompletedJob.model_validate(fields)


def _told(name: str, failed: list[CompletedJob], members: int, unasked: int) -> str:
    """The text of MembersFailed: first those that failed by themselves, then who was stopped."""
    first = sorted(failed, key=lambda one: one.status is not State.FAILED)[:NAMED_MAX]
    named = [
        f"{one.job_id} ({one.status.value if one.error is None else one.error.code})"
        for one in first
    ]
    others = f" and {len(failed) - NAMED_MAX} more" if len(failed) > NAMED_MAX else ""
    rest = f"; {unasked} were not asked for any more" if unasked else ""
    return (
        f"{len(failed)} of {members} members of gather {name!r} failed or were stopped, more than "
        f"it tolerates: {', '.join(named)}{others}{rest}"
    )
