"""The rows of jobs in the compacted state topic: what a new owner restores.

Owns the bytes of their keys and values. Refuses to know how they are written or read.

The state topic has rows of several tables, told apart by the first byte of their keys:
  b"j" + 16 bytes   a job; the digest is blake2b-128 of user_id, NUL, job_id (`jobs`)
  b"l" + JSON       a limit's use: [user_id, type] (`policies.rate_limit`)
  b"c" + 16 bytes   a cancel that came before its request; the job's digest (`kept_cancels`)
  b"d" + type       a definition that this partition has taken (`definitions`)
  b"s" + name       a schedule and its next instant (`schedules.table`)
  b"m" + 16 bytes   and a name: what a job remembers under that name (`memory`)
  b"g" + 16 bytes   a gather: its header, parts and ends (`gathers.table`)
  b"w" + 16 bytes   who waits for a member's end; the member's digest (`gathers.watchers`)
  b"p"              the partition's position: applied offsets and clock (`position`)
Job values: a live job (or a dead letter, kept for a redrive) is a JSON array, a newline and its
payload; an ended one is a short JSON array. A missing value (tombstone) forgets the row.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import orjson
from librt.strings import BytesWriter
from mypy_extensions import i64

from tidemill.schemas.event_writer import STATE_JSON
from tidemill.schemas.numbers import put_decimal
from tidemill.schemas.words import Reason, State
from tidemill.streams.job import (
    HANDED_BACK,
    NO_WORKER,
    RATE_LIMIT,
    UNKNOWN_TYPE,
    Job,
    JobKey,
    Spec,
    WaitKey,
)
from tidemill.streams.store.finished import Ended, digest_of
from tidemill.streams.store.table import UnknownRow

_dumps: Final = orjson.dumps  # constants of this module: compiled code need not look them up
_loads: Final = orjson.loads
KIND: Final = b"j"  # first byte of the key of a job's row
LIVE: Final = 2  # first element of a live job's row: its version
SUSPENDED: Final = 3  # the same of a job that was suspended in this run
LIVE_READ: Final = (1, LIVE, SUSPENDED)  # versions that this ledger reads
ENDED: Final = -1  # first element of an ended job's row
_LIVE_BEGINS: Final = b"[%d," % LIVE
_SUSPENDED_BEGINS: Final = b"[%d," % SUSPENDED
_ENDED_BEGINS: Final = b"[%d," % ENDED
_words: Final[dict[str, bytes]] = {}  # types, queues and priorities as JSON, a comma before each
WORDS_MAX: Final = 1_000  # then it starts anew


def job_key(key: JobKey) -> bytes:
    return KIND + digest_of(key)


def key_of(spec: Spec) -> bytes:
    """The key of a job's row; the digest is made once per job."""
    if spec.row_key is None:
        spec.row_key = job_key(spec.key)
    return spec.row_key


def live_value(job: Job) -> bytes:
    """The whole job, as `put_live` writes it."""
    out = BytesWriter()
    put_live(out, job)
    return out.getvalue()


def put_live(out: BytesWriter, job: Job) -> None:
    """The whole job; the fields' order is the format."""
    spec = job.spec
    out.write(_SUSPENDED_BEGINS if job.suspensions else _LIVE_BEGINS)
    out.write(STATE_JSON[job.state])
    for number in (job.sequence, job.run, job.attempt, job.epoch, job.rescues, job.queued_at):
        _put_digits(out, number)
    _put_number(out, job.due_at)
    _put_text(out, job.reason)
    _put_number(out, job.dispatched_at)
    _put_number(out, job.started_at)
    _put_number(out, job.finished_at)
    worker = job.worker
    out.write(b",null" if worker is None else b",%b" % _dumps((worker[0], worker[1])))
    out.write(b",true" if job.is_cancel_requested else b",false")
    out.write(b",true" if job.holds_limit else b",false")
    out.write(b",null," if job.error is None else b",%b," % _dumps(job.error))
    out.write(_dumps(spec.user_id))
    out.write(b",")
    out.write(_dumps(spec.job_id))
    _put_word(out, spec.type)
    _put_word(out, spec.queue)
    _put_word(out, spec.priority)
    for number in (
        spec.requested_at, spec.fingerprint, spec.number, spec.max_attempts, spec.timeout_ms
    ):
        _put_digits(out, number)
    _put_text(out, spec.unique_key)
    _put_number(out, spec.run_at)
    _put_number(out, spec.expires_at)
    _put_text(out, spec.source)
    out.write(b",%b" % _dumps(spec.tags) if spec.tags else b",[]")
    _put_text(out, spec.batch_id)
    _put_text(out, spec.parent_job_id)
    _put_text(out, spec.traceparent)
    _put_digits(out, job.returns)
    # Last, and left out of most rows: those without them read as 0 and None.
    if job.interruptions or job.waits_for is not None or job.suspensions:
        _put_digits(out, job.interruptions)
        if job.waits_for is not None:
            out.write(b",")
            out.write(_dumps(job.waits_for))
        elif job.suspensions:
            out.write(b",null")
        if job.suspensions:
            _put_digits(out, job.suspensions)
    out.write(b"]\n")
    out.write(spec.payload)


