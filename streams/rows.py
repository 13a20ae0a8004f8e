"""The ledger's rows in the compacted state topic: what a new owner restores.

Owns the bytes of keys and values. Refuses to know how they are written or read.

Keys, by their first byte:
  b"j" + 16 bytes   a job; the digest is blake2b-128 of user_id, NUL, job_id
  b"l" + JSON       a limit's use: [user_id, type]
  b"d" + type       a definition that this partition has taken
  b"p"              the partition's position: applied offsets and clock
Job values: a live job (or a dead letter, kept for a redrive) is a JSON array, a newline and its
payload; an ended one is a short JSON array. A missing value (tombstone) forgets the row.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import orjson

from schemas.wire import Definition
from schemas.words import State
from streams.finished import Ended, digest_of
from streams.job import Job, JobKey, Spec
from streams.limits import LimitState

_dumps: Final = orjson.dumps  # constants of this module: compiled code need not look them up
_loads: Final = orjson.loads
LIVE: Final = 1  # first element of a live job's row: its version
ENDED: Final = -1  # first element of an ended job's row
POSITION_KEY: Final = b"p"


def job_key(key: JobKey) -> bytes:
    return b"j" + digest_of(key)


def key_of(spec: Spec) -> bytes:
    """The key of a job's row; the digest is made once per job."""
    if spec.row_key is None:
        spec.row_key = job_key(spec.key)
    return spec.row_key


def limit_key(user_id: str, type: str) -> bytes:
    return b"l" + _dumps((user_id, type))


def definition_key(type: str) -> bytes:
    return b"d" + type.encode()


def live_value(job: Job) -> bytes:
    """The whole job; the fields' order is the format."""
    spec = job.spec
    head = _dumps(
        (
            LIVE, job.state, job.sequence, job.run, job.attempt, job.epoch, job.rescues,
            job.queued_at, job.due_at, job.reason, job.dispatched_at, job.started_at,
            job.finished_at, job.worker, job.is_cancel_requested, job.holds_limit, job.error,
            spec.user_id, spec.job_id, spec.type, spec.queue, spec.priority, spec.requested_at,
            spec.fingerprint, spec.number, spec.max_attempts, spec.timeout_ms, spec.unique_key,
            spec.run_at, spec.expires_at, spec.source, spec.tags, spec.batch_id,
            spec.parent_job_id, spec.traceparent,
        )
    )
    return b"%b\n%b" % (head, spec.payload)


def ended_value(job: Job) -> bytes:
    """What is left of an ended job."""
    return _dumps(
        (ENDED, job.state, job.finished_at, job.spec.fingerprint, job.run, job.sequence)
    )


_STATE_OF: Final[dict[str, State]] = {state.value: state for state in State}


def read_job(value: bytes) -> Job | Ended:
    """The inverse of `live_value` and `ended_value`. Raises ValueError for another version."""
    head, _, payload = value.partition(b"\n")
    row: list[Any] = _loads(head)
    if row[0] == ENDED:
        return Ended(row[2], row[3], _STATE_OF[row[1]])
    if row[0] != LIVE:
        raise ValueError(f"job row of version {row[0]}; this ledger reads version {LIVE}")
    spec = row[17:]
    worker = row[13]
    # user_id, job_id, type, queue, priority | requested_at … traceparent, with tags in between
    asked = Spec(
        sys.intern(spec[0]), spec[1], sys.intern(spec[2]), sys.intern(spec[3]), spec[4],
        payload, spec[5], spec[6], spec[7], spec[8],
        spec[9], spec[10], spec[11], spec[12], spec[13], tuple(spec[14]), spec[15], spec[16],
        spec[17],
    )
    return Job(
        asked, _STATE_OF[row[1]], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9],
        row[10], row[11], row[12], None if worker is None else (worker[0], worker[1]), row[14],
        row[15], row[16],
    )


def limit_value(state: LimitState) -> bytes:
    return _dumps((state.held, state.started))


def read_limit(key: bytes, value: bytes) -> tuple[tuple[str, str], LimitState]:
    user_id, type_name = _loads(key[1:])
    held, started = _loads(value)
    return (user_id, type_name), LimitState(held, tuple(started))


def definition_value(definition: Definition) -> bytes:
    return definition.model_dump_json().encode()


def read_definition(value: bytes) -> Definition:
    return Definition.model_validate_json(value)


def position_value(applied: dict[str, int], clock_ms: int, accepted: int) -> bytes:
    """`applied`: last decided offset by input topic; `accepted`: jobs accepted so far."""
    return _dumps({"applied": applied, "clock": clock_ms, "accepted": accepted})


def read_position(value: bytes) -> tuple[dict[str, int], int, int]:
    row = _loads(value)
    return row["applied"], row["clock"], row["accepted"]
