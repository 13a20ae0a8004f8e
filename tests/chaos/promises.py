"""The promises between jobs: limits, instants, unique keys, order.

Owns one fold for each, fed with the steps that `jobfold` has read, in log order. Refuses to know
how the engine keeps them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from tests.chaos.jobfold import JobId, Step, Trace
from tests.chaos.legal import TERMINAL
from tests.chaos.report import Report

_DUE_REASONS: Final = frozenset({"run_at"})  # a due instant that nothing may come before


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `most` first dispatches of a type in any `window_ms`, per user."""

    most: int
    window_ms: int
    over: str  # skip or delay


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request said of one job, as far as a promise depends on it."""

    unique_key: str | None = None
    run_at_ms: int | None = None


def epoch_ms(instant: str) -> int:
    """RFC 3339 text -> epoch milliseconds."""
    moment = datetime.fromisoformat(instant)
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000)


class LimitFold:
    """No window holds more first dispatches than allowed, and nobody is skipped without need."""

    def __init__(self, report: Report, limits: Mapping[str, tuple[Limit, ...]]) -> None:
        self.report = report
        self.limits = limits
        self.starts: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.waiting: dict[tuple[str, str], set[str]] = defaultdict(set)

    def feed(self, trace: Trace, step: Step) -> None:
        """One step of a job whose type may have limits."""
        limits = self.limits.get(trace.type)
        if limits is None:
            return
        group = (trace.user_id, trace.type)
        if step.kind == "requested":
            self.waiting[group].add(trace.job_id)
            return
        if step.kind == "skipped" and step.reason == "rate_limited":
            self.waiting[group].discard(trace.job_id)
            self._check_need(limits, group, trace, step)
        elif step.kind == "dispatched" and step.epoch == 1:
            self.waiting[group].discard(trace.job_id)
            self._check_windows(limits, group, trace, step)
        elif step.kind in TERMINAL:
            self.waiting[group].discard(trace.job_id)

    def _check_windows(
        self, limits: tuple[Limit, ...], group: tuple[str, str], trace: Trace, step: Step
    ) -> None:
        starts = self.starts[group]
        starts.append(epoch_ms(step.occurred_at))
        for limit in limits:
            if len(starts) <= limit.most:
                continue
            apart = starts[-1] - starts[-1 - limit.most]
            if apart < limit.window_ms:
                self.report.violate(
                    "limit_broken",
                    f"user {group[0]!r}, type {group[1]}: {limit.most + 1} first dispatches within "
                    f"{apart} ms, allowed are {limit.most} in {limit.window_ms} ms ({limit.over})",
                    trace.story(),
                )

    def _check_need(
        self, limits: tuple[Limit, ...], group: tuple[str, str], trace: Trace, step: Step
    ) -> None:
        now = epoch_ms(step.occurred_at)
        for limit in limits:
            recent = sum(start > now - limit.window_ms for start in self.starts[group])
            if limit.over == "skip" and recent + len(self.waiting[group]) >= limit.most:
                return
        self.report.violate(
            "skipped_without_need", f"{trace.key}: no limit of {trace.type} was used up",
            trace.story(),
        )


class ConcurrencyFold:
    """Of each user and type no more attempts are out than may be at once."""

    def __init__(self, report: Report, most: Mapping[str, int]) -> None:
        self.report = report
        self.most = most  # by type
        self.out: dict[tuple[str, str], set[JobId]] = {}

    def feed(self, trace: Trace, step: Step) -> None:
        """One step of any job."""
        most = self.most.get(trace.type)
        if most is None or step.sequence is None:
            return
        group = (trace.user_id, trace.type)
        out = self.out.setdefault(group, set())
        if step.after not in ("dispatched", "running"):
            out.discard(trace.key)
            return
        out.add(trace.key)
        if step.kind == "dispatched" and len(out) > most:
            self.report.violate(
                "too_many_at_once",
                f"user {group[0]!r}, type {group[1]}: {len(out)} are out, allowed are {most}",
                trace.story(),
            )


class CollapseFold:
    """Who shares a run waits for a living job, and ends with it: its id, run, status and result."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.winners: dict[JobId, JobId] = {}  # of living joiners
        self.joiners: Counter[JobId] = Counter()  # living ones, by winner
        self.live: set[JobId] = set()
        self.ended: dict[JobId, tuple[str, int, Any]] = {}  # of winners: status, run, result
        self.ended_with = 0

    def feed(self, trace: Trace, step: Step, event: dict[str, Any]) -> None:
        """One step of any job."""
        key = trace.key
        if step.after in TERMINAL:
            self.live.discard(key)
            if self.joiners[key]:
                result = (event["data"] or {}).get("result")
                self.ended[key] = (str(step.after), step.run, result)
        else:
            self.live.add(key)
        joined = self.winners.pop(key, None)
        if joined is not None:
            self.joiners[joined] -= 1
        if step.winner is not None:
            winner = self.winners[key] = (trace.user_id, step.winner)
            self.joiners[winner] += 1
            if winner not in self.live:
                self._break("joined_nobody", trace, f"{step.winner!r} is not alive")
        elif step.kind == "skipped" and step.reason == "collapsed":
            self.ended_with += 1
            into = event["data"]["collapsed_into"]
            if joined != (trace.user_id, into["job_id"]):
                self._break("collapsed_into_another", trace, f"it had joined {joined}")
                return
            ended = self.ended.get(joined)
            told = (into["status"], into["run"], event["data"].get("result"))
            if into.get("result_omitted") and ended is not None:
                told = (*told[:2], ended[2])
            if ended != told:
                self._break("collapsed_wrongly", trace, f"{joined} ended as {ended}, told {told}")

    def finish(self) -> None:
        """Between two groups: nobody waits for a job that has ended."""
        for joiner, winner in self.winners.items():
            if winner not in self.live:
                self.report.violate(
                    "left_behind", f"{joiner} waits for {winner}, which is not alive", []
                )

    def _break(self, law: str, trace: Trace, text: str) -> None:
        self.report.violate(law, f"{trace.key}: {text}", trace.story())


