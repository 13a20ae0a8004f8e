"""Single records that many callers send at about the same time, on their way in bursts.

Owns when a burst begins and what is in it. Refuses to know what a record says and who waits for it.

A burst begins when the one before is acknowledged. Left to itself librdkafka sends a request for
each partition and lingering time, five at once and no more; once they are under way and others are
due, its thread turns in a circle until an answer comes. Beside the broker on a small machine that
kept the answer away: a broker's pause of 15 ms became one of 80.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tidemill.agents import clocks

EVERY_SECONDS: Final = 0.01  # from the beginning of a burst to that of the next, at least
# Who sends more often than that stays with bursts: two ways in turn mean twice the requests.
STAYS_SECONDS: Final = 0.003
# A partition that nobody leads holds up the others for so long and no longer.
ACKNOWLEDGED_SECONDS_MAX: Final = 0.05
WAITING_RECORDS_MAX: Final = 100_000
WAITING_BYTES_MAX: Final = 64 * 1_048_576
IDLE_SECONDS: Final = 1.0  # between two looks at what librdkafka has to say, without records
ROOM_SECONDS: Final = 0.1  # one wait for room in librdkafka's queue
GIVEN_UP_SECONDS: Final = 1.0  # for the thread to see that what was under way has been given up
# Longer than all that `flush` waits for, which cuts it short: a burst's records travel together.
LINGER_MS: Final = 500

# With the error or with the acknowledged message.
Delivered = Callable[[KafkaError | None, Message | None], None]

logger = logging.getLogger("tidemill.client")


def poll(producer: Producer, seconds: float) -> None:
    """Let librdkafka tell callers of their records; others wait for this thread too."""
    try:
        producer.poll(seconds)
    except Exception:
        # A caller's own callback or a handler of the log.
        logger.exception("telling callers of their records")


class _Waiting(NamedTuple):
    topic: str
    key: str
    value: bytes
    delivered: Delivered


class Bursts:
    """Records in the order of `add`, each told to its caller. Safe to use from many threads."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0  # of their values
        self._taken = 0  # records of the burst that is being handed over
        self._added_at = float("-inf")  # monotonic
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="tidemill-bursts", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether records are not acknowledged yet, or the last one came a moment ago."""
        return (
            bool(self._waiting or self._taken or len(self._producer))
            or clocks.monotonic() - self._added_at < STAYS_SECONDS
        )

    def add(self, topic: str, key: str, value: bytes, delivered: Delivered) -> bool:
        """Send a record with the next burst; False when too many wait."""
        with self._changed:
            if (
                len(self._waiting) >= WAITING_RECORDS_MAX
                or self._waiting_bytes >= WAITING_BYTES_MAX
            ):
                return False
            self._waiting_bytes += len(value)
            self._waiting.append(_Waiting(topic, key, value, delivered))
            self._added_at = clocks.monotonic()
            self._changed.notify()
        return True

    def close(self, seconds: float | None = None) -> None:
        """Return when all that was added is acknowledged, or given up by librdkafka.

        `seconds`: after so long the rest is given up. Without, nothing should take longer than
        librdkafka's own bound.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._producer.purge(blocking=False)
            self._thread.join(GIVEN_UP_SECONDS)

    def _run(self) -> None:
        begun_at = float("-inf")
        while self._wait():
            clocks.sleep(max(0.0, begun_at + EVERY_SECONDS - clocks.monotonic()))
            begun_at = clocks.monotonic()
            try:
                self._send_one()
            except Exception:
                # A caller's own callback or a handler of the log: the others wait for this thread.
                logger.exception("telling callers of their records")

    def _send_one(self) -> None:
        with self._changed:
            # In this order, so that nobody finds less under way than there is.
            self._taken = len(self._waiting)
            records, self._waiting = self._waiting, []
            self._waiting_bytes = 0
        try:
            for record in records:
                self._hand_over(record)
        finally:
            self._taken = 0
        self._producer.flush(ACKNOWLEDGED_SECONDS_MAX)

    def _wait(self) -> bool:
        """Until there is a record, or answers are late; False at the end."""
        while True:
            with self._changed:
                if self._waiting or len(self._producer):
                    return True
                if self._is_closed:
                    return False
                self._changed.wait(IDLE_SECONDS)
            poll(self._producer, 0)  # its lines for the log

    def _hand_over(self, record: _Waiting) -> None:
        while True:
            try:
                self._producer.produce(
                    record.topic, record.value, record.key, on_delivery=record.delivered
                )
            except BufferError:
                poll(self._producer, ROOM_SECONDS)
            except KafkaException as error:
                record.delivered(error.args[0], None)
                return
            else:
                return
