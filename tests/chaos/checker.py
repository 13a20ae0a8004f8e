"""The independent checker: reads the raw topics and ClickHouse, and proves what was promised.

Owns the order of the proof. It knows the public contract (topics, events, dead letters, rows) and
imports nothing of the engine: a rule that is wrong there must not be right here.

    python -m tests.chaos.checker --kafka HOST:PORT [--prefix P] [--receipts FILE]
        [--expect FILE] [--clickhouse URL]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.accounting import (
    Completed,
    DeadJobs,
    Inputs,
    check_all_ended,
    check_children,
    check_dead_jobs,
    check_inputs,
    check_receipts,
)
from tests.chaos.between import Between
from tests.chaos.gathers import GatherFold
from tests.chaos.history import LogCounts, check_history
from tests.chaos.jobfold import JobFold, JobId
from tests.chaos.ledger_rows import check_gathers, check_positions, check_rows, read_rows
from tests.chaos.promises import (
    Asked,
    CollapseFold,
    ConcurrencyFold,
    DueFold,
    Limit,
    LimitFold,
    OrderFold,
    UniqueFold,
)
from tests.chaos.rawlog import RawRecord, read_topic
from tests.chaos.receipts import Receipt, read_receipts
from tests.chaos.report import Report
from tests.chaos.suspends import SuspensionFold
from tests.chaos.ticks import TickFold, TickPlan


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the run's handlers were declared with, as far as a promise depends on it."""

    max_attempts: dict[str, int] = field(default_factory=dict)
    limits: dict[str, tuple[Limit, ...]] = field(default_factory=dict)
    children: dict[str, str] = field(default_factory=dict)  # type -> prefix of its child's id
    concurrency: dict[str, int] = field(default_factory=dict)  # type -> attempts of a user at once
    tells_steps: frozenset[str] = frozenset()  # types whose result says what each step returned
    schedules: dict[str, TickPlan] = field(default_factory=dict)  # by name; paused at the end

    @classmethod
    def from_json(cls, text: str) -> Expectations:
        """{"max_attempts": {type: n}, "limits": {type: [[most, window_ms, over], …]},
        "children": {type: prefix}, "concurrency": {type: n}, "tells_steps": [type, …],
        "schedules": {name: {"every_ms": n, "overlap": …, "catch_up": …, "is_first_now": …}}}"""
        body: dict[str, Any] = json.loads(text)
        limits = {
            name: tuple(Limit(int(most), int(window), str(over)) for most, window, over in listed)
            for name, listed in body.get("limits", {}).items()
        }
        return cls(
            dict(body.get("max_attempts", {})), limits, dict(body.get("children", {})),
            dict(body.get("concurrency", {})), frozenset(body.get("tells_steps", ())),
            {name: TickPlan(**plan) for name, plan in body.get("schedules", {}).items()},
        )


@dataclass(slots=True)
class Evidence:
    """Everything that is looked at. Iterables are read once, in the order of the fields."""

    events: Iterable[RawRecord]
    completed: Iterable[RawRecord]
    dead: Iterable[RawRecord]
    requested: Iterable[RawRecord]
    state: Iterable[RawRecord] | None = None
    receipts: Iterable[Receipt] = ()
    expectations: Expectations = field(default_factory=Expectations)
    clickhouse: str | None = None
    internal: Iterable[RawRecord] = ()
    requested_topic: str = "jobs.requested"
    internal_topic: str = "jobs.internal"
    schedules: Iterable[RawRecord] = ()
    is_over: bool = True  # every job must have ended; False: some may wait, for a queue nobody has


