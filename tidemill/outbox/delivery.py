"""Rows to Kafka, in order, with the news of each: acknowledged, never possible, or not now.

Owns the relay's producer. Refuses to know the database.

The producer is gapless: when a batch fails for good, it stops instead of sending what comes behind.
It has no time-out of its own, for a record that is given up alone would let a later one of its user
pass. What is not acknowledged in time is given up as a whole, with the producer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tidemill.agents import clocks
from tidemill.agents.runtime.clients import client_logger, client_settings
from tidemill.outbox.errors import NotAcknowledged
from tidemill.outbox.store import Row
from tidemill.schemas.topics import BIG_RECORD_BYTES
from tidemill.sending import BULK_LINGER_MS, UNKNOWN_TOPIC_SECONDS, failure_text

CLIENT_ID: Final = "tidemill-outbox"
ACK_SECONDS: Final = 30.0  # a broker restarts in that time; rows stay locked meanwhile
STOP_SECONDS: Final = 2.0  # the same once a stop was asked for: the next relay sends them again
POLL_SECONDS: Final = 0.1  # how late a stop is noticed
PURGE_SECONDS: Final = 1.0  # for the callbacks of what has been given up

NEVER: Final = frozenset({
    KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG, KafkaError.INVALID_RECORD,
})
"""Errors of a record itself. In a batch they may be another record's."""


class Delivery:
    """Sends batches of rows to one topic. For one thread."""

    def __init__(self, kafka: str, topic: str, stop: threading.Event) -> None:
        #: Of the last `send`; None when no row waits.
        self.why_not: NotAcknowledged | None = None
        self._kafka = kafka
        self._topic = topic
        self._stop = stop
        self._producer: Producer | None = None

    def send(self, rows: Sequence[Row]) -> tuple[set[int], dict[int, str]]:
        """Ids of the rows that Kafka has, and of those that it never takes, with the reason.

        The others wait: `why_not` says for what.
        """
        sent, errors = self._attempt(rows)
        refused: dict[int, str] = {}
        if any(_is_never(error) for error in errors.values()):
            # One by one: of a batch that is refused all records have the same error.
            for row in [row for row in rows if row.id not in sent]:
                done, alone = self._attempt([row])
                sent |= done
                if _is_never(alone.get(row.id)):
                    refused[row.id] = failure_text(alone[row.id])
                elif not done:
                    errors.update(alone)
                    break  # those behind it must not pass
        left = [row.id for row in rows if row.id not in sent and row.id not in refused]
        self.why_not = None
        if left:
            known = next((errors[each] for each in left if each in errors), None)
            text = "no answer" if known is None else failure_text(known)
            self.why_not = NotAcknowledged(f"{len(left)} row(s) wait: {text}")
        return sent, refused

    def close(self) -> None:
        """Let go of the connections. Nothing is under way between two calls of `send`."""
        self._producer = None

    def _attempt(self, rows: Sequence[Row]) -> tuple[set[int], dict[int, KafkaError]]:
        producer = self._producer or self._open()
        self._producer = producer
        sent: set[int] = set()
        errors: dict[int, KafkaError] = {}
        for row in rows:
            error = self._hand_over(producer, row, sent, errors)
            if error is not None:
                errors[row.id] = error
                if not _is_never(error):
                    break  # those behind it must not pass
        began_at = stopped_at = clocks.monotonic()
        while _left(producer, POLL_SECONDS):
            now = clocks.monotonic()
            stopped_at = stopped_at if self._stop.is_set() else now
            if now > began_at + ACK_SECONDS or now > stopped_at + STOP_SECONDS:
                producer.purge()
                _left(producer, PURGE_SECONDS)
                break
        if len(sent) < len(rows):
            self._producer = None
        return sent, errors

    def _hand_over(
        self, producer: Producer, row: Row, sent: set[int], errors: dict[int, KafkaError]
    ) -> KafkaError | None:
        def delivered(error: KafkaError | None, _: Message | None) -> None:
            if error is None:
                sent.add(row.id)
            else:
                errors[row.id] = error

        try:
            producer.produce(
                self._topic, row.value, row.user_id.encode(), on_delivery=delivered
            )
        except KafkaException as error:
            found: KafkaError = error.args[0]
            return found
        return None

    def _open(self) -> Producer:
        client_logger(CLIENT_ID).addFilter(_is_news)
        return Producer(
            client_settings(
                self._kafka,
                CLIENT_ID,
                {
                    "acks": "all",
                    "enable.idempotence": True,
                    "enable.gapless.guarantee": True,
                    "partitioner": "murmur2_random",
                    "message.timeout.ms": 0,
                    "linger.ms": BULK_LINGER_MS,
                    "topic.metadata.propagation.max.ms": int(UNKNOWN_TOPIC_SECONDS * 1000),
                    "message.max.bytes": BIG_RECORD_BYTES,
                },
            )
        )


def _left(producer: Producer, seconds: float) -> int:
    """Waits for news of the rows; how many have none yet."""
    try:
        return int(producer.flush(seconds))
    except KafkaException:
        # The producer has stopped, and says so once. The news of its rows is still to come.
        return len(producer) or 1


def _is_news(record: logging.LogRecord) -> bool:
    """Not that the one setting is experimental: it is meant, and told with each producer."""
    return "enable.gapless.guarantee is experimental" not in record.getMessage()


def _is_never(error: KafkaError | None) -> bool:
    return error is not None and error.code() in NEVER
