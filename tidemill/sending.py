"""Records to Kafka, surely: one at a time with its offset, or very many at once.

Owns its librdkafka producers (made when first used), their settings, backpressure and the news of
every failure. Refuses to know what is in the records.

A single record is sent at once. While several are under way, the next ones travel together
(`tidemill.bursts`): at 2,000 a second, a request to the broker for each took a third of a core.

The partitioner is `murmur2_random`, the one of Java clients and of the ledger: librdkafka's own
default would send requests to partitions where the ledger must forward them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Literal, Protocol

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tidemill.agents import clocks
from tidemill.agents.runtime.clients import client_settings
from tidemill.agents.runtime.forks import never_free, tell_in_copies
from tidemill.bursts import LINGER_MS, Bursts, poll
from tidemill.requests import ClientError
from tidemill.schemas.topics import BIG_RECORD_BYTES

DELIVERY_SECONDS: Final = 120.0  # a broker may restart or move; then the caller is told
UNKNOWN_TOPIC_SECONDS: Final = 5.0  # a topic that was made a moment ago may still be unknown
SINGLE_LINGER_MS: Final = 0  # one record: nothing to wait for
BUSY_RECORDS_MIN: Final = 6  # singles under way at once that make the next ones travel together
BULK_LINGER_MS: Final = 5  # fills batches; nobody waits for one record of many
BULK_CHUNK_RECORDS: Final = 1_000  # records handed over in one call
BULK_CHUNK_BYTES: Final = 4 * 1_048_576
IN_FLIGHT_RECORDS_MAX: Final = 100_000  # handed over and not acknowledged
IN_FLIGHT_BYTES_MAX: Final = 128 * 1_048_576
POLL_SECONDS: Final = 0.1  # how late a close is noticed
CLOSE_SLACK_SECONDS: Final = 10.0  # past the delivery's own bound, for threads to notice
PURGE_SECONDS: Final = 1.0  # for threads to see that what was under way has been given up
ROOM_SECONDS: Final = 0.01  # between two looks whether there is room for a single record

Record = tuple[str, bytes]
"""Key and value."""

class Promise(Protocol):
    """Who waits for an acknowledgement: a `concurrent.futures.Future`, or a `bridge.LoopPromise`.

    Both calls come from the sender's own thread.
    """

    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: BaseException | None, /) -> None: ...


class EnqueueFailed(ClientError):
    """Kafka did not take records. `job_ids` names the jobs (at most all of them), `error` why.

    The jobs may be asked for again with the same ids: a job never runs twice for that.
    """

    def __init__(self, job_ids: list[str], error: str) -> None:
        shown = ", ".join(job_ids[:5]) + (", …" if len(job_ids) > 5 else "")
        super().__init__(
            f"{len(job_ids)} job(s) were not acknowledged by Kafka: {error}; ask again with the "
            f"same job_id, which is safe ({shown})"
        )
        self.job_ids = job_ids
        self.error = error


def failure_text(error: KafkaError) -> str:
    """librdkafka's words, with the way out where we know it."""
    if error.code() in (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART):
        return f"{error.str()}; start `tidemill dev`, or run `tidemill topics apply`"
    if error.code() == KafkaError._MSG_TIMED_OUT:
        return f"{error.str()}; is the broker of --kafka up?"
    return error.str()


# Of the requests. Every client reads records that are not compressed, and the ledger takes them
# quickest. The other values are for large payloads.
Compression = Literal["none", "gzip", "zstd"]


def _producer(kafka: str, timeout_seconds: float, settings: dict[str, Any]) -> Producer:
    return Producer(
        client_settings(
            kafka,
            "tidemill-client",
            {
                "acks": "all",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "delivery.timeout.ms": int(timeout_seconds * 1000),
                "topic.metadata.propagation.max.ms": int(UNKNOWN_TOPIC_SECONDS * 1000),
                "message.max.bytes": BIG_RECORD_BYTES,
                **settings,
            },
        )
    )


