"""From an HTTP request to an acknowledged record on `jobs.requested`.

Owns one librdkafka producer and the bridge from its thread to the event loop. Refuses to know what
a request means: `tidemill.schemas.codec` has checked it before.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tidemill.agents.api.problems import Problem
from tidemill.agents.runtime.clients import client_settings
from tidemill.schemas.topics import Topics

DELIVERY_TIMEOUT_MS: Final = 10_000  # ms; then the caller is told that Kafka does not answer
POLL_SECONDS: Final = 0.1  # seconds of one wait of the delivery thread
CLOSE_SECONDS: Final = 5.0  # seconds for records in flight at the end
LINGER_MS: Final = 2  # ms; requests that arrive together share a batch


class Enqueuer:
    """Started at the first request: an API that is only looked at needs no Kafka."""

    def __init__(self, kafka: str, topic_prefix: str) -> None:
        self._kafka = kafka
        self._topic = Topics(topic_prefix).requested
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._producer: Producer | None = None
        self._thread: threading.Thread | None = None

    async def send(
        self, user_id: str, value: bytes, headers: list[tuple[str, str | bytes | None]]
    ) -> None:
        """Return once every replica has the request; Problem (503) when Kafka does not answer."""
        await self.send_to(self._topic, user_id, value, headers)

    async def send_to(
        self, topic: str, user_id: str, value: bytes,
        headers: list[tuple[str, str | bytes | None]],
    ) -> tuple[int, int]:
        """Where every replica has the record: partition, offset. Raises as `send`."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[int, int]] = loop.create_future()

        def settle(error: KafkaError | None, place: tuple[int, int]) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(place)
            else:
                done.set_exception(_unavailable(error.str()))

        def delivered(error: KafkaError | None, record: Message) -> None:
            place = (record.partition() or 0, record.offset() or 0)
            loop.call_soon_threadsafe(settle, error, place)

        try:
            self._started().produce(
                topic, value, key=user_id, headers=headers, on_delivery=delivered
            )
        except (BufferError, KafkaException) as error:
            raise _unavailable(str(error)) from error
        return await done

    def close(self) -> None:
        """Wait a little for records in flight, then stop the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
        if self._producer is not None:
            self._producer.flush(CLOSE_SECONDS)

    def _started(self) -> Producer:
        with self._lock:
            if self._producer is None:
                self._producer = Producer(self._settings())
                self._thread = threading.Thread(
                    target=self._poll, args=(self._producer,), name="tidemill-enqueue", daemon=True
                )
                self._thread.start()
            return self._producer

    def _settings(self) -> dict[str, Any]:
        return client_settings(
            self._kafka,
            "tidemill-api",
            {
                "acks": "all",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": LINGER_MS,
                "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
                "message.max.bytes": 4 * 1_048_576,
            },
        )

    def _poll(self, producer: Producer) -> None:
        while not self._stop.is_set():
            producer.poll(POLL_SECONDS)


def _unavailable(reason: str) -> Problem:
    return Problem(
        503, "kafka-unavailable", f"Kafka did not take the request: {reason}. The job is not "
        "accepted; send it again with the same Idempotency-Key, which cannot make two jobs",
    )
