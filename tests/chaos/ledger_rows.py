"""Rebuilds the ledger's state from `jobs.events` and compares it with the rows that it keeps.

Owns a small decoder of its own for the rows of the compacted state topic, written from the
documented format: keys start with b"j" (job), b"l" (limit), b"c" (a cancel that waits for its
request), b"e" (a signal that nobody waits for yet), b"m" (what a job remembers), b"g" (a gather),
b"w" (who waits for a member), b"d" (definition), b"s" (schedule), b"p" (position); job rows
are JSON arrays whose first element is 3, 2 or 1 (live, or a dead letter) or -1 (ended). Refuses to
know any code of the engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

import orjson

from tests.chaos.jobfold import JobFold, JobId, Step, Trace
from tests.chaos.kept import Place
from tests.chaos.legal import TERMINAL
from tests.chaos.promises import LimitFold, epoch_ms
from tests.chaos.rawlog import RawRecord
from tests.chaos.report import Report
from tests.chaos.signals import SignalId

LIVE_ROWS: Final = (1, 2, 3)  # the second says what a job waits for, the third was suspended
ENDED_ROW: Final = -1
WAIT_PLACE: Final = 37  # in a live row, which ends before it when its job waits for nothing


@dataclass(slots=True)
class Rows:
    """The newest row of each key, by partition."""

    jobs: dict[bytes, tuple[int, list[Any]]] = field(default_factory=dict)
    limits: dict[tuple[str, str], tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    positions: dict[int, dict[str, Any]] = field(default_factory=dict)
    #: By partition, after each group that is still in the log: messages sent, and what was applied.
    groups: dict[int, list[tuple[int, dict[str, int]]]] = field(default_factory=dict)
    cancels: dict[JobId, Place] = field(default_factory=dict)
    signals: dict[SignalId, Place] = field(default_factory=dict)
    #: Name -> kind and result.
    memory: dict[JobId, dict[str, tuple[str, Any]]] = field(default_factory=dict)
    gathers: dict[bytes, JobId] = field(default_factory=dict)  # of their headers
    parts_of: set[bytes] = field(default_factory=set)  # gathers that have parts or ends
    watched: set[JobId] = field(default_factory=set)


def digest_of(key: JobId) -> bytes:
    """The 16 bytes that stand for a job in a row's key."""
    return blake2b(f"{key[0]}\x00{key[1]}".encode(), digest_size=16).digest()


def read_rows(report: Report, records: Iterable[RawRecord]) -> Rows:
    """Folds the state topic: the last record of a key counts, a tombstone forgets it."""
    newest: dict[tuple[int, bytes], bytes] = {}
    rows = Rows()
    for record in records:
        place = (record.partition, record.key or b"")
        if record.value is None:
            newest.pop(place, None)
        else:
            newest[place] = record.value
        if record.key == b"p" and record.value is not None:
            row = orjson.loads(record.value)
            group = (row.get("sent", 0), row["applied"])
            rows.groups.setdefault(record.partition, []).append(group)
    for (partition, key), value in newest.items():
        _read_row(report, rows, partition, key, value)
    return rows


