"""Follows every job through `jobs.events` and says where its story breaks.

Owns the chain: sequences, states, runs, attempts, epochs, clocks and ids. Refuses to know limits
(`promises`), receipts (`accounting`) and any code of the engine.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import orjson

from tests.chaos.kept import KeptFold
from tests.chaos.legal import AUDIT, LEGAL, TERMINAL
from tests.chaos.rawlog import RawRecord
from tests.chaos.report import Report
from tests.chaos.signals import SignalFold

STORY_LINES_MAX: Final = 40  # events of a story that are printed: the last ones tell most
RESCUES_MAX: Final = 21  # rescues of one run: twenty are survived, the next one ends it

JobId = tuple[str, str]


class Step(NamedTuple):
    """What is kept of one event."""

    partition: int
    offset: int
    kind: str
    sequence: int | None
    run: int
    attempt: int
    epoch: int
    occurred_at: str
    before: str | None
    after: str | None
    reason: str | None
    winner: str | None = None  # the job whose run it shares from now on

    def line(self) -> str:
        """One line of a job's story."""
        return (
            f"[{self.partition}]{self.offset} {self.occurred_at} #{self.sequence} {self.kind} "
            f"{self.before}->{self.after} run {self.run} attempt {self.attempt} "
            f"epoch {self.epoch} {self.reason or ''}"
        )


class Trace:
    """One job so far: the last state and all of its steps."""

    __slots__ = (
        "attempt", "due_at", "end_of", "epoch", "first_dispatch", "incarnation", "is_spent",
        "job_id", "partition", "remembered", "rescues", "run", "sequence", "state", "steps", "type",
        "user_id", "waits_for",
    )

    def __init__(self, event: dict[str, Any], partition: int) -> None:
        self.user_id: str = event["user_id"]
        self.job_id: str = event["job_id"]
        self.type: str = event["type"]
        self.incarnation: int = event["incarnation"]
        self.partition = partition
        self.sequence = 0
        self.state: str | None = None
        self.run = 1
        self.attempt = 0
        self.epoch = 0
        self.is_spent = True  # whether the last dispatch spent its attempt
        self.rescues = 0
        self.remembered: dict[str, tuple[str, Any]] = {}  # name -> kind, result
        self.waits_for: list[str] | None = None  # of its last suspension
        self.due_at: str | None = None
        self.first_dispatch: str | None = None
        self.end_of: dict[int, dict[str, Any]] = {}  # run -> its terminal event, cut
        self.steps: list[Step] = []

    @property
    def key(self) -> JobId:
        return (self.user_id, self.job_id)

    @property
    def is_live(self) -> bool:
        return self.state not in TERMINAL

    def story(self) -> list[str]:
        """The last steps as lines."""
        cut = [f"… {len(self.steps) - STORY_LINES_MAX} earlier events"]
        lines = [step.line() for step in self.steps[-STORY_LINES_MAX:]]
        head = [f"job {self.job_id!r} of user {self.user_id!r}, type {self.type}"]
        return head + (cut if len(self.steps) > STORY_LINES_MAX else []) + lines


_END_FIELDS: Final = ("event", "event_id", "sequence", "attempt", "run", "reason", "error", "type")


