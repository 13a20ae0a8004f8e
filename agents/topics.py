"""Topics: what must exist, what differs, and making it so.

Owns the comparison of the topic registry with a cluster, replication, and the rule that the
ledger's partition count is fixed at the first start. Refuses to know what is in the topics.

The partition count of the state topic is where N is written down: each ledger partition's state
lives there, so a user's jobs would be looked for in another place under another N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

# The package's own `admin` re-exports these without telling type checkers.
from confluent_kafka.admin._config import (
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewPartitions, NewTopic

from tidemill.agents import clocks, exit_codes
from tidemill.agents.runtime.clients import client_settings
from tidemill.agents.runtime.failstop import fail_stop
from tidemill.schemas.topics import Topics, TopicSpec

ADMIN_SECONDS: Final = 20.0  # one request to the controller, a busy machine included
AWAITED_POLL_SECONDS: Final = 0.25  # between two looks for topics that somebody else makes
AWAITED_TOLD_SECONDS: Final = 30.0  # then it is said again what is missing
# For topics that come while an installation stands: `topics apply` of this version may be at work,
# and brokers learn of its topics one after the other.
STANDING_SECONDS: Final = 10.0
VISIBLE_POLL_SECONDS: Final = 0.02  # between two looks at whether a change is visible
REPLICATION: Final = 3  # the usual for data that must survive the loss of one machine
MIN_INSYNC: Final = 2  # with three copies: one machine may be away and acks=all still holds
DEFAULT_QUEUE: Final = "default"

# Answers of Kafka that no waiting changes: a topic's name, a right, a size, a policy.
FINAL_KAFKA_ERRORS: Final = frozenset(
    {
        KafkaError.TOPIC_EXCEPTION, KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED, KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.POLICY_VIOLATION, KafkaError.INVALID_CONFIG, KafkaError.INVALID_RECORD,
        KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError.UNSUPPORTED_VERSION,
    }
)

Action = Literal["create", "configure", "grow", "conflict"]


class TopicsError(Exception):
    """Topics that cannot be used as they are. The text says what is there and the way out."""


class TopicRefused(TopicsError):
    """Kafka's answer will be the same next time: a name, a right, a policy."""


class TopicConflict(TopicsError):
    """A topic that `apply` cannot mend: its number of partitions does not fit."""


class OlderInstallation(TopicConflict):
    """The topics are those of an older version: some that this one needs are not there."""

    def __init__(self, missing: Sequence[str], kafka: str) -> None:
        super().__init__(
            f"the topics at {kafka} are those of an older version, without {', '.join(missing)}: "
            "run `tidemill topics apply` of this version with the same --topic-prefix and "
            "--partitions, then start again; it adds topics, and no record is changed or lost"
        )
        self.missing = tuple(missing)


class PartitionsMismatch(TopicsError):
    """The topics exist with another number of ledger partitions than was asked for."""

    def __init__(self, expected: int, found: int, topic: str) -> None:
        super().__init__(
            f"--partitions {expected} does not fit: {topic} exists with {found} partitions, and "
            f"the number is fixed at the first start; use --partitions {found} (or "
            f"TIDEMILL_PARTITIONS={found}), or another --topic-prefix or data folder"
        )
        self.expected = expected
        self.found = found


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between the registry and the cluster, and what `apply` does about it."""

    topic: str
    action: Action
    detail: str
    partitions: int = 0
    config: dict[str, str] = field(default_factory=dict)


def admin_client(kafka: str) -> AdminClient:
    """An admin client that keeps librdkafka's chatter out of stderr."""
    return AdminClient(client_settings(kafka, "tidemill-topics", {}))


def wanted(topics: Topics, partitions: int, queues: Iterable[str]) -> list[TopicSpec]:
    """Every topic of an installation, with its real number of partitions."""
    specs = list(topics.fixed())
    specs.extend(topics.ready_spec(queue) for queue in dict.fromkeys((DEFAULT_QUEUE, *queues)))
    return [
        spec
        if spec.partitions
        else TopicSpec(
            spec.name,
            partitions,
            spec.key,
            spec.written_by,
            spec.read_by,
            spec.meaning,
            spec.config,
            spec.is_public,
        )
        for spec in specs
    ]


def found_partitions(kafka: str, topics: Topics) -> int | None:
    """The ledger's N as it was written down at the first start; None before that."""
    return _counts(admin_client(kafka)).get(topics.state)


def check_partitions(kafka: str, topics: Topics, partitions: int) -> None:
    """Raise PartitionsMismatch when the cluster was set up with another N, TopicConflict when one
    of the ledger's topics has another number. Topics that are not there yet are passed over."""
    there = counts(kafka)
    found = there.get(topics.state)
    if found is not None and found != partitions:
        raise PartitionsMismatch(partitions, found, topics.state)
    problem = count_problem(topics, partitions, there)
    if problem is not None:
        raise TopicConflict(problem)