def _read_row(report: Report, rows: Rows, partition: int, key: bytes, value: bytes) -> None:
    match key[:1]:
        case b"j":
            if key[1:] in rows.jobs:
                report.violate("row_in_two_partitions", f"{key[1:].hex()}, also {partition}")
            rows.jobs[key[1:]] = (partition, orjson.loads(value.partition(b"\n")[0]))
        case b"l":
            user_id, type_name = orjson.loads(key[1:])
            held, started = orjson.loads(value)
            rows.limits[(user_id, type_name)] = (held, tuple(started))
        case b"p":
            rows.positions[partition] = orjson.loads(value)
        case b"c":
            _, user_id, job_id, _, _, _, *place = orjson.loads(value)
            if key[1:] != digest_of((user_id, job_id)):
                report.violate("unknown_row", f"partition {partition}, key {key!r:.60}")
            rows.cancels[(user_id, job_id)] = (place[0], place[1], place[2])
        case b"e":
            _, user_id, job_id, name, _, _, *place, _ = orjson.loads(value)
            if key[1:] != digest_of((user_id, job_id)) + name.encode():
                report.violate("unknown_row", f"partition {partition}, key {key!r:.60}")
            rows.signals[(user_id, job_id, name)] = (place[0], place[1], place[2])
        case b"m":
            _, user_id, job_id, _, (name, kind, result) = orjson.loads(value)
            if key[1:] != digest_of((user_id, job_id)) + name.encode():
                report.violate("unknown_row", f"partition {partition}, key {key!r:.60}")
            rows.memory.setdefault((user_id, job_id), {})[name] = (kind, result)
        case b"g":
            row = orjson.loads(value)
            digest, form = key[1:17], key[17:18]
            if form == b"h":
                text = f"{row[1]}\x00{row[2]}\x00{row[4]}".encode()
                if blake2b(text, digest_size=16).digest() != digest:
                    report.violate("unknown_row", f"partition {partition}, key {key!r:.60}")
                rows.gathers[digest] = (row[1], row[2])
            else:
                rows.parts_of.add(digest)
        case b"w":
            _, user_id, job_id, _ = orjson.loads(value)
            if key[1:] != digest_of((user_id, job_id)):
                report.violate("unknown_row", f"partition {partition}, key {key!r:.60}")
            rows.watched.add((user_id, job_id))
        case b"d" | b"s":
            pass  # a definition, a schedule: not made of events
        case _:
            report.violate("unknown_row", f"partition {partition}, key {key!r:.60}")


def check_rows(report: Report, rows: Rows, jobs: JobFold, limits: LimitFold) -> None:
    """Each job of the log has the row that its events give, and no row is left over."""
    left = set(rows.jobs)
    for trace in jobs.jobs.values():
        digest = digest_of(trace.key)
        found = rows.jobs.get(digest)
        if found is None:
            report.violate("row_missing", f"{trace.key} is {trace.state}", trace.story())
            continue
        left.discard(digest)
        _check_job_row(report, trace, *found)
    for digest in left:
        report.violate("row_invented", f"row {rows.jobs[digest][1]!r:.200}")
    _check_limits(report, rows, limits)
    for trace in jobs.jobs.values():
        # A job that may run again remembers.
        wanted = trace.remembered if trace.is_live or trace.state == "failed" else {}
        if rows.memory.get(trace.key, {}) != wanted:
            report.violate(
                "memory_disagrees",
                f"{trace.key}: the rows say {rows.memory.get(trace.key)}, the log {wanted}",
                trace.story(),
            )
    for key in rows.cancels.keys() | jobs.kept.waiting.keys():
        kept, told = rows.cancels.get(key), jobs.kept.waiting.get(key)
        if kept != told:
            report.violate("kept_cancel_disagrees", f"{key}: the row says {kept}, the log {told}")
    for of in rows.signals.keys() | jobs.signals.waiting.keys():
        kept, told = rows.signals.get(of), jobs.signals.waiting.get(of)
        if kept != told:
            report.violate("kept_signal_disagrees", f"{of}: the row says {kept}, the log {told}")


def check_gathers(report: Report, rows: Rows, jobs: JobFold) -> None:
    """What is kept of gathers belongs to jobs that may go on, and nobody waits for ended jobs."""
    for digest, key in rows.gathers.items():
        trace = jobs.jobs.get(key)
        if trace is None or not (trace.is_live or trace.state == "failed"):
            report.violate("gather_left_over", f"{key}: {None if trace is None else trace.state}")
        rows.parts_of.discard(digest)
    for digest in rows.parts_of:
        report.violate("gather_left_over", f"rows without a header: {digest.hex()}")
    for key in rows.watched:
        trace = jobs.jobs.get(key)
        if trace is None or not trace.is_live:
            report.violate("watcher_left_over", f"{key}: {None if trace is None else trace.state}")


