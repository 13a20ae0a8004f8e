"""The ledger: whether its processes decide, and how far behind they are.

Owns the checks of the ledger's group. Refuses to join that group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from confluent_kafka import Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._group import ConsumerGroupDescription
from confluent_kafka.admin._listoffsets import OffsetSpec

from tidemill.agents.runtime.clients import client_settings
from tidemill.agents.settings import CommonSettings
from tidemill.doctor.finding import ANSWER_SECONDS, Check, Finding
from tidemill.schemas.topics import Topics

# Records that the ledger has not decided; a burst passes this. Markers of transactions count as
# records and never go away.
LAG_RECORDS_MAX: Final = 10_000
UNREAD_NAMED_MAX: Final = 5  # partitions without a reader that are named


def deciding(settings: CommonSettings) -> Finding:
    """Members of the ledger's group, and records that it has not decided, by partition."""
    described = _described(settings)
    members = 0 if described is None else len(described.members)
    lags: dict[int, int] = {}
    for one in _inputs(settings):
        lags[one.partition] = lags.get(one.partition, 0) + one.end - max(0, one.committed)
    total = sum(lags.values())
    by_partition = ", ".join(f"{number}: {lag}" for number, lag in sorted(lags.items()))
    found = f"{members} process(es); lag {total} records ({by_partition})"
    if members == 0:
        return Finding("ledger", "failed", found, "start `tidemill ledger` (or `tidemill dev`)")
    if total > LAG_RECORDS_MAX:
        return Finding(
            "ledger", "warning", found,
            "when it does not shrink: run more ledger processes, at most one a partition",
        )
    return Finding("ledger", "ok", found)


def owned(settings: CommonSettings) -> Finding:
    """Whether each partition of each input has a reader; processes without any are standbys."""
    check = "ledger inputs"
    described = _described(settings)
    if described is None or not described.members:
        return Finding(check, "unknown", "no ledger runs")
    shares = [
        {(tp.topic, tp.partition) for tp in member.assignment.topic_partitions}
        for member in described.members
    ]
    read = set[tuple[str, int]]().union(*shares)
    inputs = {(one.topic, one.partition) for one in _inputs(settings)}
    unread = sorted(inputs - read)
    if unread:
        names = [f"{topic}[{number}]" for topic, number in unread]
        if len(names) > UNREAD_NAMED_MAX:
            names[UNREAD_NAMED_MAX:] = [f"{len(names) - UNREAD_NAMED_MAX} more"]
        return Finding(
            check, "failed", f"nobody reads {', '.join(names)}",
            "when it stays so for half a minute: see the ledgers' logs, and start them again",
        )
    standbys = sum(not share for share in shares)
    found = f"all {len(inputs)} read"
    return Finding(check, "ok", f"{found}, {standbys} on standby" if standbys else found)


def gaps(settings: CommonSettings) -> Finding:
    """Records that were deleted from an input before the ledger had read them."""
    missing = [
        f"{one.topic} {one.partition}: {max(0, one.committed)} to {one.start - 1}"
        for one in _inputs(settings)
        if one.start > max(0, one.committed)
    ]
    if missing:
        return Finding(
            "gaps", "failed", f"deleted unread: {'; '.join(missing)}",
            "ask the senders for what is missing (a repeat with its job_id is harmless), then "
            "start the ledger with TIDEMILL_ACCEPT_GAPS=true once",
        )
    return Finding("gaps", "ok", "every input is there from where the ledger reads on")


@dataclass(frozen=True, slots=True)
class _Input:
    """One partition of an input: what the log holds, and where the ledger's group is."""

    topic: str
    partition: int
    start: int
    end: int
    committed: int  # below 0: never


def _described(settings: CommonSettings) -> ConsumerGroupDescription | None:
    admin = AdminClient(client_settings(settings.kafka, "tidemill-doctor", {}))
    group = f"{settings.topic_prefix}tidemill-ledger"
    described = admin.describe_consumer_groups([group], request_timeout=ANSWER_SECONDS)
    try:
        found: ConsumerGroupDescription = described[group].result(timeout=ANSWER_SECONDS)
    except KafkaException:
        return None
    return found


def _inputs(settings: CommonSettings) -> list[_Input]:
    """Every partition of the ledger's inputs that is there."""
    topics = Topics(settings.topic_prefix)
    admin = AdminClient(client_settings(settings.kafka, "tidemill-doctor", {}))
    known = admin.list_topics(timeout=ANSWER_SECONDS).topics
    places = [
        TopicPartition(topic, partition)
        for topic in topics.ledger_inputs
        if topic in known
        for partition in known[topic].partitions
    ]
    if not places:
        return []
    starts = _offsets(admin, places, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
    ends = _offsets(admin, places, OffsetSpec.latest())  # type: ignore[no-untyped-call]
    # Not the admin client's question: where the group's coordinator is not up yet, as on a new
    # broker, it ends the process.
    group = f"{settings.topic_prefix}tidemill-ledger"
    reader = Consumer(client_settings(settings.kafka, "tidemill-doctor", {"group.id": group}))
    try:
        committed = reader.committed(places, timeout=ANSWER_SECONDS)
    finally:
        reader.close()
    return [
        _Input(one.topic, one.partition, starts[one.topic, one.partition],
               ends[one.topic, one.partition], one.offset)
        for one in committed
    ]


def _offsets(
    admin: AdminClient, places: list[TopicPartition], spec: OffsetSpec
) -> dict[tuple[str, int], int]:
    answers = admin.list_offsets(
        dict.fromkeys(places, spec), isolation_level=IsolationLevel.READ_COMMITTED,
        request_timeout=ANSWER_SECONDS,
    )
    return {
        (place.topic, place.partition): future.result(timeout=ANSWER_SECONDS).offset
        for place, future in answers.items()
    }


CHECKS: Final = (
    Check("ledger", deciding, needs="kafka"),
    Check("ledger inputs", owned, needs="kafka"),
    Check("gaps", gaps, needs="kafka"),
)