def _put_digits(out: BytesWriter, number: i64) -> None:
    out.write(b",")
    put_decimal(out, number)


def _put_number(out: BytesWriter, number: int | None) -> None:
    if number is None:
        out.write(b",null")
    else:
        _put_digits(out, number)


def _put_text(out: BytesWriter, text: str | None) -> None:
    if text is None:
        out.write(b",null")
    else:
        out.write(b",")
        out.write(_dumps(text))


def _put_word(out: BytesWriter, word: str) -> None:
    """A text that many jobs share."""
    found = _words.get(word)
    if found is None:
        if len(_words) >= WORDS_MAX:
            _words.clear()
        found = _words[word] = b",%b" % _dumps(word)
    out.write(found)


def ended_value(job: Job) -> bytes:
    """What is left of an ended job."""
    out = BytesWriter()
    out.write(_ENDED_BEGINS)
    out.write(STATE_JSON[job.state])
    _put_number(out, job.finished_at)
    for number in (job.spec.fingerprint, job.run, job.sequence):
        _put_digits(out, number)
    out.write(b"]")
    return out.getvalue()


_STATE_OF: Final[dict[str, State]] = {state.value: state for state in State}


def read_job(value: bytes) -> Job | Ended:
    """The inverse of `live_value` and `ended_value`. Raises UnknownRow for another version."""
    head, _, payload = value.partition(b"\n")
    row: list[Any] = _loads(head)
    if row[0] == ENDED:
        state = _STATE_OF[row[1]]
        # requested and failed, and nothing in between: only a refused request ends like that.
        return Ended(row[2], row[3], state, state is State.FAILED and row[4:6] == [1, 2])
    if row[0] not in LIVE_READ:
        raise UnknownRow(
            f"a job's row of version {row[0]}; this ledger reads versions up to {SUSPENDED}"
        )
    spec = row[17:]
    worker = row[13]
    # user_id, job_id, type, queue, priority | requested_at … traceparent, with tags in between;
    # then the job's own hand-backs, interruptions, wait and suspensions, which not every row has.
    asked = Spec(
        sys.intern(spec[0]), spec[1], sys.intern(spec[2]), sys.intern(spec[3]), spec[4],
        payload, spec[5], spec[6], spec[7], spec[8],
        spec[9], spec[10], spec[11], spec[12], spec[13], tuple(spec[14]), spec[15], spec[16],
        spec[17],
    )
    return Job(
        asked, _STATE_OF[row[1]], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9],
        row[10], row[11], row[12], None if worker is None else (worker[0], worker[1]), row[14],
        row[15], row[16], spec[18] if len(spec) > 18 else 0, spec[19] if len(spec) > 19 else 0,
        _wait_of_version_1(row, asked) if row[0] == 1
        else tuple(spec[20]) if len(spec) > 20 and spec[20] is not None else None,
        spec[21] if len(spec) > 21 else 0,
    )


def _wait_of_version_1(row: list[Any], spec: Spec) -> WaitKey | None:
    """Rows of version 1 say what a job waits for by the word for readers alone."""
    reason = row[9] if row[1] == State.SCHEDULED else None
    if reason == Reason.UNKNOWN_TYPE:
        return (UNKNOWN_TYPE, spec.type)
    if reason == Reason.RATE_LIMITED:
        return (RATE_LIMIT, spec.user_id, spec.type)
    if reason == Reason.HANDED_BACK:
        return HANDED_BACK
    if reason == Reason.TYPE_NOT_RUN or reason == Reason.QUEUE_NOT_SERVED:
        return (NO_WORKER, reason)
    return None
