"""Reading one partition of a compacted topic to its end, as fast as one core can.

Owns the end condition and the speed; refuses to know what a row is. Blocking: run it in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from tidemill.agents import clocks
from tidemill.agents.runtime.clients import client_settings, take_arrived
from tidemill.agents.runtime.errors import RecoverableError, kafka_error_of, to_fatal

# Records per call into the client: the call costs some microseconds, the records a fraction each.
BATCH_RECORDS_MAX = 10_000
# Without any progress for this long, the restore fails and the next owner tries.
STALL_SECONDS_MAX = 60.0
POLL_SECONDS = 0.2
# What the client may hold before we read it: bytes rule, the count (by default 100,000, which the
# rows of half a second reach) does not.
FETCH_KBYTES_MAX = 64 * 1024
FETCH_RECORDS_MAX = 10_000_000
# A client that holds that much looks again so soon; by default it sleeps for a second.
FETCH_BACKOFF_MS = 5
FETCH_BYTES_PER_PARTITION = 8 * 1024 * 1024

#: (key, value) pairs in the order of the log; a value of None is a tombstone.
Row = tuple[bytes | None, bytes | None]


def read_compacted(kafka: str, topic: str, partition: int) -> Iterator[list[Row]]:
    """Yield the committed rows of a partition up to the end that stands when this is called.

    Call it after the former owner is fenced: nothing committed later can then be missed. A key may
    come several times, the last one counts.
    """
    consumer = Consumer(
        client_settings(
            kafka,
            f"restore-{topic}-{partition}",
            {
                # Never joined and never committed; the client insists on a name.
                "group.id": f"restore-{topic}",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "queued.max.messages.kbytes": FETCH_KBYTES_MAX,
                "queued.min.messages": FETCH_RECORDS_MAX,
                "fetch.queue.backoff.ms": FETCH_BACKOFF_MS,
                "max.partition.fetch.bytes": FETCH_BYTES_PER_PARTITION,
                "fetch.wait.max.ms": 50,
                "check.crcs": True,
            },
        )
    )
    try:
        start, end = _bounds(kafka, topic, partition)
        if start < end:
            consumer.assign([TopicPartition(topic, partition, start)])
            yield from _read_until(consumer, TopicPartition(topic, partition), end)
    finally:
        consumer.close()


def _bounds(kafka: str, topic: str, partition: int) -> tuple[int, int]:
    """Return the log's start and its end, uncommitted records included.

    After the fence nothing is open any more, so the end is reached. Were a transaction to hang, the
    last stable offset would hide rows that are committed behind it; this way the restore stalls and
    says so.
    """
    consumer = Consumer(
        client_settings(
            kafka,
            f"bounds-{topic}-{partition}",
            {
                "group.id": f"restore-{topic}",
                "enable.auto.commit": False,
                "isolation.level": "read_uncommitted",
            },
        )
    )
    try:
        return _ask_bounds(consumer, topic, partition)
    finally:
        consumer.close()


def _ask_bounds(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    deadline = clocks.monotonic() + STALL_SECONDS_MAX
    while True:
        try:
            found = consumer.get_watermark_offsets(
                TopicPartition(topic, partition), timeout=10, cached=False
            )
        except KafkaException as error:
            inner = kafka_error_of(error)
            if clocks.monotonic() > deadline or not _is_passing(inner):
                raise to_fatal(inner, f"asking for the end of {topic}-{partition}") from error
            clocks.sleep(POLL_SECONDS)
        else:
            return found[0], found[1]


def _is_passing(error: KafkaError) -> bool:
    return error.retriable() or error.code() in (
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
    )


def _read_until(consumer: Consumer, tp: TopicPartition, end: int) -> Iterator[list[Row]]:
    moved_at = clocks.monotonic()
    while True:
        rows: list[Row] = []
        for message in take_arrived(consumer, BATCH_RECORDS_MAX, POLL_SECONDS):
            error = message.error()
            if error is not None:
                if not _is_passing(error):
                    raise to_fatal(error, f"reading {tp.topic}-{tp.partition}")
                continue
            rows.append((message.key(), message.value()))
        if rows:
            moved_at = clocks.monotonic()
            yield rows
        # position() passes control records too, so a log that ends in a commit marker ends.
        if consumer.position([tp])[0].offset >= end:
            return
        if clocks.monotonic() - moved_at > STALL_SECONDS_MAX:
            raise RecoverableError(
                f"no row of {tp.topic}-{tp.partition} came for {STALL_SECONDS_MAX:.0f} s, "
                f"{end} is not reached"
            )