class Sender:
    """Sends records; safe to use from many threads."""

    def __init__(
        self,
        kafka: str,
        timeout_seconds: float = DELIVERY_SECONDS,
        compression: Compression = "none",
    ) -> None:
        self._kafka = kafka
        # librdkafka names gzip's level by a setting of its own; the first is the quickest.
        self._compression = {"compression.type": compression, "compression.level": 1}
        self._timeout_seconds = timeout_seconds
        self._single: Producer | None = None
        self._bursts: Bursts | None = None
        self._bulk: Producer | None = None
        self._is_closed = threading.Event()
        self._begin()
        tell_in_copies(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._bulk_lock = threading.Lock()
        self._single_keys: Counter[str] = Counter()  # of records that are not acknowledged
        self._poller: threading.Thread | None = None

    def start_anew(self) -> None:
        """In a copy of the process: connections of its own, when it sends. What was under way is
        the parent's, which also waits for it."""
        for thing in (self._single, self._bursts, self._bulk):
            never_free(thing)
        self._single = self._bursts = self._bulk = None
        was_closed, self._is_closed = self._is_closed.is_set(), threading.Event()
        if was_closed:
            self._is_closed.set()
        self._begin()

    def try_send(
        self,
        topic: str,
        record: Record,
        name: str,
        make: Callable[[Message], object],
        promise: Promise,
    ) -> bool:
        """Send one record; `promise` gets what `make` makes of the acknowledged message, or
        EnqueueFailed with the job's `name`. False: no room now, nothing was sent; try again soon.
        """
        key, value = record

        def delivered(error: KafkaError | None, message: Message | None) -> None:
            if error is not None:
                promise.set_exception(EnqueueFailed([name], failure_text(error)))
            elif message is not None:
                promise.set_result(make(message))

        def delivered_single(error: KafkaError | None, message: Message | None) -> None:
            with self._lock:
                self._single_keys[key] -= 1
                if not self._single_keys[key]:
                    del self._single_keys[key]
            delivered(error, message)

        with self._lock:
            single = self._open_single()
            # A later record of a user never overtakes an earlier one: it goes the same way as those
            # that are not acknowledged yet.
            is_busy = self._bursts is not None and self._bursts.is_busy
            if key not in self._single_keys and (is_busy or len(single) >= BUSY_RECORDS_MIN):
                return self._open_bursts().add(topic, key, value, delivered)
            try:
                single.produce(topic, value, key, on_delivery=delivered_single)
                self._single_keys[key] += 1
            except BufferError:
                return False  # the poller empties the queue
            except KafkaException as error:
                raise EnqueueFailed([name], failure_text(error.args[0])) from error
        return True

    def send_many(self, topic: str, records: Iterable[Record]) -> int:
        """Send all, wait until Kafka has acknowledged all; how many. Raises EnqueueFailed.

        When `records` itself raises, what was handed over before is acknowledged first.
        """
        with self._bulk_lock:
            return _BulkSend(self._bulk_producer(), topic).run(records)

    def close(self, seconds: float | None = None) -> None:
        """Wait for what is under way, then let go of the connections.

        `seconds`: at most so long; None: as long as an acknowledgement may take.
        """
        patience = self._timeout_seconds + CLOSE_SLACK_SECONDS if seconds is None else seconds
        deadline = clocks.monotonic() + patience
        with self._lock:
            self._is_closed.set()
        if self._bursts is not None:
            self._bursts.close(patience)
        for producer in (self._single, self._bulk):
            if producer is not None and producer.flush(max(0.0, deadline - clocks.monotonic())):
                # Out of patience: with nothing under way its thread ends before the process does.
                producer.purge(blocking=False)
        if self._poller is not None:
            self._poller.join(max(PURGE_SECONDS, deadline - clocks.monotonic()))

    def _producer(self, settings: dict[str, Any]) -> Producer:
        return _producer(self._kafka, self._timeout_seconds, {**self._compression, **settings})

    def _open_single(self) -> Producer:
        if self._is_closed.is_set():
            raise ClientError("the client is closed; make a new one")
        if self._single is None:
            single = self._producer({"linger.ms": SINGLE_LINGER_MS})
            poller = threading.Thread(
                target=self._poll, args=(single,), name="tidemill-send", daemon=True
            )
            poller.start()
            self._single, self._poller = single, poller
        return self._single

    def _open_bursts(self) -> Bursts:
        if self._bursts is None:
            self._bursts = Bursts(self._producer({"linger.ms": LINGER_MS}))
        return self._bursts

    def _bulk_producer(self) -> Producer:
        if self._is_closed.is_set():
            raise ClientError("the client is closed; make a new one")
        if self._bulk is None:
            self._bulk = self._producer(
                {
                    "linger.ms": BULK_LINGER_MS,
                    "batch.size": 1_000_000,
                    "batch.num.messages": 10_000,
                    "queue.buffering.max.messages": IN_FLIGHT_RECORDS_MAX * 2,
                    "queue.buffering.max.kbytes": IN_FLIGHT_BYTES_MAX // 1024 * 2,
                    # Successes are counted by `flush`: no Python runs for them.
                    "delivery.report.only.error": True,
                },
            )
        return self._bulk

    def _poll(self, producer: Producer) -> None:
        while not self._is_closed.is_set() or len(producer):
            poll(producer, POLL_SECONDS)


class _BulkSend:
    """One run of `send_many`."""

    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self._failed: list[str] = []
        self._error = ""
        self._unflushed_bytes = 0
        self._sent = 0

    def run(self, records: Iterable[Record]) -> int:
        try:
            for chunk in _chunks(records):
                if self._failed:
                    # Once one was refused no more are sent, and the caller learns of each.
                    self._failed += [_job_id_of(message["value"]) for message in chunk]
                    continue
                self._hand_over(chunk)
                self._wait_for_room()
        finally:
            # Also when `records` raised: what was handed over must be known to be safe.
            while self._producer.flush(POLL_SECONDS):
                pass
        if self._failed:
            raise EnqueueFailed(self._failed, self._error)
        return self._sent

    def _hand_over(self, chunk: list[dict[str, Any]]) -> None:
        self._unflushed_bytes += sum(len(message["value"]) for message in chunk)
        while chunk:
            queued = self._producer.produce_batch(
                self._topic, chunk, on_delivery=self._on_failure
            )
            self._sent += queued
            if queued == len(chunk):
                break
            chunk = self._refused(chunk)
            self._producer.poll(POLL_SECONDS)
        self._producer.poll(0)

    def _refused(self, chunk: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What is to be tried again because the queue was full; the rest has failed."""
        again = []
        for message in chunk:
            error = message.pop("_error", None)
            if error is None:
                continue
            if error.code() == KafkaError._QUEUE_FULL:
                again.append(message)
            else:
                self._note(error, message["value"])
        return again

    def _wait_for_room(self) -> None:
        producer = self._producer
        while len(producer) > IN_FLIGHT_RECORDS_MAX:
            producer.poll(POLL_SECONDS)
        if self._unflushed_bytes > IN_FLIGHT_BYTES_MAX:
            while producer.flush(POLL_SECONDS):
                pass
            self._unflushed_bytes = 0

    def _on_failure(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._note(error, message.value() or b"")

    def _note(self, error: KafkaError, value: bytes | str) -> None:
        self._error = failure_text(error)
        self._failed.append(_job_id_of(value))


def _job_id_of(value: bytes | str) -> str:
    return str(orjson.loads(value)["job_id"])


def _chunks(records: Iterable[Record]) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    size = 0
    for key, value in records:
        chunk.append({"key": key, "value": value})
        size += len(value)
        if len(chunk) >= BULK_CHUNK_RECORDS or size >= BULK_CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
