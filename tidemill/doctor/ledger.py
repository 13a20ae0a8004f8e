"""The ledger: whether its processes decide, and how far behind they are.

Owns the checks of the ledger's group. Refuses to join that group.
"""

from __future__ import annotations

from typing import Final

from confluent_kafka import Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from agents.runtime.clients import client_settings
from agents.settings import CommonSettings
from schemas.topics import Topics
from tidemill.doctor.finding import ANSWER_SECONDS, Check, Finding

LAG_RECORDS_MAX: Final = 10_000  # records that the ledger has not decided; a burst passes this
# Markers of transactions count as records and never go away.


def deciding(settings: CommonSettings) -> Finding:
    """Members of the ledger's group, and records that it has not decided, by partition."""
    topics = Topics(settings.topic_prefix)
    admin = AdminClient(client_settings(settings.kafka, "tidemill-doctor", {}))
    group = f"{settings.topic_prefix}tidemill-ledger"
    described = admin.describe_consumer_groups([group], request_timeout=ANSWER_SECONDS)
    try:
        members = len(described[group].result(timeout=ANSWER_SECONDS).members)
    except KafkaException:
        members = 0
    lags = _lags(settings.kafka, admin, group, topics)
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


def _lags(kafka: str, admin: AdminClient, group: str, topics: Topics) -> dict[int, int]:
    """Ledger partition -> records of its inputs past the committed offsets."""
    ends = _ends(admin, topics)
    # Not the admin client's question: where the group's coordinator is not up yet, as on a new
    # broker, it ends the process.
    reader = Consumer(client_settings(kafka, "tidemill-doctor", {"group.id": group}))
    try:
        asked = [TopicPartition(topic, partition) for topic, partition in ends]
        answers = reader.committed(asked, timeout=ANSWER_SECONDS) if asked else []
    finally:
        reader.close()
    lags: dict[int, int] = {}
    for one in answers:
        behind = ends[one.topic, one.partition] - max(0, one.offset)
        lags[one.partition] = lags.get(one.partition, 0) + behind
    return lags


def _ends(admin: AdminClient, topics: Topics) -> dict[tuple[str, int], int]:
    known = admin.list_topics(timeout=ANSWER_SECONDS).topics
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    asked = {
        TopicPartition(topic, partition): latest
        for topic in topics.ledger_inputs
        if topic in known
        for partition in known[topic].partitions
    }
    answers = admin.list_offsets(
        asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=ANSWER_SECONDS
    )
    return {
        (place.topic, place.partition): future.result(timeout=ANSWER_SECONDS).offset
        for place, future in answers.items()
    }


CHECKS: Final = (Check("ledger", deciding, needs="kafka"),)