def counts(kafka: str) -> dict[str, int]:
    """Topic -> its partitions, of all topics there."""
    return _counts(admin_client(kafka))


def count_problem(topics: Topics, partitions: int, there: Mapping[str, int]) -> str | None:
    """Which topic has a number of partitions with which no ledger, worker or sink may go on, and
    the way out; None when there is none. `there`: the counts of the topics that are there."""
    for spec in topics.fixed():
        found, needed = there.get(spec.name, 0), spec.partitions or partitions
        if found > needed and (spec.partitions or spec.name in topics.exact):
            return too_many(spec.name, found, needed)
        if 0 < found < needed:
            return (
                f"topic {spec.name} has {found} partitions and needs {needed}: run `tidemill "
                "topics apply`, which adds them"
            )
    return None


def end_on_conflict(topics: Topics, partitions: int, counts: Mapping[str, int]) -> None:
    """End the process for good when a topic has got a number of partitions that does not fit."""
    problem = count_problem(topics, partitions, counts)
    if problem is not None:
        fail_stop(problem, code=exit_codes.CONFLICT)


def too_many(topic: str, found: int, partitions: int) -> str:
    """What is wrong with a topic that somebody grew, and what to do without losing a record."""
    return (
        f"topic {topic} has {found} partitions and needs {partitions}; Kafka cannot take "
        "partitions away, and with more of them records would be read by nobody. Nothing is lost: "
        "stop the roles, and go on under another --topic-prefix, whose topics `tidemill topics "
        "apply` makes. Do not delete the topic: what is in it has perhaps not been read"
    )


def await_topics(
    kafka: str, topics: Topics, names: Iterable[str], say: Callable[[str], None]
) -> None:
    """Return once all of `names` are there; says what is missing, at once and now and then.

    Where no installation stands yet, somebody is about to make one: it is waited for. Where one
    stands, the topic of its state tells so, and nothing but `topics apply` brings what is missing.

    Raises TopicsError when Kafka does not answer, OlderInstallation where one stands.
    """
    admin = admin_client(kafka)
    wanted_names = list(names)
    told_at: float | None = None
    stands_since: float | None = None
    while missing := [name for name in wanted_names if name not in (found := _counts(admin))]:
        now = clocks.monotonic()
        if topics.state in found:
            stands_since = now if stands_since is None else stands_since
            if now - stands_since > STANDING_SECONDS:
                raise OlderInstallation(missing, kafka)
        if told_at is None or now - told_at > AWAITED_TOLD_SECONDS:
            told_at = now
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            say(
                f"waiting: topic {missing[0]}{others} is not at {kafka}, which has {len(found)} "
                "topics; run `tidemill topics apply` with the same --topic-prefix"
            )
        clocks.sleep(AWAITED_POLL_SECONDS)
    if told_at is not None:
        say("all topics are there")


def plan(kafka: str, topics: Topics, partitions: int, queues: Iterable[str] = ()) -> list[Change]:
    """What `apply` would do, in order; an empty list when all is as planned."""
    return _plan(admin_client(kafka), topics, wanted(topics, partitions, queues))


def apply(kafka: str, topics: Topics, partitions: int, queues: Iterable[str] = ()) -> list[Change]:
    """Create and mend topics; the changes that were made.

    Raises PartitionsMismatch before anything is touched when N differs, TopicConflict when a topic
    cannot be mended, TopicsError when the cluster refuses.
    """
    admin = admin_client(kafka)
    found = _counts(admin).get(topics.state)
    if found is not None and found != partitions:
        raise PartitionsMismatch(partitions, found, topics.state)
    changes = _plan(admin, topics, wanted(topics, partitions, queues))
    conflicts = [change for change in changes if change.action == "conflict"]
    if conflicts:
        raise TopicConflict("; ".join(change.detail for change in conflicts))
    _create(admin, [change for change in changes if change.action == "create"])
    _grow(admin, [change for change in changes if change.action == "grow"])
    _configure(admin, [change for change in changes if change.action == "configure"])
    _await(lambda: not _plan(admin, topics, wanted(topics, partitions, queues)))
    return changes


def ensure_ready_topics(kafka: str, topics: Topics, queues: Iterable[str]) -> list[str]:
    """Create the ready topics of `queues` that do not exist; their names."""
    admin = admin_client(kafka)
    counts = _counts(admin)
    specs = [topics.ready_spec(queue) for queue in dict.fromkeys(queues)]
    missing = [spec for spec in specs if spec.name not in counts]
    _create(admin, [_creation(spec) for spec in missing])
    if missing:
        _await(lambda: all(spec.name in _counts(admin) for spec in missing))
    return [spec.name for spec in missing]


