"""A sample of job lives as rows of `job_events`, and the tables to put them in.

Owns a small, seeded imitation of what the ledger writes: legal lives with waits, retries, rescues
and every end. Refuses to use the engine's code, so that the panels are checked against something
that was counted apart from them.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import orjson

from tidemill.agents.clickhouse.engine import Engine, open_engine
from tidemill.agents.clickhouse.migrate import migrate
from tidemill.schemas.rows import JOB_EVENTS

TYPES: Final = (
    # type, queue, usual run in ms, share of attempts that fail, code, message
    ("analysis.profile", "ai_analysis", 180, 0.06, "MODEL_OVERLOADED",
     "the model answered 529 after 3 tries; lower the concurrency of ai_analysis"),
    ("email.send", "mail", 45, 0.015, "SMTP_421", "421 4.7.0 try again later"),
    ("report.render", "reports", 2_400, 0.11, "TIMEOUT",
     "the attempt ran longer than 30 s; raise timeout_seconds or split the report"),
    ("image.resize", "media", 320, 0.02, "HANDLER_ERROR", "UnidentifiedImageError: not an image"),
    ("feed.fetch", "default", 600, 0.08, "HTTP_502", "502 from the feed's host"),
)
WEIGHTS: Final = (40, 30, 6, 14, 10)
ATTEMPTS_MAX: Final = 3
EARLY_SHARE: Final = 0.01  # of the jobs, asked for before their type is known


@dataclass
class Sample:
    """Rows of job_events, and what a person would count in them."""

    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def ended(self, status: str) -> list[dict[str, Any]]:
        """Terminal events of one status."""
        return [row for row in self.rows if row["event"] == status]

    def last_states(self) -> dict[tuple[str, str], str]:
        """(user, job) -> state after its last event with a sequence."""
        return {
            (row["user_id"], row["job_id"]): row["state_after"]
            for row in self.rows
            if row["sequence"]
        }


class Life:
    """Writes the events of one job in order."""

    def __init__(
        self, sample: Sample, user_id: str, job_id: str, kind: str, queue: str, at: datetime
    ) -> None:
        self._sample = sample
        self._base = {
            "user_id": user_id, "job_id": job_id, "type": kind, "queue": queue,
            "priority": "medium", "incarnation": int(at.timestamp() * 1000), "run": 1,
        }
        self.at = at
        self.begun = at
        self.attempt = self.sequence = 0
        self.state = ""

    def tell(self, event: str, state: str, after_ms: float = 0, **values: Any) -> Life:
        """One event, `after_ms` after the one before."""
        self.at += timedelta(milliseconds=after_ms)
        self.sequence += 1
        if event == "dispatched":
            self.attempt += 1
        row = self._base | {
            "kafka_partition": 0, "kafka_offset": len(self._sample.rows),
            "event_id": f"{self._base['user_id']}/{self._base['job_id']}/{self.sequence}",
            "event": event, "sequence": self.sequence, "attempt": self.attempt,
            "epoch": self.attempt, "occurred_at": _text(self.at), "state_before": self.state,
            "state_after": state, "reason": "", "error_code": "", "error_message": "",
            "error_retryable": False, "worker_id": "", "due_at": None, "wait_ms": None,
            "run_ms": None, "cause_topic": "jobs.outcomes" if self.attempt else "jobs.requested",
            "cause_partition": 0, "cause_offset": len(self._sample.rows), "data": "",
        }
        self._sample.rows.append(row | values)
        self.state = state
        return self

    def move_to(self, queue: str) -> None:
        """From now on the job is in `queue`."""
        self._base["queue"] = queue

    @property
    def queue(self) -> str:
        """Where the job is; '' until its type is known."""
        return str(self._base["queue"])

    @property
    def waited_ms(self) -> int:
        """From the request until now."""
        return int((self.at - self.begun).total_seconds() * 1000)


def _text(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def request(
    sample: Sample, at: datetime, user_id: str, job_id: str, kind: str, queue: str, payload: Any
) -> Life:
    """A life that has just begun."""
    data = {"payload": payload, "max_attempts": 3, "timeout_ms": 30_000}
    life = Life(sample, user_id, job_id, kind, queue, at)
    return life.tell("requested", "pending", data=orjson.dumps(data).decode())


def live_through(life: Life, rng: random.Random, until: datetime, kind: Any) -> None:
    """Dispatch, run, retry, end: as far as it comes by `until`."""
    _, _, usual_ms, fail_share, code, message = kind
    error: dict[str, Any] = {"error_code": code, "error_message": message, "error_retryable": True}
    worker = f"worker-{rng.randrange(3)}"
    delay_ms = rng.lognormvariate(2.6, 0.8)
    while True:
        life.tell("dispatched", "dispatched", delay_ms)
        run_ms = int(rng.lognormvariate(0, 0.5) * usual_ms)
        wait_ms = life.waited_ms + 6
        times: dict[str, Any] = {"wait_ms": wait_ms, "run_ms": run_ms, "worker_id": worker}
        if run_ms > 500:
            started: dict[str, Any] = {"wait_ms": wait_ms, "worker_id": worker}
            life.tell("attempt_started", "running", 6, **started)
        if life.at + timedelta(milliseconds=run_ms + 20) > until:
            return
        if rng.random() >= fail_share:
            result = orjson.dumps({"result": {"score": round(rng.random(), 3)}}).decode()
            life.tell("attempt_succeeded", "running", run_ms, **times)
            life.tell("succeeded", "succeeded", **times, data=result)
            return
        life.tell("attempt_failed", "running", run_ms, **times, **error)
        if life.attempt == ATTEMPTS_MAX:
            life.tell("failed", "failed", **times, **error, reason="attempts_exhausted")
            return
        delay_ms = 2_000.0 * 2 ** (life.attempt - 1)
        due_at = life.at + timedelta(milliseconds=delay_ms)
        life.tell("retry_scheduled", "retrying", due_at=_text(due_at), **error)
        if due_at > until:
            return


def make_sample(now: datetime, jobs: int = 4_000, minutes: int = 14, seed: int = 7) -> Sample:
    """`jobs` lives that began within the last `minutes`, in a wave with a burst of errors."""
    rng = random.Random(seed)
    sample = Sample()
    start = now - timedelta(minutes=minutes)
    many = jobs - NOT_SERVED - NOT_RUN - SUSPENDED - TICKS
    begins = sorted(rng.betavariate(1.3, 1.0) * minutes * 60 for _ in range(many))
    for index, begin in enumerate(begins):
        kind = rng.choices(TYPES, WEIGHTS)[0]
        in_burst = kind[0] == "feed.fetch" and 0.55 < begin / (minutes * 60) < 0.7
        chosen = (*kind[:3], 0.8, *kind[4:]) if in_burst else kind
        user_id = f"user-{int(rng.paretovariate(1.1)) % 400:03d}"
        job_id = f"{kind[0].partition('.')[0]}-{index:05d}"
        payload = {"message": f"line {index}", "language": rng.choice(("en", "de", "ru"))}
        at = start + timedelta(seconds=begin)
        if rng.random() < EARLY_SHARE:
            life = _early(request(sample, at, user_id, job_id, kind[0], "", payload), rng, kind[1])
        else:
            life = request(sample, at, user_id, job_id, kind[0], kind[1], payload)
        _one_life(life, rng, now, chosen)
    _nobody_runs(sample, now - timedelta(minutes=2))
    _suspended(sample, now - timedelta(minutes=2))
    _ticks(sample, now - timedelta(minutes=TICKS + 1))
    sample.rows.sort(key=lambda row: (row["occurred_at"], row["sequence"]))
    return sample


def _early(life: Life, rng: random.Random, queue: str) -> Life:
    """Asked for before a worker told of its type, so that its queue comes later, if at all."""
    life.tell("deferred", "scheduled", reason="unknown_type")
    if rng.random() < 0.5:
        life.move_to(queue)
        life.tell("scheduled", "scheduled", 700)
    return life


NOT_SERVED: Final = 3  # jobs of the sample in a queue without workers
NOT_RUN: Final = 2  # of a type that no worker of its queue runs
SUSPENDED: Final = 4  # whose handlers sleep
TICKS: Final = 12  # of the sample's schedule, one a minute
TICK_FAILS: Final = 3  # every third of them fails


def _nobody_runs(sample: Sample, at: datetime) -> None:
    """Jobs for which no worker is there, and some that came back from one that lacks their type."""
    for number in range(NOT_SERVED):
        life = request(sample, at, "ada", f"letter-{number}", "mail.send", "mail", {})
        life.tell("deferred", "scheduled", 30_000, reason="queue_not_served")
    for number in range(NOT_RUN):
        life = request(sample, at, "ada", f"gone-{number}", "feed.gone", "feed", {})
        life.tell("dispatched", "dispatched", 10)
        life.tell("returned", "pending", 90, reason="type_not_run", data='{"returns":1}')
        life.tell("deferred", "scheduled", reason="handed_back", due_at=_text(at))
        life.tell("deferred", "scheduled", 3_000, reason="type_not_run", due_at=_text(at))


def _suspended(sample: Sample, at: datetime) -> None:
    """Jobs whose handlers sleep for a week."""
    due_at = _text(at + timedelta(days=7))
    for number in range(SUSPENDED):
        life = request(sample, at, "ada", f"trial-{number}", "trial.follow_up", "trials", {})
        life.tell("dispatched", "dispatched", 10)
        life.tell("suspended", "awaiting", 40, reason="sleeping", due_at=due_at)


def tick_id(at: datetime) -> str:
    """The id of the sample's tick of an instant."""
    return f"minutely@{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _ticks(sample: Sample, at: datetime) -> None:
    """A schedule's jobs: the clock's, and last of all one that somebody asked for by hand."""
    for number in range(TICKS):
        at += timedelta(minutes=1)
        job_id = tick_id(at) + ("!by-hand" if number == TICKS - 1 else "")
        life = request(sample, at, "schedule:minutely", job_id, "report.minutely", "reports", {})
        life.tell("dispatched", "dispatched", 5)
        times: dict[str, Any] = {"wait_ms": 7, "run_ms": 20}
        if number % TICK_FAILS == 0:
            life.tell("attempt_failed", "running", 20, **times, error_code="HTTP_502")
            life.tell("failed", "failed", **times, error_code="HTTP_502", reason="not_retryable")
        else:
            life.tell("attempt_succeeded", "running", 20, **times)
            life.tell("succeeded", "succeeded", **times)