def _check_job_row(report: Report, trace: Trace, partition: int, row: list[Any]) -> None:
    last = [step for step in trace.steps if step.sequence is not None][-1]
    if row[0] in LIVE_ROWS:
        found = {
            "partition": partition, "state": row[1], "sequence": row[2], "run": row[3],
            "attempt": row[4], "epoch": row[5], "user_id": row[17], "job_id": row[18],
            "waits_for": row[WAIT_PLACE] if len(row) > WAIT_PLACE else None,
        }
        wanted = {
            "partition": trace.partition, "state": trace.state, "sequence": trace.sequence,
            "run": trace.run, "attempt": last.attempt, "epoch": last.epoch,
            "user_id": trace.user_id, "job_id": trace.job_id,
            "waits_for": _wait_of(trace, last) if row[0] > 1 else None,
        }
        # A failed job keeps its whole row, so that it can be redriven.
        is_kept = trace.is_live or trace.state == "failed"
    elif row[0] == ENDED_ROW:
        found = {
            "partition": partition, "state": row[1], "finished_at": row[2], "run": row[4],
            "sequence": row[5],
        }
        wanted = {
            "partition": trace.partition, "state": trace.state,
            "finished_at": epoch_ms(last.occurred_at), "run": trace.run,
            "sequence": trace.sequence,
        }
        is_kept = trace.state in TERMINAL
    else:
        report.violate("unknown_row", f"{trace.key}: version {row[0]}")
        return
    if found != wanted or not is_kept:
        report.violate(
            "row_disagrees", f"{trace.key}: the row says {found}, its events {wanted}",
            trace.story(),
        )


def _wait_of(trace: Trace, last: Step) -> list[str] | None:
    """What a job waits for, from the last word that was told of it."""
    if trace.state == "awaiting":
        return trace.waits_for
    if trace.state != "scheduled":
        return None
    match last.reason:
        case "unknown_type":
            return ["unknown_type", trace.type]
        case "rate_limited":
            return ["rate_limit", trace.user_id, trace.type]
        case "concurrency_limited":
            return ["concurrency", trace.user_id, trace.type]
        case "joined":
            return ["collapse", trace.user_id, trace.type, last.winner or ""]
        case "type_not_run" | "queue_not_served":
            return ["no_worker", last.reason]
        case "handed_back":
            return ["handed_back"]
    return None


def _check_limits(report: Report, rows: Rows, limits: LimitFold) -> None:
    for group, (held, started) in rows.limits.items():
        known = limits.limits.get(group[1])
        if known is None:
            continue
        is_skip = any(limit.over == "skip" for limit in known)
        waiting = len(limits.waiting[group]) if is_skip else 0
        starts = sorted(limits.starts[group])
        if held != waiting or (started and list(started) != starts[-len(started) :]):
            report.violate(
                "limit_row_disagrees",
                f"{group}: the row says held {held}, started {started[-3:]}; the log {waiting}, "
                f"{starts[-3:]}",
            )


def check_positions(
    report: Report,
    rows: Rows,
    decided: dict[tuple[str, int], int],
    clock: dict[int, str],
) -> None:
    """The applied position of each input covers everything that was decided from it.

    `decided` has the highest offset named as a cause, by (topic, partition).
    """
    for partition, row in rows.positions.items():
        newest = clock.get(partition)
        if newest is not None and row["clock"] < epoch_ms(newest):
            report.violate(
                "position_behind",
                f"partition {partition}: the clock in the row is {row['clock']}, an event is of "
                f"{newest}",
            )
    for (topic, partition), offset in decided.items():
        name = topic
        if partition not in rows.positions and rows.positions:
            # A partition that was added to an input: its home keeps the position.
            name, partition = f"{topic}/{partition}", partition % len(rows.positions)
        applied = rows.positions.get(partition, {}).get("applied", {})
        if applied.get(name, -1) < offset:
            report.violate(
                "position_behind",
                f"{name}[{partition}]{offset} was decided, the applied position is "
                f"{applied.get(name)}",
            )
