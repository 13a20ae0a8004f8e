"""`OutcomeSink` over librdkafka: idempotent, acks=all, tried again for as long as it takes.

Owns the producer of outcomes and its thread. Refuses to know what is in a record.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from agents.runtime.clients import client_settings
from agents.runtime.failstop import fail_stop

POLL_SECONDS: Final = 0.5  # the thread sleeps in librdkafka; a delivery wakes it at once
RECORD_BYTES_MAX: Final = 2 * 1_048_576  # as `schemas.topics` makes the topic
QUEUE_KBYTES_MAX: Final = 256 * 1024  # KiB of outcomes that wait for a broker that is away
RETRY_SECONDS: Final = (0.1, 0.5, 2.0, 5.0)  # waits between tries of what librdkafka gave up on
LOG_SECONDS: Final = 10.0  # one line in this time about outcomes that cannot be written

Done = Callable[[bool], None]

logger = logging.getLogger("tidemill.worker")


class KafkaSink:
    """One producer for all partitions of `jobs.outcomes`. Make it on the loop."""

    def __init__(self, kafka: str, topic: str, client_id: str, **settings: Any) -> None:
        self._topic = topic
        self._loop = asyncio.get_running_loop()
        self._producer = Producer(
            client_settings(
                kafka,
                client_id,
                {
                    "enable.idempotence": True,
                    "acks": "all",
                    # The writer gathers already; waiting here would only add delay.
                    "linger.ms": 0,
                    "compression.type": "lz4",
                    "message.max.bytes": RECORD_BYTES_MAX,
                    # Never give up on a broker that is away: nothing is acked before this.
                    "message.timeout.ms": 0,
                    "queue.buffering.max.kbytes": QUEUE_KBYTES_MAX,
                }
                | settings,
            )
        )
        self._events: deque[tuple[KafkaError | None, int, bytes, Done, int]] = deque()
        self._is_told = False
        self._is_closing = False
        self._logged_at = float("-inf")
        self._thread = threading.Thread(target=self._poll, name="tidemill-outcomes", daemon=True)
        self._thread.start()

    def send(self, partition: int, value: bytes, done: Done) -> None:
        """Write a record; see `OutcomeSink`."""
        self._produce(partition, value, done, 0)

    async def close(self) -> None:
        """End the thread; what is not delivered by now is dropped: drain first."""
        self._is_closing = True
        await asyncio.to_thread(self._thread.join, POLL_SECONDS * 4)

    def _produce(self, partition: int, value: bytes, done: Done, tries: int) -> None:
        def delivered(error: KafkaError | None, message: object) -> None:
            self._events.append((error, partition, value, done, tries))
            # One wake-up of the loop serves all deliveries until it runs.
            if not self._is_told:
                self._is_told = True
                self._loop.call_soon_threadsafe(self._collect)

        try:
            self._producer.produce(
                self._topic, value, partition=partition, on_delivery=delivered
            )
        except BufferError:
            self._again(partition, value, done, tries, "the queue to Kafka is full")
        except KafkaException as error:
            self._on_error(error.args[0], partition, value, done, tries)

    def _poll(self) -> None:
        while not self._is_closing:
            self._producer.poll(POLL_SECONDS)

    def _collect(self) -> None:
        self._is_told = False
        events = self._events
        while events:
            error, partition, value, done, tries = events.popleft()
            if error is None:
                done(False)
            else:
                self._on_error(error, partition, value, done, tries)

    def _on_error(
        self, error: KafkaError, partition: int, value: bytes, done: Done, tries: int
    ) -> None:
        if error.fatal():
            fail_stop(f"the producer of outcomes broke: {error.name()}: {error.str()}")
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            # On the loop's next turn: `send` promises to return before `done` is called.
            self._loop.call_soon(done, True)
            return
        self._again(partition, value, done, tries, f"{error.name()}: {error.str()}")

    def _again(self, partition: int, value: bytes, done: Done, tries: int, why: str) -> None:
        now = time.monotonic()
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            logger.warning("outcomes cannot be written to %s yet: %s", self._topic, why)
        delay = RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)]
        self._loop.call_later(delay, self._produce, partition, value, done, tries + 1)
