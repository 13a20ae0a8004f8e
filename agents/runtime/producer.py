"""Records out through librdkafka, in acknowledged batches; transactions are `transaction`'s.

Owns the producers, their threads and their error taxonomy; refuses to know what a record says.
Producing happens on the event loop (it only queues, under 1 us a record); only what waits for the
broker goes to a thread, so a group costs one hop there and one back.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, Producer

from tidemill.agents.runtime.batches_out import RECORD_BYTES_MAX
from tidemill.agents.runtime.clients import client_settings
from tidemill.agents.runtime.errors import (
    FatalError,
    PoisonMessage,
    RecoverableError,
    kafka_error_of,
    to_fatal,
)
from tidemill.schemas.batch_builder import OutRecord

logger = logging.getLogger("tidemill.runtime")

T = TypeVar("T")

# Long enough that the records of a batch travel together; flush cuts it short.
LINGER_MS = 5
# Records and bytes in librdkafka's queue: some groups of large records.
QUEUE_RECORDS_MAX = 500_000
QUEUE_KBYTES_MAX = 512 * 1024
# How long a record of a batch producer may be undeliverable before its sender is told.
BATCH_TIMEOUT_MS = 120_000
# One wait of the batch producer's thread for its deliveries.
FLUSH_TRY_SECONDS = 10.0


class CallThread:
    """A thread that runs one blocking call at a time for the loop."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None]
        self._calls = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def call(self, function: Callable[[], T]) -> T:
        """Run ``function`` in the thread and return what it returns or raises."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((function, done))
        return await done

    def close(self) -> None:
        """End the thread after the calls that are queued."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            function, done = call
            try:
                result = function()
            except Exception as error:  # noqa: BLE001  # handed to the awaiting caller, all of it
                self._resolve(done, _settle_error, error)
            else:
                self._resolve(done, _settle_result, result)

    @staticmethod
    def _resolve(
        done: asyncio.Future[Any], settle: Callable[[asyncio.Future[Any], Any], None], with_: Any
    ) -> None:
        loop = done.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, done, with_)


def _settle_result(done: asyncio.Future[Any], result: Any) -> None:
    if not done.done():
        done.set_result(result)


def _settle_error(done: asyncio.Future[Any], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)


def queue_records(producer: Producer, records: Iterable[OutRecord], **kwargs: Any) -> None:
    """Put ``records`` into the client's queue, in order."""
    produce = producer.produce
    for topic, partition, key, value, headers in records:
        try:
            if headers:
                produce(topic, value, key, partition, headers=headers, **kwargs)  # type: ignore[arg-type]  # invariant list
            else:
                produce(topic, value, key, partition, **kwargs)
        except BufferError as error:
            raise RecoverableError(
                f"the producer's queue is full ({QUEUE_RECORDS_MAX} records or "
                f"{QUEUE_KBYTES_MAX} KiB); send smaller groups"
            ) from error
        except KafkaException as error:
            raise _refused(kafka_error_of(error), topic, value) from error


def _refused(error: KafkaError, topic: str, value: bytes | None) -> Exception:
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        size = 0 if value is None else len(value)
        return PoisonMessage(
            f"a record of {size} bytes for topic {topic} is larger than {RECORD_BYTES_MAX} bytes; "
            "the decision must refuse it before it gets here"
        )
    return to_fatal(error, f"producing to {topic}")


class BatchProducer:
    """Idempotent, acks=all, no transaction: outcomes, heartbeats, clients.

    What is sent while a batch is on its way joins the next one; each batch is awaited as a whole.
    """

    def __init__(self, kafka: str, client_id: str, **settings: Any) -> None:
        self._producer = Producer(
            client_settings(
                kafka,
                client_id,
                {
                    "enable.idempotence": True,
                    "acks": "all",
                    "linger.ms": LINGER_MS,
                    "compression.type": "gzip",
                    "message.max.bytes": RECORD_BYTES_MAX,
                    "message.timeout.ms": BATCH_TIMEOUT_MS,
                    "queue.buffering.max.messages": QUEUE_RECORDS_MAX,
                    "queue.buffering.max.kbytes": QUEUE_KBYTES_MAX,
                    # Emulated by the Python client: no callback for what was delivered.
                    "delivery.report.only.error": True,
                }
                | settings,
            )
        )
        self._thread = CallThread(f"batches-{client_id}")
        self._waiting: list[OutRecord] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._sending: asyncio.Task[None] | None = None
        self._failures: list[KafkaError] = []

    def send_many(self, records: Iterable[OutRecord]) -> asyncio.Future[None]:
        """Queue ``records`` for the next batch; the future resolves when all are acknowledged.

        It raises ``RecoverableError`` when the broker did not take them in time (some of the batch
        may be there: sending again makes duplicates) and ``PoisonMessage`` for a refused record.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.extend(records)
        self._waiters.append(done)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_batches())
        return done

    async def close(self) -> None:
        """Deliver what is queued, then close."""
        if self._sending is not None:
            await self._sending
        await self._thread.call(self._producer.close)
        self._thread.close()

    async def _send_batches(self) -> None:
        try:
            while self._waiters:
                records, self._waiting = self._waiting, []
                waiters, self._waiters = self._waiters, []
                error = await self._send_batch(records)
                for waiter in waiters:
                    if waiter.done():
                        continue
                    if error is None:
                        waiter.set_result(None)
                    else:
                        waiter.set_exception(error)
        finally:
            self._sending = None

    async def _send_batch(self, records: list[OutRecord]) -> Exception | None:
        self._failures = []
        refused: Exception | None = None
        try:
            queue_records(self._producer, records, on_delivery=self._on_failure)
        except (RecoverableError, PoisonMessage, FatalError) as error:
            refused = error
        await self._thread.call(self._flush)
        if self._failures:
            first = self._failures[0]
            return RecoverableError(
                f"{len(self._failures)} of {len(records)} records were not delivered: {first.str()}"
            )
        return refused

    def _flush(self) -> None:
        while self._producer.flush(FLUSH_TRY_SECONDS):
            logger.warning("records wait for the broker")

    def _on_failure(self, error: KafkaError | None, message: Any) -> None:
        if error is not None:
            self._failures.append(error)
