"""Ready records as plain dicts, as far as the worker counts on their fields.

Owns what makes a ready record readable, and puts together what came in several records. Refuses to
know what is done with the jobs.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import orjson

from tidemill.agents.worker.attempts import Attempt
from tidemill.agents.worker.memory_parts import MemoryParts
from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.wire import PARTED_TYPE, MemoryPart, ReadyJob
from tidemill.schemas.words import Reason

# What a job of a pack must have; the rest is left out where it says nothing.
_JOB_FIELDS: Final = frozenset(
    name for name, field in ReadyJob.model_fields.items() if field.is_required()
)

WAITING_BYTES_MAX: Final = 67_108_864  # of records, 64 MiB: what has come in parts and not begun
_PART_FIELDS: Final = frozenset(MemoryPart.model_fields)

logger = logging.getLogger("tidemill.worker")


class PackReader:
    """Reads one ready record after the other."""

    def __init__(self) -> None:
        self.parts = MemoryParts()
        self._large: list[tuple[Attempt, int]] = []

    @property
    def is_full(self) -> bool:
        """Whether jobs that have not begun hold so much memory that no more may come. Each of them
        begins or is handed back within seconds."""
        if not self._large:
            return False
        self._large = [one for one in self._large if one[0].is_waiting]
        return sum(size for _, size in self._large) > WAITING_BYTES_MAX

    def note(self, body: dict[str, Any], attempts: list[Attempt]) -> None:
        """The jobs of a pack are attempts now."""
        if "parted" in body:
            self._large.append((attempts[0], body["parted"].get("bytes", 0)))

    def read(self, value: bytes | None) -> dict[str, Any] | None:
        """The pack; None when the record holds no jobs for now: it cannot be read, or is a part of
        what a later one remembers."""
        body = read_pack(value)
        if body is None:
            return None
        if "part" in body:
            self.parts.keep(body["part"], len(value or b""))
            return None
        if "parted" in body:
            self._join(body["jobs"][0], body["parted"])
        return body

    def _join(self, job: dict[str, Any], parted: dict[str, Any]) -> None:
        """Gives the job its type and what it remembers, if all of that is there."""
        memory = self.parts.take(job, parted["parts"])
        if memory is not None:
            job["type"], job["memory"], parted["bytes"] = parted["type"], *memory


def why_not_run(job: dict[str, Any]) -> Reason:
    """Why a job has a type that this worker does not run."""
    return Reason.MEMORY_INCOMPLETE if job["type"] == PARTED_TYPE else Reason.TYPE_NOT_RUN


def read_pack(value: bytes | None) -> dict[str, Any] | None:
    """The pack as plain dicts; it is our own record, so it is not validated again."""
    try:
        body: dict[str, Any] = orjson.loads(value or b"")
        version = body["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        logger.error("a ready record is no pack (%r) and is left out", error)
        return None
    if version != SCHEMA_VERSION:
        logger.error(
            "a ready record has schema version %r, this worker reads %d, and it is left out: run "
            "the same release as the ledger", version, SCHEMA_VERSION,
        )
        return None
    if not _has_shape(body):
        logger.error("a ready record lacks fields of a pack and is left out: %.200r", value)
        return None
    return body


def _has_shape(body: dict[str, Any]) -> bool:
    """Whether the fields are there that the worker counts on: rubbish must not end it."""
    jobs = body.get("jobs")
    if (
        not isinstance(body.get("queue"), str)
        or not isinstance(body.get("ledger_partition"), int)
        or not isinstance(jobs, list)
    ):
        return False
    for job in jobs:  # a generator's turns cost as much as what they look at
        if not isinstance(job, dict) or not job.keys() >= _JOB_FIELDS:
            return False
        if not (
            isinstance(job["type"], str)
            and isinstance(job["timeout_ms"], int)
            and isinstance(job["epoch"], int)
        ):
            return False
    return ("part" not in body or _is_part(body["part"])) and (
        "parted" not in body or _is_parted(body["parted"], len(jobs))
    )


def _is_part(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.keys() >= _PART_FIELDS
        and isinstance(part["number"], int) and isinstance(part["entries"], list)
    )


def _is_parted(parted: Any, jobs: int) -> bool:
    return (
        isinstance(parted, dict) and jobs == 1
        and isinstance(parted.get("type"), str) and isinstance(parted.get("parts"), int)
    )