class Checker:
    """One proof. Make one, call `check` once."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.report = Report()
        self.receipts = list(evidence.receipts)
        asked = _asked(self.receipts)
        expected = evidence.expectations
        self.jobs = JobFold(self.report, expected.max_attempts)
        self.limits = LimitFold(self.report, expected.limits)
        self.concurrency = ConcurrencyFold(self.report, expected.concurrency)
        self.collapse = CollapseFold(self.report)
        self.gathers = GatherFold(self.report)
        self.suspensions = SuspensionFold(self.report, expected.tells_steps)
        self.ticks = TickFold(self.report, expected.schedules)
        self.due = DueFold(self.report, asked)
        self.unique = UniqueFold(self.report, asked)
        self.order = OrderFold(self.report, asked, expected.limits)
        self.inputs = Inputs(self.report, evidence.requested_topic)
        self.log = LogCounts()
        self.decided: dict[tuple[str, int], int] = {}

    def check(self) -> Report:
        """The whole proof, in the order of the evidence."""
        for record in self.evidence.events:
            self._feed_event(record)
        self.collapse.finish()
        ticks = self.ticks.finish(self.evidence.schedules)
        completed = Completed(self.report)
        for record in self.evidence.completed:
            completed.feed(record)
        completed.check(self.jobs)
        dead = DeadJobs()
        letters = 0
        for record in self.evidence.dead:
            letters += 1
            dead.feed(record)
            self.inputs.feed_dead(record)
        check_dead_jobs(self.report, dead, self.jobs)
        between = Between(self.report, self.evidence.internal_topic, self.inputs.topic)
        for record in self.evidence.internal:
            between.feed(record)
            self.gathers.feed(record)
        if self.evidence.is_over:
            self.gathers.finish(self.jobs)
        asked = between.watch(self.evidence.requested)
        requested = check_inputs(self.inputs, asked, self.jobs)
        check_receipts(self.inputs, self.receipts, self.jobs)
        if self.evidence.is_over:
            check_all_ended(self.report, self.jobs)
            self.suspensions.finish()
        check_children(self.report, self.jobs, self.evidence.expectations.children)
        if self.evidence.state is not None:
            rows = read_rows(self.report, self.evidence.state)
            check_rows(self.report, rows, self.jobs, self.limits)
            check_gathers(self.report, rows, self.jobs)
            internal = self.evidence.internal_topic
            self.gathers.check_parallel({
                partition: [(sent, applied.get(internal, -1)) for sent, applied in found]
                for partition, found in rows.groups.items()
            })
            check_positions(self.report, rows, self.decided, self.jobs.clock)
            if self.evidence.is_over:
                between.check(rows)
            self.report.checked["rows"] = len(rows.jobs)
        if self.evidence.clickhouse is not None:
            check_history(self.report, self.evidence.clickhouse, self.log, self.jobs)
        self.report.checked |= {
            "receipts": len(self.receipts), "requests": requested, "jobs": len(self.jobs.jobs),
            "events": self.jobs.events, "completed": len(completed.records),
            "dead letters": letters, "between partitions": between.records,
            "steps": self.suspensions.steps, "resumed": self.suspensions.resumed,
            "signalled": self.suspensions.signalled, "joined": self.collapse.ended_with,
            "ticks": ticks,
        }
        return self.report

    def _feed_event(self, record: RawRecord) -> None:
        read = self.jobs.feed(record)
        if read is None:
            return
        trace, step, event = read
        self.log.feed(step, event["type"])
        self.inputs.feed_event(trace, event)
        cause = event["cause"]
        if cause is not None:
            place = (cause["topic"], cause["partition"])
            self.decided[place] = max(self.decided.get(place, -1), cause["offset"])
        self.ticks.feed(trace, step, event)
        if step.sequence is None:
            return
        self.suspensions.feed(trace, step, event)
        self.limits.feed(trace, step)
        self.concurrency.feed(trace, step)
        self.collapse.feed(trace, step, event)
        self.gathers.feed_event(trace, event)
        self.due.feed(trace, step, event)
        self.unique.feed(trace, step)
        self.order.feed(trace, step, event)


def _asked(receipts: Iterable[Receipt]) -> dict[JobId, Asked]:
    asked: dict[JobId, Asked] = {}
    for receipt in receipts:
        if receipt.user_id is not None and receipt.job_id is not None:
            key = (receipt.user_id, receipt.job_id)
            # A repeat with another body is a conflict: what came first in the log counts, and
            # loaders give both the same instants and keys.
            asked.setdefault(key, Asked(receipt.unique_key, receipt.run_at_ms))
    return asked


def check_installation(
    kafka: str,
    *,
    prefix: str = "",
    receipts: Iterable[Receipt] = (),
    expectations: Expectations | None = None,
    clickhouse: str | None = None,
    is_over: bool = True,
) -> Report:
    """Reads one installation's topics from Kafka and proves what it promises."""
    topics = {
        name: f"{prefix}{name}"
        for name in (
            "jobs.events", "jobs.completed", "jobs.dead", "jobs.requested", "jobs.internal",
            "jobs.schedules",
        )
    }
    evidence = Evidence(
        events=read_topic(kafka, topics["jobs.events"]),
        completed=read_topic(kafka, topics["jobs.completed"]),
        dead=read_topic(kafka, topics["jobs.dead"]),
        requested=read_topic(kafka, topics["jobs.requested"]),
        state=read_topic(kafka, f"{prefix}tidemill-state"),
        receipts=receipts,
        expectations=expectations or Expectations(),
        clickhouse=clickhouse,
        internal=read_topic(kafka, topics["jobs.internal"]),
        requested_topic=topics["jobs.requested"],
        internal_topic=topics["jobs.internal"],
        schedules=read_topic(kafka, topics["jobs.schedules"]),
        is_over=is_over,
    )
    return Checker(evidence).check()


def main(arguments: list[str] | None = None) -> int:
    """0 when nothing is violated, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="tests.chaos.checker", description=__doc__)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--receipts", type=Path)
    parser.add_argument("--expect", type=Path)
    parser.add_argument("--clickhouse")
    given = parser.parse_args(arguments)
    report = check_installation(
        given.kafka,
        prefix=given.prefix,
        receipts=read_receipts(given.receipts) if given.receipts else (),
        expectations=Expectations.from_json(given.expect.read_text()) if given.expect else None,
        clickhouse=given.clickhouse,
    )
    print(report.text())
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
