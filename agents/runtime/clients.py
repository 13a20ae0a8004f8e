"""Settings that every confluent-kafka client of ours shares.

Owns the calm behaviour while a broker is away; refuses to know what the client is for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, Message

from tidemill.agents import clocks

logger = logging.getLogger("tidemill.runtime.kafka")

# librdkafka's answers to a broker that is away: quick at first, then every two seconds.
RECONNECT_BACKOFF_MS = 50
RECONNECT_BACKOFF_MS_MAX = 2_000
# The first retry of a request; a transaction right after another one often needs one.
RETRY_BACKOFF_MS = 10
RETRY_BACKOFF_MS_MAX = 1_000
# At most one line of the same client and kind in this time: an outage makes 20 lines a second.
LOG_INTERVAL_SECONDS = 10.0


# How the Python client writes a line of librdkafka.
_CLIENT_TEMPLATE = "%s [%s] %s"
# The loggers of aiokafka that repeat themselves while a broker is away.
_AIOKAFKA_LOGGERS = (
    "aiokafka",
    "aiokafka.conn",
    "aiokafka.cluster",
    "aiokafka.consumer.fetcher",
    "aiokafka.consumer.group_coordinator",
)


class Throttle(logging.Filter):
    """Lets the first line of each kind in an interval pass."""

    def __init__(self) -> None:
        super().__init__()
        self._passed_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        # aiokafka's kind is the template of the line; librdkafka's is the first argument of one
        # template for all, as in ("FAIL", "worker-1#producer-1", "connection refused").
        kind = str(record.msg)
        if kind == _CLIENT_TEMPLATE and isinstance(record.args, tuple):
            kind = str(record.args[0])
        now = clocks.monotonic()
        if now - self._passed_at.get(kind, float("-inf")) < LOG_INTERVAL_SECONDS:
            return False
        self._passed_at[kind] = now
        return True


_aiokafka_throttle = Throttle()


def throttle_aiokafka() -> None:
    """Keep an outage from filling the log; calling it again changes nothing."""
    for name in _AIOKAFKA_LOGGERS:
        logging.getLogger(name).addFilter(_aiokafka_throttle)


def client_logger(client_id: str) -> logging.Logger:
    """Return the throttled logger that one librdkafka client writes to."""
    found = logging.getLogger(f"{logger.name}.{client_id}")
    if not found.filters:
        found.addFilter(Throttle())
    return found


def client_settings(kafka: str, client_id: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a client: ``settings`` over what all clients share."""
    if not kafka.strip():
        raise ValueError("kafka: no broker address given; name at least one HOST:PORT")
    return {
        "bootstrap.servers": kafka,
        "client.id": client_id,
        "reconnect.backoff.ms": RECONNECT_BACKOFF_MS,
        "reconnect.backoff.max.ms": RECONNECT_BACKOFF_MS_MAX,
        "retry.backoff.ms": RETRY_BACKOFF_MS,
        "retry.backoff.max.ms": RETRY_BACKOFF_MS_MAX,
        "allow.auto.create.topics": False,
        "socket.nagle.disable": True,
        "logger": client_logger(client_id),
    } | dict(settings)


def take_arrived(consumer: Consumer, records_max: int, wait_seconds: float) -> list[Message]:
    """Return what has arrived as soon as anything has; nothing after ``wait_seconds`` without.

    ``consumer.consume(n, timeout)`` alone waits until there are n or the time-out is over, however
    early the first record comes.
    """
    first = consumer.poll(wait_seconds)
    if first is None:
        return []
    return [first, *consumer.consume(records_max - 1, timeout=0)]
