"""Internal records: ready packs, outcome packs, heartbeats, control words, definitions.

Owns the shapes between ledger and workers. They may change from version to version; strangers
read `tidemill.schemas.events` instead. Refuses to know how they travel.

Fields that a model does not know are passed over: while an installation is upgraded, its roles are
of two versions, and nobody may be silenced by what is new.

Several jobs share one ready record and several outcomes one outcome record: a record costs more
than what is in it, so packing is most of the engine's speed.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tidemill.schemas.requests import ATTEMPTS_MAX, TIMEOUT_SECONDS_MAX, QueueName, TypeName

PACK_JOBS_MAX: Final = 64  # jobs in one ready record
PACK_BYTES_MAX: Final = 262_144  # bytes of payloads in one ready record, unless it is a single job
# Bytes of what a job remembers that go in its own record, which may also hold a request of 1 MiB.
MEMORY_INLINE_BYTES_MAX: Final = 786_432
MEMORY_PART_BYTES_MAX: Final = 524_288  # bytes of a part of it, unless that is a single entry
#: The type of a job in its record whose memory comes in parts. A worker that knows no parts would
#: run the job as if it remembered nothing; of a type that it does not run it hands a job back.
PARTED_TYPE: Final = "(a job whose memory comes in parts)"
OUTCOMES_PER_RECORD_MAX: Final = 256
OUTCOME_PACK_BYTES_MAX: Final = 524_288  # bytes; a single large result may pass it
DELAY_MS_MAX: Final = 30 * 86_400_000  # ms before a retry, 30 days
BACKOFF_FACTOR_MAX: Final = 1_000.0
COLLAPSE_PATTERN: Final = r"^payload(\.[^.\x00-\x1f\x7f]+)+$"  # names of keys, from the payload on
COLLAPSE_LENGTH_MAX: Final = 256  # characters
CONCURRENCY_MAX: Final = 1_000  # attempts at once: as many as a limit may let start
LIMIT_WINDOW_MS_MAX: Final = 366 * 86_400_000  # ms of a limit's window, a year
HEARTBEAT_SECONDS: Final = 2.0  # seconds between two beats of a worker
HEARTBEAT_MISSING_SECONDS: Final = 10.0  # seconds of silence after which its attempts are rescued
LATE_START_SECONDS: Final = 0.5  # a job that runs longer than this gets a `started` of its own
HANDBACK_SECONDS: Final = 1.0  # a record that cannot start within this is handed back


class ReadyJob(BaseModel):
    """One dispatched attempt in a ready pack."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    user_id: str
    job_id: str
    type: str
    run: int
    attempt: int = Field(description="1 for the first.")
    max_attempts: int
    epoch: int = Field(description="Goes back in the outcome; a stale one is ignored.")
    timeout_ms: int
    requested_at: int = Field(description="Epoch ms.")
    dispatched_at: int = Field(description="Epoch ms.")
    payload: dict[str, Any]
    traceparent: str | None = None
    rescues: int = Field(
        default=0, description="Workers lost under this run; above 0 its start is told first."
    )
    memory: list[list[Any]] | None = Field(
        default=None,
        description="What the job remembers: [name, kind, value] each. kind: step, sleep, signal, "
        "timed_out (no signal came), gather, or ends: some ends of members, [index, end] each, "
        "under the gather's name.",
    )


class MemoryPart(BaseModel):
    """A part of what one job remembers. All parts come before their job, on the same partition."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    user_id: str
    job_id: str
    run: int
    epoch: int
    number: int = Field(description="0 for the first.")
    parts: int = Field(description="How many there are.")
    entries: list[list[Any]] = Field(description="As in `ReadyJob.memory`.")


class Parted(BaseModel):
    """What a record says of its one job, whose memory came in parts before it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: str = Field(description="The job's own; in the job stands PARTED_TYPE.")
    parts: int


class ReadyPack(BaseModel):
    """The value of a record on `jobs.ready.<queue>`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int
    ledger_partition: int = Field(description="Outcomes go to this partition of jobs.outcomes.")
    queue: QueueName
    jobs: list[ReadyJob]
    part: MemoryPart | None = Field(default=None, description="Then there are no jobs.")
    parted: Parted | None = Field(default=None, description="Then there is one job.")


OutcomeKind = Literal[
    "started", "progressed", "stepped", "members", "succeeded", "failed", "skipped", "returned",
    "suspended",
]


class Waits(BaseModel):
    """What a suspended attempt waits for."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: Literal["sleep", "signal", "gather"]
    name: str
    for_ms: int | None = Field(default=None, description="sleep: how long.")
    timeout_ms: int | None = Field(
        default=None, description="signal: how long at most; None: for ever."
    )
    parts: int | None = Field(default=None, description="gather: in how many parts members came.")
    members: int | None = Field(default=None, description="gather: how many there are.")
    parallel: int | None = Field(default=None, description="gather: at a time; None: all.")
    tolerate: dict[str, float] | None = Field(
        default=None, description="gather: how many may fail, as `count` or as `share` of all."
    )


