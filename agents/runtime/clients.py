"""Settings that every confluent-kafka client of ours shares.

Owns the calm behaviour while a broker is away; refuses to know what the client is for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger("tidemill.runtime.kafka")

# librdkafka's answers to a broker that is away: quick at first, then every two seconds.
RECONNECT_BACKOFF_MS = 50
RECONNECT_BACKOFF_MS_MAX = 2_000
# The first retry of a request; a transaction right after another one often needs one.
RETRY_BACKOFF_MS = 10
RETRY_BACKOFF_MS_MAX = 1_000
# At most one line of the same client and kind in this time: an outage makes 20 lines a second.
LOG_INTERVAL_SECONDS = 10.0


class ThrottledLogger(logging.Logger):
    """What librdkafka logs to: the first line of each kind in an interval passes."""

    def __init__(self, client_id: str) -> None:
        super().__init__(f"tidemill.runtime.kafka.{client_id}")
        self.parent = logger
        self._passed_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        # librdkafka's lines begin with their kind, as in "FAIL [rdkafka#producer-1] ...".
        kind = str(record.msg).split(" ", 1)[0] if not record.args else str(record.args)[:16]
        now = time.monotonic()
        if now - self._passed_at.get(kind, float("-inf")) < LOG_INTERVAL_SECONDS:
            return False
        self._passed_at[kind] = now
        return True


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
        "logger": ThrottledLogger(client_id),
    } | dict(settings)
