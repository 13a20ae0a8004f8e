"""Every input is accounted for once, every accepted job ends once, both logs agree.

Owns the comparison of `jobs.requested`, `jobs.events`, `jobs.completed` and `jobs.dead`. Refuses
to know any code of the engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from tests.chaos.jobfold import JobFold, JobId, Trace, is_refused
from tests.chaos.legal import TERMINAL
from tests.chaos.rawlog import RawRecord
from tests.chaos.receipts import Receipt
from tests.chaos.report import Report

DEAD_PREFIX: Final = "tidemill.dead."
_ANSWERS: Final = frozenset({"requested", "duplicate_ignored", "conflict_ignored"})

Position = tuple[int, int]
"""(partition, offset) on `jobs.requested`."""


class Inputs:
    """Which record of `jobs.requested` led to which answer."""

    def __init__(self, report: Report, requested_topic: str) -> None:
        self.report = report
        self.topic = requested_topic
        self.answers: dict[Position, tuple[str, JobId, int]] = {}  # event, job, run
        self.dead: dict[Position, RawRecord] = {}

    def feed_event(self, trace: Trace, event: Mapping[str, Any]) -> None:
        """An event that answers an input claims it."""
        cause = event["cause"]
        if event["event"] not in _ANSWERS or cause is None or cause["topic"] != self.topic:
            return
        position = (cause["partition"], cause["offset"])
        if position in self.answers:
            self.report.violate(
                "input_decided_twice",
                f"{self.topic}{list(position)}: {self.answers[position][0]} and {event['event']}",
                trace.story(),
            )
        self.answers[position] = (event["event"], trace.key, event["run"])

    def feed_dead(self, record: RawRecord) -> None:
        """A dead letter of a request claims it too."""
        headers = _texts(record)
        if headers.get("stage") != "request" or headers.get("topic") != self.topic:
            return
        position = (int(headers["partition"]), int(headers["offset"]))
        if position in self.dead:
            self.report.violate(
                "dead_letter_twice", f"{self.topic}{list(position)} is on the dead topic twice"
            )
        self.dead[position] = record


class DeadJobs:
    """Dead letters of jobs that failed after acceptance."""

    def __init__(self) -> None:
        self.letters: Counter[JobId] = Counter()
        self.refused: set[JobId] = set()  # known job, refused request

    def feed(self, record: RawRecord) -> None:
        """One record of `jobs.dead`."""
        headers = _texts(record)
        key = (headers.get("user_id"), headers.get("job_id"))
        if key[0] is None or key[1] is None:
            return
        if headers.get("stage") == "attempt":
            self.letters[(key[0], key[1])] += 1
        elif headers.get("stage") == "request":
            self.refused.add((key[0], key[1]))


def _texts(record: RawRecord) -> dict[str, str]:
    # The original may carry such names too, in any bytes: the engine's come last, and count.
    return {
        name[len(DEAD_PREFIX) :]: value.decode("utf-8", "replace")
        for name, value in record.headers
        if name.startswith(DEAD_PREFIX) and value is not None
    }


def check_inputs(inputs: Inputs, requested: Iterable[RawRecord], jobs: JobFold) -> int:
    """Each record of `jobs.requested` is answered by one event, or dead, as it was."""
    seen: set[Position] = set()
    for record in requested:
        position = (record.partition, record.offset)
        seen.add(position)
        answer = inputs.answers.get(position)
        letter = inputs.dead.get(position)
        if letter is not None:
            _check_letter(inputs, record, letter)
        if answer is None and letter is None:
            inputs.report.violate("input_lost", f"{inputs.topic}{list(position)}: no trace of it")
        elif answer is not None and letter is not None:
            _check_both(inputs, jobs, position, answer)
    for position in (inputs.answers.keys() | inputs.dead.keys()) - seen:
        inputs.report.violate(
            "input_invented", f"{inputs.topic}{list(position)} was decided, nobody sent it"
        )
    return len(seen)


def _check_letter(inputs: Inputs, record: RawRecord, letter: RawRecord) -> None:
    kept = () if record.has_odd_headers else letter.headers[: len(record.headers)]
    for name, was, now in (
        ("value", record.value, letter.value),
        ("key", record.key, letter.key),
        ("headers", record.headers, kept),
    ):
        if was != now:
            inputs.report.violate(
                "dead_letter_changed",
                f"{inputs.topic}[{record.partition}]{record.offset}: {name} was {was!r:.80}, the "
                f"dead letter has {now!r:.80}",
            )
    headers = _texts(letter)
    for name in ("error.code", "error.message", "timestamp"):
        if not headers.get(name):
            inputs.report.violate(
                "dead_letter_without_cause",
                f"{inputs.topic}[{record.partition}]{record.offset}: header {name} is missing",
            )


def _check_both(
    inputs: Inputs, jobs: JobFold, position: Position, answer: tuple[str, JobId, int]
) -> None:
    # A refused request is dead, and told to its owner where that is known: a new job ends as
    # failed at once (or as cancelled, by a command that came before), an older one of the same
    # name only hears of the conflict.
    trace = jobs.jobs[answer[1]]
    kinds = [step.kind for step in trace.steps[:2]]
    is_cancelled = answer[2] == 1 and kinds == ["requested", "cancelled"]
    is_told = answer[0] == "conflict_ignored" or (
        answer[0] == "requested" and (is_cancelled or is_refused(trace, answer[2]))
    )
    if not is_told:
        inputs.report.violate(
            "processed_and_dead", f"{inputs.topic}{list(position)} was {answer[0]} and is dead",
            trace.story(),
        )


def check_receipts(inputs: Inputs, receipts: Iterable[Receipt], jobs: JobFold) -> int:
    """Each acknowledged request became its own job, which ended; each poison is dead."""
    count = 0
    for receipt in receipts:
        count += 1
        position = (receipt.partition, receipt.offset)
        answer = inputs.answers.get(position)
        if receipt.kind == "poison":
            if position not in inputs.dead:
                inputs.report.violate("poison_not_dead", f"{inputs.topic}{list(position)}")
            continue
        if answer is None:
            if receipt.kind == "job" or position not in inputs.dead:
                inputs.report.violate(
                    "acknowledged_and_lost", f"{inputs.topic}{list(position)}: {receipt}"
                )
            continue
        _check_answer(inputs, receipt, answer[1], jobs)
    return count


def _check_answer(inputs: Inputs, receipt: Receipt, key: JobId, jobs: JobFold) -> None:
    trace = jobs.jobs[key]
    if receipt.user_id not in (None, key[0]) or receipt.job_id not in (None, key[1]):
        inputs.report.violate("another_job", f"{receipt} became {key}", trace.story())

class Completed:
    """Folds `jobs.completed` and holds it against the terminal events."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.records: dict[tuple[str, str, int], tuple[int, dict[str, Any], str | None]] = {}

    def feed(self, record: RawRecord) -> None:
        """One record of `jobs.completed`."""
        try:
            body = orjson.loads(record.value or b"")
        except orjson.JSONDecodeError as error:
            self.report.violate("unreadable_completed", f"offset {record.offset}: {error}")
            return
        key = (body["user_id"], body["job_id"], body["run"])
        if key in self.records:
            self.report.violate(
                "completed_twice", f"{key}: offsets {self.records[key][0]} and {record.offset}"
            )
        if record.key != body["user_id"].encode():
            self.report.violate("wrong_key", f"completed {key} has key {record.key!r}")
        cut = {
            name: body[name]
            for name in ("status", "sequence", "attempts", "reason", "error", "type")
        }
        identity = dict(record.headers).get("ce_id")
        self.records[key] = (
            record.offset, cut, None if identity is None else identity.decode()
        )

    def check(self, jobs: JobFold) -> None:
        """Both say the same of every run, and neither knows a run that the other does not."""
        matched = 0
        for trace in jobs.jobs.values():
            for run, end in trace.end_of.items():
                found = self.records.get((*trace.key, run))
                if found is None:
                    self.report.violate(
                        "not_on_completed", f"{trace.key} run {run}: {end['event']}", trace.story()
                    )
                    continue
                matched += 1
                self._check_pair(trace, end, found)
        if matched != len(self.records):
            for user_id, job_id, run in self.records:
                known = jobs.jobs.get((user_id, job_id))
                if known is None or run not in known.end_of:
                    self.report.violate("completed_invented", f"{(user_id, job_id)} run {run}")

    def _check_pair(
        self, trace: Trace, end: dict[str, Any], found: tuple[int, dict[str, Any], str | None]
    ) -> None:
        offset, body, identity = found
        pairs = (
            ("status", body["status"], end["event"]),
            ("sequence", body["sequence"], end["sequence"]),
            ("attempts", body["attempts"], end["attempt"]),
            ("reason", body["reason"], end["reason"]),
            ("error", body["error"], end["error"]),
            ("type", body["type"], end["type"]),
            ("ce_id", identity, end["event_id"]),
        )
        for name, said, wanted in pairs:
            if said != wanted:
                self.report.violate(
                    "completed_disagrees",
                    f"{trace.key}: completed at {offset} says {name} {said!r}, its event "
                    f"{wanted!r}",
                    trace.story(),
                )


