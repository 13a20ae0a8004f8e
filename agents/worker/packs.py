"""Ready records as plain dicts, as far as the worker counts on their fields.

Owns what makes a ready record readable. Refuses to know what is done with its jobs.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import orjson

from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.wire import ReadyJob

# What a job of a pack must have; the rest is left out where it says nothing.
_JOB_FIELDS: Final = frozenset(
    name for name, field in ReadyJob.model_fields.items() if field.is_required()
)

logger = logging.getLogger("tidemill.worker")


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
    return True