class DueFold:
    """Nothing is dispatched before its instant."""

    def __init__(self, report: Report, asked: Mapping[JobId, Asked]) -> None:
        self.report = report
        self.asked = asked
        self.due: dict[JobId, str] = {}

    def feed(self, trace: Trace, step: Step, event: Mapping[str, Any]) -> None:
        """One step of any job."""
        key = trace.key
        if step.kind == "retry_scheduled" or (
            step.kind == "scheduled" and step.reason in _DUE_REASONS
        ):
            due = event["due_at"]
            if due is None:
                self.report.violate("no_due_instant", f"{key}: {step.kind}", trace.story())
            else:
                self.due[key] = due
            return
        due = self.due.pop(key, None)
        if step.kind != "dispatched":
            return
        if due is not None and step.occurred_at < due:
            self.report.violate("before_its_instant", f"{key}: due {due}", trace.story())
        asked = self.asked.get(key)
        if asked is None or asked.run_at_ms is None or step.run > 1:
            return
        if epoch_ms(step.occurred_at) < asked.run_at_ms:
            self.report.violate(
                "before_its_instant", f"{key}: run_at {asked.run_at_ms}", trace.story()
            )


class UniqueFold:
    """At most one live job of a user has a unique key."""

    def __init__(self, report: Report, asked: Mapping[JobId, Asked]) -> None:
        self.report = report
        self.asked = asked
        self.holder: dict[tuple[str, str], Trace] = {}
        self.newcomer: dict[JobId, Trace] = {}  # accepted beside a holder: its next step decides

    def feed(self, trace: Trace, step: Step) -> None:
        """One step of any job."""
        asked = self.asked.get(trace.key)
        if asked is None or asked.unique_key is None:
            return
        key = (trace.user_id, asked.unique_key)
        holder = self.holder.get(key)
        if step.kind in ("requested", "redriven"):
            if holder is not None and holder is not trace:
                self.newcomer[trace.key] = holder
            else:
                self.holder[key] = trace
            return
        is_refused = step.kind == "skipped" and step.reason == "duplicate"
        beside = self.newcomer.pop(trace.key, None)
        # Who ends at once, by a cancel that came before or because of a refusal, never lived.
        if beside is not None and step.kind not in TERMINAL:
            self.report.violate(
                "two_live_jobs_of_a_key",
                f"user {key[0]!r}, unique_key {key[1]!r}: {trace.job_id!r} lives beside "
                f"{beside.job_id!r}",
                [*beside.story(), *trace.story()],
            )
        if is_refused and beside is None:
            self.report.violate(
                "skipped_without_need", f"{trace.key}: nobody held {asked.unique_key!r}",
                trace.story(),
            )
        if step.kind in TERMINAL and holder is trace:
            del self.holder[key]


class OrderFold:
    """First attempts of one user, queue, type and priority start in the order of their arrival."""

    def __init__(
        self, report: Report, asked: Mapping[JobId, Asked], limited: Mapping[str, object]
    ) -> None:
        self.report = report
        self.asked = asked
        self.limited = limited
        self.arrivals: dict[JobId, int] = {}
        self.newest_start: dict[tuple[str, ...], tuple[int, str]] = {}
        self.count = 0

    def feed(self, trace: Trace, step: Step, event: Mapping[str, Any]) -> None:
        """One step of any job."""
        if trace.type in self.limited:
            return
        asked = self.asked.get(trace.key)
        if asked is not None and asked.run_at_ms is not None:
            return
        if step.kind == "requested":
            self.count += 1
            self.arrivals[trace.key] = self.count
            return
        if step.kind == "redriven":  # a later run has no place in the line
            self.arrivals.pop(trace.key, None)
        if step.kind != "dispatched" or step.epoch != 1 or trace.key not in self.arrivals:
            return
        arrival = self.arrivals.pop(trace.key)
        line = (trace.user_id, event["queue"], trace.type, event["priority"])
        newest, name = self.newest_start.get(line, (0, ""))
        if arrival < newest:
            self.report.violate(
                "out_of_order", f"{trace.key} starts after {name!r}, which came later",
                trace.story(),
            )
        else:
            self.newest_start[line] = (arrival, trace.job_id)
