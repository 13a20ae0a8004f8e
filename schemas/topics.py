"""The topic registry: every topic, who writes it, who reads it, how it is kept.

Owns names, partition counts and topic settings. Refuses to know how topics are created
(`tidemill.agents.topics`) or what is in a record (`tidemill.schemas.events`,
`tidemill.schemas.wire`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS

DEV_PARTITIONS: Final = 4  # the ledger's N in `tidemill dev`
READY_PARTITIONS: Final = 8  # partitions of each ready topic: bounds the workers of a queue
BIG_RECORD_BYTES: Final = 4 * 1_048_576  # requests above 1 MiB arrive, to be refused with a reason
DEAD_RECORD_BYTES: Final = 8 * 1_048_576  # a dead letter wraps the largest record that arrives
RECORD_BYTES: Final = 2 * 1_048_576


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as `tidemill topics apply` makes it. `partitions` 0 stands for the ledger's N."""

    name: str
    partitions: int
    key: str
    written_by: str
    read_by: str
    meaning: str
    config: dict[str, str] = field(default_factory=dict)
    is_public: bool = False


def _retained(days: int, record_bytes: int = RECORD_BYTES) -> dict[str, str]:
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(days * DAY_MS),
        # What is kept for how long goes by the broker's clock: a record that its sender dates back
        # would be deleted unread, and one dated ahead would be refused.
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(record_bytes),
        # A codec of the topic's own would take the place of ours, which every client reads.
        "compression.type": "producer",
    }


def _compacted() -> dict[str, str]:
    return {
        "cleanup.policy": "compact",
        "segment.bytes": str(64 * 1_048_576),
        "segment.ms": str(10 * 60_000),
        "min.cleanable.dirty.ratio": "0.2",
        "delete.retention.ms": str(HOUR_MS),
        "max.message.bytes": str(RECORD_BYTES),
    }


