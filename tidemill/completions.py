"""Waiting for ends: one shared reader of `jobs.completed` behind every `wait`.

Owns a thread with one `read_committed` consumer without a group, the records that it saw lately,
and who waits for which job. Refuses to know how jobs are asked for.

How an end is never missed: a wait names the instant from which its job can have ended. When the
reader has been reading since before that, what it remembers is complete; else it goes back to the
offset of that instant. Going back is harmless to others: they look for other jobs.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import orjson
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from pydantic import ValidationError

from tidemill.agents import clocks
from tidemill.agents.runtime.clients import client_settings, take_arrived
from tidemill.agents.runtime.forks import never_free, tell_in_copies
from tidemill.completed import CompletedJob
from tidemill.remembered import OTHER_LIFE_MS, Remembered
from tidemill.requests import ClientError
from tidemill.streams.partitioner import partition_of

logger = logging.getLogger("tidemill.client")

POLL_SECONDS: Final = 0.05  # how late the reader sees a new wait that needs it to go back
# The broker holds a fetch that finds nothing for so long, and with it whatever is asked behind it
# on the same connection: a look for where a new wait begins.
FETCH_WAIT_MS_MAX: Final = 50
IDLE_SECONDS: Final = 10.0  # without a wait for this long the reader stops reading
CHUNK_RECORDS: Final = 1_000
CLOSE_SECONDS_MAX: Final = 30.0  # two lookups and leaving; the thread is a daemon
LOOKUP_SECONDS: Final = 10.0  # for one question to the broker; asked again until it answers

JobKey = tuple[str, str]
"""user_id, job_id."""


@dataclass(eq=False, slots=True)
class Waiter:
    """One `wait`: whose end, of which run or a later one, from which instant on, where to tell."""

    key: JobKey
    run: int
    since_ms: int
    partition: int | None
    asked_at_ms: int = 0
    future: Future[CompletedJob] = field(default_factory=Future)
    #: ClickHouse is being asked, or will be next.
    is_asked: bool = False

    def wants(self, body: dict[str, Any]) -> bool:
        """Whether a record of this user is the end that is waited for."""
        return bool(
            body["job_id"] == self.key[1]
            and body["run"] >= self.run
            and not is_earlier_refusal(body, self.asked_at_ms)
        )


def is_earlier_refusal(body: dict[str, Any], asked_at_ms: int) -> bool:
    """Whether an end tells of a request that was refused before the one that is waited for.

    A refusal does not take the id. It alone ends a job with its second event.
    """
    return (
        body["status"] == "failed" and body["run"] == 1 and body["sequence"] == 2
        and datetime.fromisoformat(body["finished_at"]).timestamp() * 1000 < asked_at_ms
    )


@dataclass(slots=True)
class _Seen:
    """What the reader knows of a partition: every record from `offset` on is remembered."""

    since_ms: int
    offset: int


class Completions:
    """The shared reader. Started by the first wait, ended by `close`."""

    def __init__(self, kafka: str, topic: str, state_topic: str) -> None:
        self._kafka = kafka
        self._topic = topic
        self._state_topic = state_topic  # it has as many partitions as there are homes
        self._homes = 0  # 0: not known
        self._is_closed = False
        self._consumer: Consumer | None = None
        self._begin()
        tell_in_copies(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._waiters: defaultdict[str, list[Waiter]] = defaultdict(list)
        self._new: list[Waiter] = []
        self._remembered = Remembered()
        self._seen: dict[int, _Seen] = {}
        self._all: list[int] = []  # the topic's partitions; empty until they are asked for
        self._thread: threading.Thread | None = None

    def start_anew(self) -> None:
        """In a copy of the process, where the reader's thread is not: the next wait starts one."""
        never_free(self._consumer)
        self._consumer = None
        self._begin()

    def wait_for(self, waiter: Waiter) -> None:
        """Register; the waiter's future gets the end."""
        with self._lock:
            if self._is_closed:
                raise ClientError("the client is closed; make a new one")
            self._waiters[waiter.key[0]].append(waiter)
            self._new.append(waiter)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="tidemill-wait", daemon=True
                )
                self._thread.start()
        # What has been read is told at once; what is read from here on finds the waiter.
        value = self._remembered.find(*waiter.key, run=waiter.run, since_ms=waiter.since_ms)
        if value is not None and is_earlier_refusal(orjson.loads(value), waiter.asked_at_ms):
            value = self._remembered.find(*waiter.key, run=2, since_ms=waiter.since_ms)
        if value is not None:
            self._tell(waiter, value)

    def forget(self, waiter: Waiter) -> bool:
        """Nobody waits on this any more; False when that was so before."""
        with self._lock:
            waiters = self._waiters.get(waiter.key[0], [])
            is_known = waiter in waiters
            if is_known:
                waiters.remove(waiter)
            if not waiters:
                self._waiters.pop(waiter.key[0], None)
        return is_known

    def tell(self, waiter: Waiter, end: CompletedJob) -> None:
        """The end was found elsewhere; whoever is first tells it."""
        if self.forget(waiter) and waiter.future.set_running_or_notify_cancel():
            waiter.future.set_result(end)

    def close(self, seconds: float | None = None) -> None:
        """Stop reading; whoever still waits gets an error. `seconds`: wait so long at most."""
        with self._lock:
            self._is_closed = True
            thread = self._thread
        if thread is not None:
            thread.join(CLOSE_SECONDS_MAX if seconds is None else seconds)

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        consumer = Consumer(
            client_settings(
                self._kafka,
                "tidemill-client",
                {
                    # Named because librdkafka wants a name; no group is joined, nothing committed.
                    "group.id": f"tidemill-client-{uuid.uuid4()}",
                    "isolation.level": "read_committed",
                    "enable.auto.commit": False,
                    "auto.offset.reset": "earliest",
                    "fetch.wait.max.ms": FETCH_WAIT_MS_MAX,
                    "fetch.queue.backoff.ms": 10,
                    "queued.max.messages.kbytes": 65_536,
                },
            )
        )
        self._consumer = consumer
        try:
            self._loop(consumer)
        except Exception as error:
            logger.exception("the reader of %s ended", self._topic)
            self._fail_all(error)
        finally:
            consumer.close()

    def _loop(self, consumer: Consumer) -> None:
        idle_since = clocks.monotonic()
        while not self._is_closed:
            with self._lock:
                new, self._new = self._new, []
                has_waiters = bool(self._waiters)
            if new:
                self._admit(consumer, new)
            if has_waiters:
                idle_since = clocks.monotonic()
            elif clocks.monotonic() - idle_since > IDLE_SECONDS:
                if self._rest(consumer):
                    return
                continue
            self._read(consumer)
        self._fail_all(ClientError("the client was closed while it waited"))

    def _rest(self, consumer: Consumer) -> bool:
        """Nobody waits: forget all and end the thread, unless someone came just now."""
        with self._lock:
            if self._new or self._waiters:
                return False
            self._forget_all()
            self._thread = None
            return True

    def _forget_all(self) -> None:
        """The next thread's consumer reads nothing yet."""
        self._remembered.clear()
        self._seen.clear()
        self._all = []

    def _admit(self, consumer: Consumer, new: list[Waiter]) -> None:
        partitions = self._partitions(consumer)
        for waiter in new:
            if not waiter.future.done():
                # Where a request went says nothing once its topic has got more partitions.
                is_placed = waiter.partition is not None and self._homes > 0
                chosen = [partition_of(waiter.key[0], self._homes)] if is_placed else partitions
                self._read_from(consumer, chosen, waiter.since_ms)

    def _partitions(self, consumer: Consumer) -> list[int]:
        if self._all:
            return self._all
        while not self._is_closed:
            try:
                found = consumer.list_topics(self._topic, timeout=LOOKUP_SECONDS)
                state = consumer.list_topics(self._state_topic, timeout=LOOKUP_SECONDS)
            except KafkaException as error:
                logger.warning("no answer from Kafka: %s; asking again", error.args[0].str())
                continue
            partitions = list(found.topics[self._topic].partitions)
            if partitions:
                self._homes = len(state.topics[self._state_topic].partitions)
                self._all = partitions
                return partitions
            raise ClientError(
                f"topic {self._topic} does not exist; start `tidemill dev`, or run `tidemill "
                "topics apply`"
            )
        return []

    def _read_from(self, consumer: Consumer, partitions: Iterable[int], since_ms: int) -> None:
        """See to it that everything from that instant on has been or will be read."""
        late = [p for p in partitions if p not in self._seen or self._seen[p].since_ms > since_ms]
        if not late:
            return
        added = []
        for partition in late:
            offset = self._first_since(consumer, partition, since_ms)
            if offset is None:
                return
            self._remembered.forget_partition(partition)
            self._seen[partition] = _Seen(since_ms, offset)
            added.append(TopicPartition(self._topic, partition, offset))
        consumer.incremental_unassign(
            [p for p in consumer.assignment() if p.partition in {one.partition for one in added}]
        )
        consumer.incremental_assign(added)

    def _first_since(self, consumer: Consumer, partition: int, since_ms: int) -> int | None:
        """The offset of the first record of that instant or later; None once closed."""
        here = TopicPartition(self._topic, partition, since_ms)
        while not self._is_closed:
            try:
                # 1. The end comes first: what is written between the two answers lies behind it,
                #    and an end that was asked for second would jump over that.
                _, end = consumer.get_watermark_offsets(here, timeout=LOOKUP_SECONDS)
                # 2. Where that instant is.
                (found,) = consumer.offsets_for_times([here], timeout=LOOKUP_SECONDS)
            except KafkaException as error:
                logger.warning("no answer from Kafka: %s; asking again", error.args[0].str())
                continue
            return int(found.offset) if found.offset >= 0 else int(end)
        return None

    def _read(self, consumer: Consumer) -> None:
        for message in take_arrived(consumer, CHUNK_RECORDS, POLL_SECONDS):
            self._take(message)

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART or error.fatal():
                raise ClientError(f"{self._topic}: {error.str()}")
            logger.warning("reading %s: %s", self._topic, error.str())
            return
        user = (message.key() or b"").decode("utf-8", "replace")
        value = message.value() or b""
        timestamp_ms = message.timestamp()[1]
        forgotten = self._remembered.add(message.partition() or 0, timestamp_ms, user, value)
        for partition, at_ms in forgotten:
            if partition in self._seen:
                # From here on memory is complete; one ms more, for records of the same ms.
                self._seen[partition].since_ms = at_ms + 1
        if user not in self._waiters:
            return
        with self._lock:
            waiters = list(self._waiters.get(user, ()))
        body = orjson.loads(value)
        for waiter in waiters:
            if waiter.wants(body) and timestamp_ms >= waiter.since_ms - OTHER_LIFE_MS:
                self._tell(waiter, value)

    def _tell(self, waiter: Waiter, value: bytes) -> None:
        if not self.forget(waiter) or not waiter.future.set_running_or_notify_cancel():
            return
        try:
            waiter.future.set_result(CompletedJob.model_validate_json(value))
        except ValidationError as error:
            waiter.future.set_exception(
                ClientError(f"{self._topic}: the end of {waiter.key[1]} cannot be read: {error}")
            )

    def _fail_all(self, error: Exception) -> None:
        with self._lock:
            waiters = [waiter for mine in self._waiters.values() for waiter in mine]
            self._waiters.clear()
            self._new.clear()
            self._forget_all()
            self._thread = None
        for waiter in waiters:
            if waiter.future.set_running_or_notify_cancel():
                waiter.future.set_exception(
                    error if isinstance(error, ClientError) else ClientError(str(error))
                )
