"""Where beats go: a port, and Kafka behind it.

Owns the client of heartbeats. Refuses to know what a beat says. Two processes use it, of which one
shall stay small: nothing is imported here that this does not need.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol

from confluent_kafka import KafkaException, Producer

from tidemill.agents.runtime.clients import client_settings

MESSAGE_TIMEOUT_MS: Final = 5_000  # an old beat says nothing; it is dropped
CLOSE_SECONDS: Final = 1.0  # the last beat gets this long

logger = logging.getLogger("tidemill.worker")


class BeatSink(Protocol):
    """Where beats go."""

    def send(self, key: bytes, value: bytes) -> None: ...

    def close(self) -> None: ...


class KafkaBeats:
    """`BeatSink` over librdkafka, outside any transaction."""

    def __init__(self, kafka: str, topic: str, client_id: str) -> None:
        self._topic = topic
        self._producer = Producer(
            client_settings(
                kafka,
                client_id,
                {"acks": "all", "linger.ms": 0, "message.timeout.ms": MESSAGE_TIMEOUT_MS},
            )
        )

    def send(self, key: bytes, value: bytes) -> None:
        try:
            self._producer.produce(self._topic, value, key)
        except (BufferError, KafkaException) as error:
            logger.warning("a heartbeat could not be sent: %s", error)
        self._producer.poll(0)

    def close(self) -> None:
        self._producer.flush(CLOSE_SECONDS)
