"""What a program asks for: `Request`, its check and its bytes, and the ids of new jobs.

Owns a client's way from a request to its bytes. The rules are those of the ledger
(`tidemill.schemas.doors`); none is repeated here. Refuses to know how records reach Kafka.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from tidemill.agents.runtime.forks import tell_in_copies
from tidemill.agents.worker.requests import Request, body_of
from tidemill.schemas import doors
from tidemill.schemas.doors import Refused, encode_request

__all__ = [
    "ClientError", "InvalidRequest", "JobIds", "Request", "body_of", "encode", "encode_command",
]

_RANDOM_BITS: Final = 62  # of a version 7 UUID, below the variant
_RANDOM_MASK: Final = (1 << _RANDOM_BITS) - 1


class ClientError(Exception):
    """Anything that a client could not do."""


class InvalidRequest(ClientError, ValueError):
    """A request that the engine would refuse. The text names field, reason and way out."""


class JobIds:
    """Version 7 UUIDs that grow by at least one: unique over processes, sortable within one."""

    def __init__(self) -> None:
        self.start_anew()
        tell_in_copies(self)

    def start_anew(self) -> None:
        """At the beginning, and in a copy of the process, which must not make the same ids."""
        self._lock = threading.Lock()
        self._ms = 0
        self._random = 0

    def next(self) -> str:
        """A new id, such as 019a7c9e-3d5f-7b2e-9f31-…"""
        ms = time.time_ns() // 1_000_000
        with self._lock:
            if ms > self._ms:
                self._ms = ms
                # 12 bits stay free above, so that a burst within one millisecond can count up.
                self._random = int.from_bytes(os.urandom(9)) & ((1 << 70) - 1)
            else:
                ms = self._ms
            self._random += 1
            bits = self._random
        number = (
            (ms << 80)
            | (7 << 76)
            | ((bits >> _RANDOM_BITS & 0xFFF) << 64)
            | (2 << 62)
            | (bits & _RANDOM_MASK)
        )
        text = f"{number:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def encode(request: Request, job_id: str) -> bytes:
    """The checked value of a record on `jobs.requested`. Raises InvalidRequest."""
    try:
        return encode_request(body_of(request, job_id))
    except Refused as error:
        raise InvalidRequest(str(error)) from None


def encode_command(
    word: str, user_id: str, job_id: str, command_id: str, said: Mapping[str, Any]
) -> bytes:
    """The checked value of a record on `jobs.commands`; of what is `said`, None is left out.

    Raises InvalidRequest.
    """
    command = {
        "command": word, "user_id": user_id, "job_id": job_id, "command_id": command_id, **said
    }
    try:
        return doors.encode_command(
            {name: value for name, value in command.items() if value is not None}
        )
    except Refused as error:
        raise InvalidRequest(str(error)) from None