class Outcome(BaseModel):
    """What a worker says of one attempt.

    started, progressed, stepped and members leave the attempt running; the others end it. returned:
    it never began; suspended: its handler waits. Neither spends an attempt.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: OutcomeKind
    user_id: str
    job_id: str
    run: int
    attempt: int
    epoch: int
    started_at: int | None = Field(default=None, description="Epoch ms; None when returned.")
    finished_at: int | None = Field(default=None, description="Epoch ms; None while running.")
    result: Any = None
    error: dict[str, Any] | None = Field(
        default=None, description="failed: code, message, retryable, and trace where one is kept."
    )
    retry_after_ms: int | None = Field(default=None, description="From `Retry(after_seconds=)`.")
    reason: str | None = Field(default=None, description="skipped, returned: why.")
    detail: str | None = Field(default=None, description="returned: more about the reason.")
    holder: str | None = Field(
        default=None, description="returned, redelivered: the worker that had the record before."
    )
    progress: dict[str, Any] | None = Field(
        default=None, description="progressed: percent, stage, message."
    )
    children: list[dict[str, Any]] | None = Field(
        default=None, description="Requests that the handler asked for, born with the outcome."
    )
    name: str | None = Field(
        default=None,
        description="stepped: of the step; result has the rest. members: of the gather.",
    )
    part: int | None = Field(default=None, description="members: which part, 0 for the first.")
    requests: list[dict[str, Any]] | None = Field(
        default=None, description="members: as clients write them; `user_id` is always there."
    )
    waits: Waits | None = Field(default=None, description="suspended: for what.")


class OutcomePack(BaseModel):
    """The value of a record on `jobs.outcomes`; the partition is the ledger's, the key is null."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int
    worker_id: str
    incarnation: int
    outcomes: list[Outcome]


DEFINITION_BYTES_MAX: Final = 1_048_576  # bytes; the ledger keeps each as a row


RunsAs = Literal["async", "thread", "process"]


class KindSlots(BaseModel):
    """How many jobs of one kind of handler a worker can take. All queues share them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    slots: int = Field(ge=0, description="Jobs it runs at once.")
    free: int = Field(ge=0)


class QueueSlots(BaseModel):
    """How much of one queue a worker can take."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kinds: dict[RunsAs, KindSlots] = Field(description="By how handlers run.")
    partitions: tuple[int, ...] = Field(description="Partitions of the ready topic it owns now.")

    @field_validator("kinds", mode="before")
    @classmethod
    def _known_kinds(cls, value: object) -> object:
        """A kind of handler that is new here has no jobs here either."""
        if not isinstance(value, dict):
            return value
        return {name: slots for name, slots in value.items() if name in get_args(RunsAs)}


class Heartbeat(BaseModel):
    """One beat on `jobs.heartbeats`; key = worker_id."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int
    worker_id: str = Field(description="Stable over restarts.")
    incarnation: int = Field(description="Epoch ms of its start: grows with each restart.")
    at: int = Field(description="Epoch ms, the worker's clock.")
    queues: dict[str, QueueSlots]
    types: tuple[str, ...]
    running: int
    schedules: str | None = Field(
        default=None, description="The set that it announces; None: it knows of no schedules."
    )
    is_stopping: bool = False
    former_end: str | None = Field(
        default=None, description="How the process before this one ended; None: nobody knows."
    )
    is_stalled: bool = Field(
        default=False,
        description="Its loop stands still while code of a handler runs: it lives, takes nothing, "
        "and what has not begun there will not begin there.",
    )
    begun: tuple[int, ...] = Field(
        default=(),
        description="Stalled: marks (tidemill.schemas.marks) of the attempts that began last.",
    )


class ControlMessage(BaseModel):
    """One record on `jobs.control`, read by every worker."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int
    word: Literal["cancel"]
    user_id: str
    job_id: str
    run: int
    epoch: int


class BackoffSpec(BaseModel):
    """Delay before attempt n+1: min(cap, base * factor**(n-1)), then jitter."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    base_ms: int = Field(default=2_000, ge=0, le=DELAY_MS_MAX)
    factor: float = Field(default=2.0, ge=1.0, le=BACKOFF_FACTOR_MAX)
    jitter: float = Field(default=0.2, ge=0.0, le=1.0, description="Share of the delay, +/-.")
    cap_ms: int = Field(default=300_000, ge=0, le=DELAY_MS_MAX)


class LimitSpec(BaseModel):
    """At most `limit` first dispatches in any window of `window_ms`, per user and type."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    limit: int = Field(ge=1, le=1_000)
    window_ms: int = Field(ge=1, le=LIMIT_WINDOW_MS_MAX)
    over: Literal["skip", "delay"]
    by: Literal["user"] = "user"


class ConcurrencySpec(BaseModel):
    """At most `limit` attempts at once, per user and type."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    limit: int = Field(ge=1, le=CONCURRENCY_MAX)
    by: Literal["user"] = "user"


class Definition(BaseModel):
    """What a worker can run: one record on `jobs.definitions`, key = type, compacted."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int
    type: TypeName
    queue: QueueName = "default"
    max_attempts: int = Field(default=3, ge=1, le=ATTEMPTS_MAX)
    timeout_ms: int = Field(default=300_000, ge=1, le=int(TIMEOUT_SECONDS_MAX * 1000))
    backoff: BackoffSpec = BackoffSpec()
    limits: tuple[LimitSpec, ...] = ()
    concurrency: ConcurrencySpec | None = None
    unique_by: Literal["user"] | None = None
    collapse_by: str | None = Field(
        default=None, pattern=COLLAPSE_PATTERN, max_length=COLLAPSE_LENGTH_MAX,
        description="Requests of a user and type whose payloads have the same value there share "
        "one run, such as `payload.report_id`.",
    )
    runs_as: RunsAs = "async"
    takes_tick: bool = Field(default=False, description="Its payload is a schedule's tick.")
    payload_schema: dict[str, Any] | None = Field(
        default=None, description="JSON Schema of the payload; None when it takes any dict."
    )