def _await(is_done: Callable[[], bool]) -> None:
    """Brokers learn of the controller's word a moment after it was given."""
    deadline = clocks.monotonic() + ADMIN_SECONDS
    while not is_done():
        if clocks.monotonic() > deadline:
            raise TopicsError(f"the topics were not visible {ADMIN_SECONDS:g} s after the change")
        clocks.sleep(VISIBLE_POLL_SECONDS)


def _counts(admin: AdminClient) -> dict[str, int]:
    return {name: len(topic.partitions) for name, topic in _metadata(admin).topics.items()}


def _metadata(admin: AdminClient) -> Any:
    try:
        return admin.list_topics(timeout=ADMIN_SECONDS)
    except KafkaException as error:
        raise TopicsError(
            f"no answer from Kafka ({error.args[0].str()}); check --kafka and that the broker runs"
        ) from error


def _creation(spec: TopicSpec) -> Change:
    return Change(
        spec.name, "create", f"{spec.partitions} partitions", spec.partitions, dict(spec.config)
    )


def _plan(admin: AdminClient, topics: Topics, specs: Sequence[TopicSpec]) -> list[Change]:
    counts = _counts(admin)
    changes: list[Change] = []
    present: list[TopicSpec] = []
    for spec in specs:
        found = counts.get(spec.name)
        if found is None:
            changes.append(_creation(spec))
            continue
        present.append(spec)
        if found != spec.partitions:
            change = _partition_change(spec, found, is_exact=spec.name in topics.exact)
            if change is not None:
                changes.append(change)
    changes.extend(_config_changes(admin, present))
    return changes


def _partition_change(spec: TopicSpec, found: int, *, is_exact: bool) -> Change | None:
    if found < spec.partitions:
        # Nothing moves by that: whoever reads a topic forwards what is not at its place.
        return Change(
            spec.name, "grow", f"{found} -> {spec.partitions} partitions", spec.partitions
        )
    if is_exact or (spec.partitions == 1 and found > 1):
        return Change(spec.name, "conflict", too_many(spec.name, found, spec.partitions))
    # Keyed by nothing, or read by the ledger however many there are, or only written by us.
    return None


def _config_changes(admin: AdminClient, specs: Sequence[TopicSpec]) -> list[Change]:
    if not specs:
        return []
    resources = [ConfigResource(ResourceType.TOPIC, spec.name) for spec in specs]
    answers = admin.describe_configs(resources, request_timeout=ADMIN_SECONDS)
    found = {resource.name: _result(future) for resource, future in answers.items()}
    changes = []
    for spec in specs:
        entries = found[spec.name]
        drift = {
            name: value
            for name, value in spec.config.items()
            if name not in entries or entries[name].value != value
        }
        if drift:
            detail = ", ".join(
                f"{name} {_shown(entries.get(name))} -> {value}" for name, value in drift.items()
            )
            changes.append(Change(spec.name, "configure", detail, config=drift))
    return changes


def _shown(entry: ConfigEntry | None) -> str:
    if entry is None:
        return "unset"
    return f"{entry.value} (default)" if entry.is_default else str(entry.value)


def _create(admin: AdminClient, changes: Sequence[Change]) -> None:
    if not changes:
        return
    replication = min(REPLICATION, len(_metadata(admin).brokers))
    durable = {} if replication == 1 else {"min.insync.replicas": str(MIN_INSYNC)}
    new = [
        NewTopic(
            change.topic,
            num_partitions=change.partitions,
            replication_factor=replication,
            config={**change.config, **durable},
        )
        for change in changes
    ]
    for future in admin.create_topics(new, request_timeout=ADMIN_SECONDS).values():
        # Another process may create the same topic at the same moment.
        _result(future, ignore=KafkaError.TOPIC_ALREADY_EXISTS)


def _grow(admin: AdminClient, changes: Sequence[Change]) -> None:
    if not changes:
        return
    new = [NewPartitions(change.topic, change.partitions) for change in changes]
    for future in admin.create_partitions(new, request_timeout=ADMIN_SECONDS).values():
        _result(future)


def _configure(admin: AdminClient, changes: Sequence[Change]) -> None:
    if not changes:
        return
    resources = [
        ConfigResource(
            ResourceType.TOPIC,
            change.topic,
            incremental_configs=[
                ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
                for name, value in change.config.items()
            ],
        )
        for change in changes
    ]
    answers = admin.incremental_alter_configs(resources, request_timeout=ADMIN_SECONDS)
    for future in answers.values():
        _result(future)


def _result(future: Future[Any], *, ignore: int | None = None) -> Any:
    try:
        return future.result(timeout=ADMIN_SECONDS * 2)
    except KafkaException as error:
        cause = error.args[0]
        if ignore is not None and cause.code() == ignore:
            return None
        kind = TopicRefused if cause.code() in FINAL_KAFKA_ERRORS else TopicsError
        raise kind(f"Kafka refused: {cause.str()}") from error
    except TimeoutError as error:
        raise TopicsError("Kafka did not answer in time; is its controller up?") from error
