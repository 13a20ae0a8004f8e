"""Looks into Kafka for a person who waits: whether a broker answers, which types are known.

Owns how long such a look may take. Refuses to send anything, and to fail where only a hint is
missing.
"""

from __future__ import annotations

import difflib
import socket
import uuid
from collections.abc import Collection, Iterable
from contextlib import closing
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from tidemill.agents import clocks
from tidemill.agents.runtime.clients import client_settings, take_arrived
from tidemill.requests import ClientError
from tidemill.schemas.schedules import SET_PREFIX
from tidemill.schemas.topics import Topics

CONNECT_SECONDS: Final = 1.0  # all servers together; what refuses, refuses at once
REACH_SECONDS: Final = 2.0  # a broker that is up answers within a tenth
KNOWN_TYPES_SECONDS: Final = 1.5  # a hint is not worth more
POLL_SECONDS: Final = 0.2
RECORDS_MAX: Final = 500  # taken at once
SHOWN_MAX: Final = 10  # types in a hint


class Unreachable(ClientError):
    """No broker answers."""


def reach(kafka: str) -> int:
    """The number of brokers, once one answers. Raises Unreachable when none does, within 3 s."""
    reason = _refusal(kafka)
    if reason is None:
        try:
            admin = AdminClient(client_settings(kafka, "tidemill-look", {"log_level": 0}))
            return len(admin.list_topics(timeout=REACH_SECONDS).brokers)
        except KafkaException as error:
            reason = error.args[0].str()
    raise Unreachable(
        f"no answer from Kafka at {kafka}: {reason}; check --kafka and that `tidemill dev` (or the "
        "broker) runs"
    )


def _refusal(kafka: str) -> str | None:
    """Why no server takes a connection; None when one does. librdkafka would try on and on."""
    deadline = clocks.monotonic() + CONNECT_SECONDS
    reason = "no server named"
    for address in kafka.split(","):
        host, _, port = address.strip().rpartition(":")
        left = max(0.1, deadline - clocks.monotonic())
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=left).close()
        except (OSError, ValueError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        else:
            return None
    return reason


def known_types(
    kafka: str, topics: Topics, seconds: float = KNOWN_TYPES_SECONDS
) -> frozenset[str] | None:
    """Types that workers have told of; None when that cannot be found out in time."""
    deadline = clocks.monotonic() + seconds
    place = TopicPartition(topics.definitions, 0, 0)
    reader = Consumer(
        client_settings(
            kafka, "tidemill-look",
            {
                # Named because librdkafka wants a name; no group is joined, nothing committed.
                "group.id": f"tidemill-look-{uuid.uuid4()}",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 50,
                "log_level": 0,
            },
        )
    )
    found: dict[str, bool] = {}
    with closing(reader) as consumer:
        try:
            consumer.assign([place])
            while clocks.monotonic() < deadline:
                if _note(found, take_arrived(consumer, RECORDS_MAX, POLL_SECONDS)):
                    return frozenset(name for name, is_told in found.items() if is_told)
        except KafkaException:
            return None
    return None


def _note(found: dict[str, bool], messages: Iterable[Message]) -> bool:
    """Take what was told; True at the topic's end."""
    is_end = False
    for message in messages:
        error = message.error()
        if error is not None:
            is_end = is_end or error.code() == KafkaError._PARTITION_EOF
        elif (key := message.key()) is not None and not key.startswith(SET_PREFIX.encode()):
            # Without a value the type is told no more.
            found[key.decode("utf-8", "replace")] = bool(message.value())
    return is_end


def unknown_type_hint(type_name: str, known: Collection[str]) -> str | None:
    """What to say of a type that no worker has told of; None when one has."""
    if type_name in known:
        return None
    if not known:
        return f"no worker has told of type {type_name!r}, nor of any other; does one run?"
    close = difflib.get_close_matches(type_name, known, n=SHOWN_MAX, cutoff=0.6)
    others = sorted(set(known) - set(close))
    shown = [*close, *others][:SHOWN_MAX]
    more = f" and {len(known) - len(shown)} more" if len(known) > len(shown) else ""
    return f"no worker has told of type {type_name!r}; known: {', '.join(shown)}{more}"