def _one_life(life: Life, rng: random.Random, now: datetime, kind: Any) -> None:
    fate = rng.random()
    if not life.queue:
        if fate < 0.5:
            life.tell("failed", "failed", 9_000, reason="not_retryable", error_code="UNKNOWN_TYPE")
        return
    if kind[0] == "analysis.profile" and fate < 0.12:
        life.tell("skipped", "skipped", reason="rate_limited")
    elif fate > 0.995:
        life.tell("cancelled", "cancelled", 900, reason="cancelled_by_command")
    elif fate > 0.992:
        life.tell("expired", "expired", 1_500, reason="expired_before_start")
    elif fate > 0.985:
        life.tell("scheduled", "scheduled", reason="run_at", due_at=_text(now + timedelta(hours=1)))
    else:
        live_through(life, rng, now, kind)


def insert(engine: Engine, sample: Sample) -> None:
    """The rows into `job_events`; what hangs on it fills itself."""
    lines = b"\n".join(orjson.dumps(row) for row in sample.rows)
    # The trace is read out of `data`: nothing writes it.
    columns = [name for name in JOB_EVENTS if name != "error_trace"]
    engine.insert_bytes("job_events", lines, columns=columns)


def create_tables(engine: Engine) -> None:
    """The product's own tables."""
    migrate(engine)


@contextlib.contextmanager
def engine_with(place: Path | str, sample: Sample | None) -> Iterator[Engine]:
    """ClickHouse's engine in a folder, or at an address (`open_engine`), with the tables and the
    sample's rows, if any."""
    engine = open_engine(place if isinstance(place, str) else f"chdb://{place}")
    try:
        create_tables(engine)
        if sample is not None:
            insert(engine, sample)
        yield engine
    finally:
        engine.close()