class JobFold:
    """Feed it every record of `jobs.events` in order; it notes each break in `report`."""

    def __init__(self, report: Report, max_attempts: dict[str, int]) -> None:
        self.report = report
        self.max_attempts = max_attempts  # type -> attempts of one run; types not named: unchecked
        self.jobs: dict[JobId, Trace] = {}
        self.clock: dict[int, str] = {}  # partition -> newest occurred_at
        self.event_ids: set[int] = set()
        self.events = 0
        self.kept = KeptFold(report)
        self.signals = SignalFold(report)

    def feed(self, record: RawRecord) -> tuple[Trace, Step, dict[str, Any]] | None:
        """Fold one record; None when it is not a readable event."""
        try:
            event = orjson.loads(record.value or b"")
        except orjson.JSONDecodeError as error:
            self.report.violate("unreadable_event", f"{_place(record)}: {error}")
            return None
        self.events += 1
        if event["state_after"] is None:
            return self._feed_stateless(event, record)
        trace = self._trace_of(event, record)
        step = _step(event, record)
        trace.steps.append(step)
        self._check_record(event, record, trace)
        if step.kind in AUDIT:
            self._check_audit(trace, step)
            if self.signals.is_about_one(event):
                self.signals.feed_audit(event)
        else:
            self._check_step(trace, step)
            self.signals.feed_step(event, trace.remembered)
            self._advance(trace, step, event)
            self.kept.feed_step(event)
        return trace, step, event

    def _feed_stateless(
        self, event: dict[str, Any], record: RawRecord
    ) -> tuple[Trace, Step, dict[str, Any]]:
        """What is told of a job that nobody has asked for: it is no story yet."""
        known = self.jobs.get((event["user_id"], event["job_id"]))
        if known is not None:
            self._break("kept_cancel_told_wrong", known, f"{event['event']} without a state")
        trace = Trace(event, record.partition)
        self._check_record(event, record, trace)
        fold = self.signals if self.signals.is_about_one(event) else self.kept
        fold.feed_audit(event)
        return trace, _step(event, record), event

    def _trace_of(self, event: dict[str, Any], record: RawRecord) -> Trace:
        key = (event["user_id"], event["job_id"])
        trace = self.jobs.get(key)
        if trace is None:
            trace = self.jobs[key] = Trace(event, record.partition)
        return trace

    def _check_record(self, event: dict[str, Any], record: RawRecord, trace: Trace) -> None:
        wrong = self.report.violate
        if record.key != trace.user_id.encode():
            wrong("wrong_key", f"{_place(record)}: key {record.key!r} for user {trace.user_id!r}")
        if record.partition != trace.partition:
            wrong("two_partitions", f"{_place(record)}: before in {trace.partition}", trace.story())
        # An ended job is remembered without its incarnation: a repeat of it is told with 0.
        is_forgotten = event["event"] in AUDIT and event["incarnation"] == 0
        if event["incarnation"] != trace.incarnation and not is_forgotten:
            wrong(
                "two_incarnations",
                f"{_place(record)}: {event['incarnation']} after {trace.incarnation}",
                trace.story(),
            )
        if event["occurred_at"] < self.clock.get(record.partition, ""):
            wrong(
                "clock_went_back",
                f"{_place(record)}: {event['occurred_at']} after {self.clock[record.partition]}",
            )
        else:
            self.clock[record.partition] = event["occurred_at"]
        # 64 bits of the id instead of the id: a run has a million of them, a clash is no risk.
        id_hash = hash(event["event_id"])
        if id_hash in self.event_ids:
            wrong("event_id_twice", f"{_place(record)}: {event['event_id']}", trace.story())
        self.event_ids.add(id_hash)

    def _check_audit(self, trace: Trace, step: Step) -> None:
        if step.sequence is not None or step.before != step.after:
            self.report.violate(
                "audit_changed_state", f"{step.kind} of {trace.key} changes something",
                trace.story(),
            )

    def _check_step(self, trace: Trace, step: Step) -> None:
        if step.sequence != trace.sequence + 1:
            kind = (
                "sequence_fork"
                if step.sequence is not None and step.sequence <= trace.sequence
                else "sequence_gap"
            )
            self._break(kind, trace, f"#{step.sequence} after #{trace.sequence}")
        if step.before != trace.state:
            self._break("broken_chain", trace, f"starts in {step.before}, was {trace.state}")
        if (step.before, step.after) not in LEGAL.get(step.kind, frozenset()):
            self._break(
                "illegal_transition", trace, f"{step.kind} {step.before}->{step.after}"
            )
        begins_again = step.kind == "redriven" or (
            step.kind == "requested" and is_refused(trace, trace.run)
        )
        if trace.state in TERMINAL and not begins_again:
            self._break("after_the_end", trace, f"{step.kind} after {trace.state}")
        wanted_run = trace.run + 1 if begins_again else trace.run
        if step.run != wanted_run:
            self._break("wrong_run", trace, f"run {step.run}, expected {wanted_run}")
        self._check_attempt(trace, step)

    def _check_attempt(self, trace: Trace, step: Step) -> None:
        most = self.max_attempts.get(trace.type)
        if most is not None and step.attempt > most:
            self._break("too_many_attempts", trace, f"attempt {step.attempt} of {most}")
        if step.kind == "dispatched":
            wanted = trace.attempt + 1 if trace.is_spent else trace.attempt
            if (step.attempt, step.epoch) != (wanted, trace.epoch + 1):
                self._break(
                    "wrong_attempt", trace,
                    f"dispatched as attempt {step.attempt} epoch {step.epoch}, expected attempt "
                    f"{wanted} epoch {trace.epoch + 1}",
                )
        elif step.kind.startswith("attempt_") and (step.attempt, step.epoch) != (
            trace.attempt, trace.epoch
        ):
            self._break("wrong_attempt", trace, f"{step.kind} of a dispatch that is not the last")
        if step.kind == "rescued" and trace.rescues >= RESCUES_MAX:
            self._break("too_many_rescues", trace, f"rescue {trace.rescues + 1}")

    def _advance(self, trace: Trace, step: Step, event: dict[str, Any]) -> None:
        if step.sequence is not None:
            trace.sequence = max(trace.sequence, step.sequence)
        trace.state = step.after
        trace.due_at = event.get("due_at")
        match step.kind:
            case "dispatched":
                trace.attempt, trace.epoch, trace.is_spent = step.attempt, step.epoch, False
                trace.first_dispatch = trace.first_dispatch or step.occurred_at
            case "attempt_failed" | "attempt_succeeded":
                trace.is_spent = True
            case "rescued":
                trace.rescues += 1
            case "suspended":
                trace.rescues = 0
                trace.waits_for = ["suspension", event["data"]["kind"], event["data"]["name"]]
                self._check_name(trace, event)
            case "step_completed" | "resumed":
                self._check_name(trace, event)
                data = event["data"]
                if data["kind"] != "gather":  # that has rows of its own
                    value = data.get("value" if data["kind"] == "signal" else "result")
                    trace.remembered.setdefault(data["name"], (data["kind"], value))
            case "redriven" | "requested":
                trace.run, trace.attempt, trace.is_spent, trace.rescues = step.run, 0, True, 0
                trace.type = event["type"]
            case _:
                pass
        if step.kind in TERMINAL:
            if step.run in trace.end_of:
                self._break("two_ends", trace, f"second end of run {step.run}: {step.kind}")
            trace.end_of[step.run] = {name: event[name] for name in _END_FIELDS}
            if step.kind != "failed" and trace.remembered:
                trace.remembered = {}  # a dead letter may run again

    def _check_name(self, trace: Trace, event: dict[str, Any]) -> None:
        """What is remembered is stored once, and nobody waits for it again. A sleep that was asked
        for twice is over at once."""
        name = event["data"]["name"]
        if event["event"] == "step_completed" and name in trace.remembered:
            self._break("remembered_twice", trace, f"step {name!r} was stored before")

    def _break(self, kind: str, trace: Trace, message: str) -> None:
        self.report.violate(kind, f"{trace.key}: {message}", trace.story())


def is_refused(trace: Trace, run: int) -> bool:
    """Whether the request of that run could not be taken: it failed at once. Only the first."""
    kinds = [step.kind for step in trace.steps[:2]]
    return run == 1 and kinds == ["requested", "failed"]


def _place(record: RawRecord) -> str:
    return f"{record.topic}[{record.partition}]{record.offset}"


def _step(event: dict[str, Any], record: RawRecord) -> Step:
    return Step(
        record.partition, record.offset, event["event"], event["sequence"], event["run"],
        event["attempt"], event["epoch"], event["occurred_at"], event["state_before"],
        event["state_after"], event["reason"],
        event["data"]["winner"] if event["reason"] == "joined" else None,
    )
