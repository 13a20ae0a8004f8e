"""Compares ClickHouse with the log: the same events, each once, and the same totals.

Owns the queries and the fingerprint of a set of offsets. Refuses to know how rows get there.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from tests.chaos.jobfold import JobFold, Step
from tests.chaos.report import Report

QUERY_SECONDS: Final = 120.0
_MASK: Final = 2**64 - 1


class HistoryUnreadable(RuntimeError):
    """ClickHouse gave no answer, or refused the query."""


def ask(address: str, sql: str) -> list[list[Any]]:
    """The rows of one query over ClickHouse's HTTP interface."""
    request = urllib.request.Request(
        f"{address}/?{urllib.parse.urlencode({'default_format': 'JSONCompact'})}",
        data=sql.encode(),
    )
    try:
        with urllib.request.urlopen(request, timeout=QUERY_SECONDS) as answer:
            rows: list[list[Any]] = json.loads(answer.read())["data"]
            return rows
    except urllib.error.HTTPError as error:
        raise HistoryUnreadable(f"{sql}: {error.read().decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise HistoryUnreadable(f"{sql}: {error}") from error


@dataclass(slots=True)
class OffsetPrint:
    """Fingerprint of a set of offsets: equal for equal sets, whatever the order."""

    count: int = 0
    total: int = 0
    squares: int = 0
    lowest: int = -1
    highest: int = -1

    def add(self, offset: int) -> None:
        self.count += 1
        self.total = (self.total + offset) & _MASK
        self.squares = (self.squares + offset * offset) & _MASK
        self.lowest = offset if self.lowest < 0 else min(self.lowest, offset)
        self.highest = max(self.highest, offset)


@dataclass(slots=True)
class LogCounts:
    """What the log says that ClickHouse must say too."""

    offsets: dict[int, OffsetPrint] = field(default_factory=dict)
    kinds: Counter[tuple[int, str]] = field(default_factory=Counter)
    minutes: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def feed(self, step: Step, type_name: str) -> None:
        """One event of the log."""
        self.offsets.setdefault(step.partition, OffsetPrint()).add(step.offset)
        self.kinds[(step.partition, step.kind)] += 1
        self.minutes[(step.occurred_at[:16].replace("T", " "), type_name, step.kind)] += 1


_OFFSETS_SQL: Final = """
SELECT kafka_partition, count(), sum(kafka_offset), sum(kafka_offset * kafka_offset),
       min(kafka_offset), max(kafka_offset), uniqExact(kafka_offset)
FROM job_events GROUP BY kafka_partition"""
_KINDS_SQL: Final = (
    "SELECT kafka_partition, event, count() FROM job_events GROUP BY kafka_partition, event"
)
_MINUTES_SQL: Final = """
SELECT formatDateTime(minute, '%Y-%m-%d %H:%i') AS m, type, event, sum(events)
FROM job_minutes GROUP BY m, type, event"""
_STATUS_SQL: Final = "SELECT status, count() FROM jobs GROUP BY status"


def check_history(report: Report, address: str, log: LogCounts, jobs: JobFold) -> None:
    """Events by offset, events by kind, minute roll-ups and the latest states."""
    _check_offsets(report, address, log)
    kinds = {(int(p), str(kind)): int(n) for p, kind, n in ask(address, _KINDS_SQL)}
    _compare(report, "history_kinds", kinds, dict(log.kinds))
    minutes = {(str(m), str(t), str(e)): int(n) for m, t, e, n in ask(address, _MINUTES_SQL)}
    _compare(report, "history_minutes", minutes, dict(log.minutes))
    states = Counter(str(trace.state) for trace in jobs.jobs.values())
    statuses = {str(status): int(n) for status, n in ask(address, _STATUS_SQL)}
    _compare(report, "history_jobs", statuses, dict(states))


def _check_offsets(report: Report, address: str, log: LogCounts) -> None:
    found: dict[int, OffsetPrint] = {}
    for row in ask(address, _OFFSETS_SQL):
        partition, count, total, squares, lowest, highest, distinct = (int(cell) for cell in row)
        found[partition] = OffsetPrint(count, total & _MASK, squares & _MASK, lowest, highest)
        if distinct != count:
            report.violate(
                "history_twice", f"partition {partition}: {count} rows, {distinct} offsets"
            )
    _compare(report, "history_offsets", found, log.offsets)


def _compare(report: Report, kind: str, found: dict[Any, Any], wanted: dict[Any, Any]) -> None:
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            report.violate(
                kind, f"{key}: ClickHouse {found.get(key)}, the log {wanted.get(key)}"
            )