def check_dead_jobs(report: Report, dead: DeadJobs, jobs: JobFold) -> None:
    """Each run that failed is one dead letter, and nothing else is."""
    for trace in jobs.jobs.values():
        failed = sum(end["event"] == "failed" for end in trace.end_of.values())
        if trace.key in dead.refused and is_refused(trace, 1):
            failed -= 1
        letters = dead.letters.pop(trace.key, 0)
        if letters != failed:
            report.violate(
                "dead_letters_wrong", f"{trace.key}: {failed} failed runs, {letters} dead letters",
                trace.story(),
            )
    for key in dead.letters:
        report.violate("dead_letters_wrong", f"{key}: a dead letter of a job that nobody knows")


def check_all_ended(report: Report, jobs: JobFold) -> None:
    """Nothing is left alive once the run is over, whoever asked for it."""
    for trace in jobs.jobs.values():
        if trace.state not in TERMINAL:
            report.violate("never_ended", f"{trace.key} is {trace.state}", trace.story())


def check_children(report: Report, jobs: JobFold, prefixes: Mapping[str, str]) -> None:
    """Who succeeded has the child that it asked for, who did not has none."""
    for trace in list(jobs.jobs.values()):
        prefix = prefixes.get(trace.type)
        if prefix is None:
            continue
        has_child = (trace.user_id, prefix + trace.job_id) in jobs.jobs
        if has_child != (trace.state == "succeeded"):
            report.violate(
                "child_lost" if not has_child else "child_invented",
                f"{trace.key} is {trace.state}", trace.story(),
            )
