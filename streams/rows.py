"""The ledger's rows in the compacted state topic: what a new owner restores.

Owns the bytes of keys and values. Refuses to know how they are written or read.

Keys, by their first byte:
  b"j" + 16 bytes   a job; the digest is blake2b-128 of user_id, NUL, job_id
  b"l" + JSON       a limit's use: [user_id, type]
  b"c" + 16 bytes   a cancel that came before its request; the digest is that of the job
  b"d" + type       a definition that this partition has taken
  b"p"              the partition's position: applied offsets and clock
Job values: a live job (or a dead letter, kept for a redrive) is a JSON array, a newline and its
payload; an ended one is a short JSON array. A missing value (tombstone) forgets the row.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import orjson
from librt.strings import BytesWriter
from mypy_extensions import i64

from schemas.event_writer import STATE_JSON
from schemas.numbers import put_decimal
from schemas.wire import Definition
from schemas.words import State
from streams.finished import Ended, digest_of
from streams.job import Job, JobKey, Spec
from streams.kept_cancels import KeptCancel
from streams.limits import LimitState

_dumps: Final = orjson.dumps  # constants of this module: compiled code need not look them up
_loads: Final = orjson.loads
CANCEL: Final = 1  # first element of a kept cancel's row: its version
LIVE: Final = 1  # first element of a live job's row: its version
ENDED: Final = -1  # first element of an ended job's row
POSITION_KEY: Final = b"p"
_LIVE_BEGINS: Final = b"[%d," % LIVE
_ENDED_BEGINS: Final = b"[%d," % ENDED
_words: Final[dict[str, bytes]] = {}  # types, queues and priorities as JSON, a comma before each
WORDS_MAX: Final = 1_000  # then it starts anew


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
    """The whole job, as `put_live` writes it."""
    out = BytesWriter()
    put_live(out, job)
    return out.getvalue()


def put_live(out: BytesWriter, job: Job) -> None:
    """The whole job; the fields' order is the format."""
    spec = job.spec
    out.write(_LIVE_BEGINS)
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
    if job.interruptions:  # last, and left out of most rows: those without it read as 0
        _put_digits(out, job.interruptions)
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
    """The inverse of `live_value` and `ended_value`. Raises ValueError for another version."""
    head, _, payload = value.partition(b"\n")
    row: list[Any] = _loads(head)
    if row[0] == ENDED:
        state = _STATE_OF[row[1]]
        # requested and failed, and nothing in between: only a refused request ends like that.
        return Ended(row[2], row[3], state, state is State.FAILED and row[4:6] == [1, 2])
    if row[0] != LIVE:
        raise ValueError(f"job row of version {row[0]}; this ledger reads version {LIVE}")
    spec = row[17:]
    worker = row[13]
    # user_id, job_id, type, queue, priority | requested_at … traceparent, with tags in between;
    # then the job's own hand-backs, which rows of former releases lack.
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
    )


def limit_value(state: LimitState) -> bytes:
    return _dumps((state.held, state.started))


def read_limit(key: bytes, value: bytes) -> tuple[tuple[str, str], LimitState]:
    user_id, type_name = _loads(key[1:])
    held, started = _loads(value)
    return (user_id, type_name), LimitState(held, tuple(started))


def cancel_key(key: JobKey) -> bytes:
    return b"c" + digest_of(key)


def cancel_value(cancel: KeptCancel) -> bytes:
    user_id, job_id = cancel.key
    return _dumps(
        (CANCEL, user_id, job_id, cancel.kept_at, cancel.actor, cancel.reason, *cancel.cause)
    )


def read_cancel(value: bytes) -> KeptCancel:
    """The inverse of `cancel_value`. Raises ValueError for another version."""
    row: list[Any] = _loads(value)
    if row[0] != CANCEL:
        raise ValueError(f"cancel row of version {row[0]}; this ledger reads version {CANCEL}")
    return KeptCancel((row[1], row[2]), row[3], row[4], row[5], (row[6], row[7], row[8]))


def definition_value(definition: Definition) -> bytes:
    return definition.model_dump_json().encode()


def read_definition(value: bytes) -> Definition:
    return Definition.model_validate_json(value)


def input_name(topic: str, partition: int, home: int) -> str:
    """The name of an input in the position of the ledger partition `home` that reads it.

    Its own partition of a topic goes by the topic. A partition that was added to the topic later is
    "topic/partition"; no topic's name has a slash.
    """
    return topic if partition == home else f"{topic}/{partition}"


def input_place(name: str, home: int) -> tuple[str, int]:
    """Topic and partition of an input by its name."""
    topic, _, partition = name.partition("/")
    return topic, int(partition) if partition else home


def position_value(applied: dict[str, int], clock_ms: int, accepted: int) -> bytes:
    """`applied`: last decided offset by input (`input_name`); `accepted`: jobs accepted so far."""
    return _dumps({"applied": applied, "clock": clock_ms, "accepted": accepted})


def read_position(value: bytes) -> tuple[dict[str, int], int, int]:
    row = _loads(value)
    return row["applied"], row["clock"], row["accepted"]
