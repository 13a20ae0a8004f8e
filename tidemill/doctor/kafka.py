"""The broker and its topics.

Owns whether Kafka answers and holds what is planned. Refuses to change a topic.
"""

from __future__ import annotations

import time
from typing import Final

from tidemill.agents import topics as topics_
from tidemill.agents.settings import CommonSettings
from tidemill.doctor.finding import Check, Finding
from tidemill.looking import Unreachable, reach
from tidemill.schemas.topics import Topics


def reachable(settings: CommonSettings) -> Finding:
    kafka = settings.kafka
    begun = time.monotonic()
    try:
        brokers = reach(kafka)
    except Unreachable as error:
        return Finding(
            "kafka", "failed", str(error),
            "start it with `tidemill dev` or `tidemill broker start`, or set --kafka",
        )
    took_ms = (time.monotonic() - begun) * 1000
    return Finding("kafka", "ok", f"{kafka}: {brokers} broker(s), {took_ms:.0f} ms")


def as_planned(settings: CommonSettings) -> Finding:
    topics = Topics(settings.topic_prefix)
    # With the partitions that are there: a wrong number is the next check's finding.
    number = topics_.found_partitions(settings.kafka, topics) or settings.partitions
    changes = topics_.plan(settings.kafka, topics, number)
    if changes:
        found = "; ".join(f"{one.topic}: {one.action} {one.detail}" for one in changes)
        has_conflict = any(one.action == "conflict" for one in changes)
        hint = "as the text says" if has_conflict else "run `tidemill topics apply`"
        return Finding("topics", "failed", found, hint)
    return Finding("topics", "ok", "all there and as planned")


def partitions(settings: CommonSettings) -> Finding:
    topics = Topics(settings.topic_prefix)
    found = topics_.found_partitions(settings.kafka, topics)
    if found is None:
        return Finding("partitions", "failed", "no state topic", "run `tidemill topics apply`")
    if found != settings.partitions:
        return Finding(
            "partitions", "failed", f"{found} in Kafka, {settings.partitions} in the settings",
            f"use --partitions {found} or TIDEMILL_PARTITIONS={found} for every role",
        )
    counts = topics_.counts(settings.kafka)
    problem = topics_.count_problem(topics, found, counts)
    if problem is not None:
        return Finding("partitions", "failed", problem, "as the text says: no record is lost by it")
    added = [f"{topic} has {counts[topic]}" for topic in topics.folded
             if counts.get(topic, 0) > found]
    if added:
        return Finding(
            "partitions", "warning", f"{found}, and {', '.join(added)}",
            "what is in the added partitions is read and forwarded: a step more for each record",
        )
    return Finding("partitions", "ok", str(found))


CHECKS: Final = (
    Check("kafka", reachable),
    Check("topics", as_planned, needs="kafka"),
    Check("partitions", partitions, needs="kafka"),
)
