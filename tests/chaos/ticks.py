"""Ticks of schedules: each instant of the plan is a job or told as missed, once; and who overlaps.

Owns a fold over `jobs.events` and the comparison with `jobs.schedules`, for interval schedules that
the run declares. Refuses to know how the engine reckons instants: it counts periods itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import orjson

from tests.chaos.jobfold import Step, Trace
from tests.chaos.legal import TERMINAL
from tests.chaos.rawlog import RawRecord
from tests.chaos.report import Report

USER: Final = "schedule:"  # before a schedule's name: the user of its jobs
MISSED: Final = "missed: "
GRACE_MS: Final = 60_000  # a tick that is late by no more runs, unless the next one is due too
CATCH_UP_MAX: Final = 1_000  # missed ticks that run
SLACK_MS: Final = 20_000  # an owner is away for so long, before somebody stops the schedule
# How many earlier ticks may live beside one that is let in.
BESIDE: Final = {"skip": 0, "queue_one": 1, "queue_all": 1_000, "cancel_old": 1_000}


@dataclass(frozen=True, slots=True)
class TickPlan:
    """What the run declared of one interval schedule."""

    every_ms: int
    overlap: str
    catch_up: str
    is_first_now: bool = False


@dataclass(frozen=True, slots=True)
class Missed:
    """`count` ticks up to `last` were told of at once as missed, at `told_ms`."""

    last: int
    count: int
    told_ms: int


@dataclass(slots=True)
class _Ticks:
    jobs: list[int] = field(default_factory=list)  # instants
    missed: list[Missed] = field(default_factory=list)
    living: dict[str, int] = field(default_factory=dict)  # job -> its number in the log
    newcomers: dict[str, int] = field(default_factory=dict)  # job -> how many lived before it
    number: int = 0


class TickFold:
    """The ticks of the declared schedules. Feed it every event, audit events too."""

    def __init__(self, report: Report, plans: Mapping[str, TickPlan]) -> None:
        self.report = report
        self.plans = plans
        self.ticks = {name: _Ticks() for name in plans}

    def feed(self, trace: Trace, step: Step, event: dict[str, Any]) -> None:
        """One event of any job."""
        if not trace.user_id.startswith(USER):
            return
        name = trace.user_id.removeprefix(USER)
        plan = self.plans.get(name)
        if plan is None or "!" in trace.job_id:  # by hand
            return
        found = self.ticks[name]
        if step.sequence is None:
            if step.kind.endswith("_ignored") and event["cause"] is None:
                self._break("tick_asked_twice", trace, step.kind)
            return
        beside = found.newcomers.pop(trace.job_id, None)
        if beside is not None:
            self._check_newcomer(trace, step, plan, beside)
        if step.kind == "requested":
            self._note(trace, step, event, found)
        elif step.kind in TERMINAL:
            found.living.pop(trace.job_id, None)
        elif step.kind == "dispatched" and plan.overlap != "allow":
            mine = found.living.get(trace.job_id, 0)
            earlier = [job for job, number in found.living.items() if number < mine]
            if earlier:
                self._break("ticks_overlap", trace, f"dispatched while {earlier} have not ended")

    def _note(self, trace: Trace, step: Step, event: dict[str, Any], found: _Ticks) -> None:
        instant = _ms(trace.job_id.rpartition("@")[2])
        told_ms = _ms(step.occurred_at)
        if told_ms < instant:
            self._break("tick_too_early", trace, f"asked for at {step.occurred_at}")
        missed = [tag for tag in event.get("tags") or () if tag.startswith(MISSED)]
        if missed:
            count = int(missed[0].removeprefix(MISSED))
            found.missed.append(Missed(instant, count, told_ms))
        else:
            found.jobs.append(instant)
            found.newcomers[trace.job_id] = len(found.living)
        found.number += 1
        found.living[trace.job_id] = found.number

    def _check_newcomer(self, trace: Trace, step: Step, plan: TickPlan, beside: int) -> None:
        """The event behind `requested` says whether the tick was let in."""
        is_told = step.kind == "skipped" and step.reason == "overlap"
        most = BESIDE.get(plan.overlap)
        if is_told and (most is None or beside <= most):
            self._break("skipped_without_need", trace, f"{beside} lived beside it")
        is_caught_up = plan.catch_up == "all" and plan.overlap == "skip"
        if not is_told and most is not None and beside > most and not is_caught_up:
            self._break("ticks_overlap", trace, f"let in while {beside} have not ended")

    def finish(self, records: Iterable[RawRecord]) -> int:
        """Compares with the plans; how many ticks there were. `records`: of jobs.schedules."""
        told: dict[str, list[dict[str, Any]]] = {name: [] for name in self.plans}
        for record in records:
            name = (record.key or b"").decode()
            if name in told and record.value is not None:
                told[name].append(orjson.loads(record.value))
        count = 0
        for name, plan in self.plans.items():
            count += len(self.ticks[name].jobs)
            if not told[name]:
                self.report.violate("schedule_lost", f"{name}: no record on jobs.schedules")
            else:
                self._compare(name, plan, told[name], self.ticks[name])
        return count

    def _compare(
        self, name: str, plan: TickPlan, told: list[dict[str, Any]], found: _Ticks
    ) -> None:
        created = {record["created_at"] for record in told}
        spec = told[-1]["spec"]
        said = TickPlan(
            spec["every_ms"], spec["overlap"], spec["catch_up"], spec["is_first_now"]
        )
        if len(created) > 1 or said != plan or any(record["is_orphaned"] for record in told):
            self.report.violate("schedule_changed", f"{name}: {told[-1]}")
            return
        begun = told[-1]["created_at"]
        first = begun + (0 if plan.is_first_now else plan.every_ms)
        covered = list(found.jobs)
        for missed in found.missed:
            covered += [missed.last - plan.every_ms * n for n in range(missed.count)]
            self._check_missed(name, plan, missed)
        last = max(covered, default=first - plan.every_ms)
        wanted = set(range(first, last + 1, plan.every_ms))
        for instant in sorted(set(covered)):
            if instant not in wanted:
                self._tell("tick_invented", name, instant)
            elif covered.count(instant) > 1:
                self._tell("tick_twice", name, instant)
        for instant in sorted(wanted - set(covered)):
            self._tell("tick_lost", name, instant)
        paused = [record["changed_at"] for record in told if record["is_paused"]]
        if paused and last + plan.every_ms + SLACK_MS < paused[0]:
            self._tell("tick_lost", name, last + plan.every_ms)

    def _check_missed(self, name: str, plan: TickPlan, missed: Missed) -> None:
        is_late = missed.told_ms - missed.last > GRACE_MS
        has_next = missed.told_ms >= missed.last + plan.every_ms
        runs = plan.catch_up == "all" and missed.count <= CATCH_UP_MAX
        if runs or not (is_late or has_next):
            self.report.violate("missed_without_need", f"{name}: {missed}")

    def _tell(self, kind: str, name: str, instant: int) -> None:
        self.report.violate(kind, f"{name}: {datetime.fromtimestamp(instant / 1000)}")

    def _break(self, kind: str, trace: Trace, message: str) -> None:
        self.report.violate(kind, f"{trace.key}: {message}", trace.story())


def _ms(instant: str) -> int:
    moment = datetime.fromisoformat(instant)
    return round(moment.timestamp() * 1000)