@dataclass(frozen=True, slots=True)
class Topics:
    """All topic names of one installation. `prefix` keeps several apart on one broker."""

    prefix: str = ""

    def _name(self, name: str) -> str:
        return f"{self.prefix}{name}"

    @property
    def requested(self) -> str:
        return self._name("jobs.requested")

    @property
    def commands(self) -> str:
        return self._name("jobs.commands")

    @property
    def outcomes(self) -> str:
        return self._name("jobs.outcomes")

    @property
    def internal(self) -> str:
        return self._name("jobs.internal")

    @property
    def events(self) -> str:
        return self._name("jobs.events")

    @property
    def completed(self) -> str:
        return self._name("jobs.completed")

    @property
    def retry(self) -> str:
        return self._name("jobs.retry")

    @property
    def dead(self) -> str:
        return self._name("jobs.dead")

    @property
    def state(self) -> str:
        return self._name("tidemill-state")

    @property
    def owners(self) -> str:
        return self._name("tidemill-owners")

    @property
    def ledger_table(self) -> str:
        return self._name("tidemill-ledger-partitions-changelog")

    @property
    def heartbeats(self) -> str:
        return self._name("jobs.heartbeats")

    @property
    def control(self) -> str:
        return self._name("jobs.control")

    @property
    def definitions(self) -> str:
        return self._name("jobs.definitions")

    @property
    def schedules(self) -> str:
        return self._name("jobs.schedules")

    @property
    def folded(self) -> tuple[str, ...]:
        """Inputs that anybody writes: what is in a partition past N is read, and forwarded home."""
        return (self.requested, self.commands)

    @property
    def exact(self) -> tuple[str, ...]:
        """Topics whose partition p means ledger partition p to who writes them, or to who reads
        them: with more than N of them nobody could say what a record in the rest is for."""
        return (self.outcomes, self.internal, self.events, self.state, self.owners,
                self.ledger_table)

    def ready(self, queue: str) -> str:
        """The topic from which workers take the jobs of `queue`."""
        return self._name(f"jobs.ready.{queue}")

    @property
    def ledger_inputs(self) -> tuple[str, ...]:
        """What the ledger reads, most urgent first: no flood of requests delays an outcome."""
        return (self.outcomes, self.commands, self.internal, self.requested)

    def fixed(self) -> tuple[TopicSpec, ...]:
        """Every topic but the ready topics, which come with their queues."""
        return (
            TopicSpec(
                self.requested, 0, "user_id", "anybody", "ledger",
                "Requests: plain JSON or CloudEvents (binary or structured).",
                _retained(7, BIG_RECORD_BYTES), is_public=True,
            ),
            TopicSpec(
                self.commands, 0, "user_id", "client, API", "ledger",
                "Commands about jobs (cancel, redrive, signal) and schedules.", _retained(7),
                is_public=True,
            ),
            TopicSpec(
                self.outcomes, 0, "none", "worker", "ledger",
                "What became of dispatched attempts, several a record.", _retained(7),
            ),
            TopicSpec(
                self.internal, 0, "as it was, or the home key", "ledger", "ledger",
                "Between partitions: forwarded requests and commands, and messages of policies.",
                _retained(7, BIG_RECORD_BYTES),
            ),
            TopicSpec(
                self.events, 0, "user_id", "ledger", "sink, anybody",
                "Every transition of every job, the log.", _retained(7), is_public=True,
            ),
            TopicSpec(
                self.completed, 0, "user_id", "ledger", "anybody",
                "One terminal record for each (user_id, job_id, run). Read it read_committed.",
                _retained(7), is_public=True,
            ),
            TopicSpec(
                self.retry, 0, "user_id", "ledger", "anybody",
                "Retries as they are scheduled: news, the timer is in the ledger.",
                _retained(7), is_public=True,
            ),
            TopicSpec(
                self.dead, 0, "as it was", "ledger, sink", "sink, anybody",
                "Dead letters: refused records as they were, and failed jobs.",
                _retained(30, DEAD_RECORD_BYTES), is_public=True,
            ),
            TopicSpec(
                self.state, 0, "row key", "ledger", "ledger",
                "The ledger's rows and applied positions, compacted.", _compacted(),
            ),
            TopicSpec(
                self.owners, 0, "none", "ledger", "ledger",
                "Which transactional ids may write a ledger partition, and whether their owner has "
                "let go.",
                _compacted(),
            ),
            TopicSpec(
                self.ledger_table, 0, "none", "nobody", "nobody",
                "Stays empty: the Faust table over it keeps partition p of all of the ledger's "
                "inputs in one process.", _compacted(),
            ),
            *self._single(),
        )

    def _single(self) -> tuple[TopicSpec, ...]:
        """Those of one partition, which few write to."""
        return (
            TopicSpec(
                self.heartbeats, 1, "worker_id", "worker", "ledger, API",
                "Every worker, every 2 s: free slots and ready partitions.",
                {"cleanup.policy": "delete", "retention.ms": str(HOUR_MS),
                 "message.timestamp.type": "LogAppendTime", "segment.ms": str(10 * 60_000)},
            ),
            TopicSpec(
                self.control, 1, "none", "ledger", "worker",
                "Words to all workers: cancel.", _retained(1),
            ),
            TopicSpec(
                self.definitions, 1, "type", "worker", "ledger, client, API",
                "What workers can run: types, queues, policies, payload schemas.", _compacted(),
            ),
            TopicSpec(
                self.schedules, 1, "name", "ledger", "client, API",
                "What each schedule is now, written when it changes; no value: it is gone.",
                _compacted(),
            ),
        )

    def ready_spec(self, queue: str) -> TopicSpec:
        """The ready topic of one queue."""
        return TopicSpec(
            self.ready(queue), READY_PARTITIONS, "none", "ledger", "worker",
            f"Dispatched jobs of queue {queue}, several a record.", _retained(7, RECORD_BYTES),
        )
