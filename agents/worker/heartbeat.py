"""The worker's beat: a thread of its own tells every 2 s that the process lives and what is free.

Owns the beat's thread and producer. Refuses to know slots: it publishes the latest snapshot that
the loop left.

A blocked loop (an `async def` handler that computes or sleeps without awaiting) still counts as
alive: the process lives, its jobs run, and a rescue would only run them twice. But it can take
nothing, so after LOOP_BLOCKED_SECONDS the beat says that no slot is free.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from confluent_kafka import KafkaException, Producer

from agents.runtime.clients import client_settings
from schemas import SCHEMA_VERSION
from schemas.wire import (
    HEARTBEAT_MISSING_SECONDS,
    HEARTBEAT_SECONDS,
    Heartbeat,
    KindSlots,
    QueueSlots,
)

LOOP_BLOCKED_SECONDS: Final = HEARTBEAT_MISSING_SECONDS  # as long as silence would be bearable
BEAT_GAP_SECONDS: Final = 0.25  # at least this between two beats, however much changes
MESSAGE_TIMEOUT_MS: Final = 5_000  # an old beat says nothing; it is dropped
BIG_CHANGE_SHARE: Final = 0.25  # of the slots of a kind: such a change of the free is told at once
CLOSE_SECONDS: Final = 1.0  # the last beat gets this long

logger = logging.getLogger("tidemill.worker")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the loop knows of itself."""

    #: Monotonic seconds at which the loop made this.
    made_at: float
    queues: Mapping[str, QueueSlots] = field(default_factory=dict)
    types: tuple[str, ...] = ()
    running: int = 0
    is_stopping: bool = False
    #: How the process before this one ended; None: nobody knows.
    former_end: str | None = None


class BeatSink(Protocol):
    """Where beats go."""

    def send(self, key: bytes, value: bytes) -> None: ...

    def close(self) -> None: ...


class KafkaBeats:
    """`BeatSink` over librdkafka, outside any transaction."""

    def __init__(self, kafka: str, topic: str, client_id: str) -> None:
        self._topic = topic
        self._producer = Producer(
            client_settings(
                kafka,
                client_id,
                {"acks": "all", "linger.ms": 0, "message.timeout.ms": MESSAGE_TIMEOUT_MS},
            )
        )

    def send(self, key: bytes, value: bytes) -> None:
        try:
            self._producer.produce(self._topic, value, key)
        except (BufferError, KafkaException) as error:
            logger.warning("a heartbeat could not be sent: %s", error)
        self._producer.poll(0)

    def close(self) -> None:
        self._producer.flush(CLOSE_SECONDS)


def beat_of(
    snapshot: Snapshot, *, worker_id: str, incarnation: int, now: float, at_ms: int
) -> Heartbeat:
    """The beat for a snapshot; a snapshot that is too old shows a blocked loop: nothing is free."""
    queues = dict(snapshot.queues)
    if now - snapshot.made_at > LOOP_BLOCKED_SECONDS:
        queues = {name: _taken(room) for name, room in queues.items()}
    return Heartbeat(
        schema_version=SCHEMA_VERSION,
        worker_id=worker_id,
        incarnation=incarnation,
        at=at_ms,
        queues=queues,
        types=snapshot.types,
        running=snapshot.running,
        is_stopping=snapshot.is_stopping,
        former_end=snapshot.former_end,
    )


def _taken(room: QueueSlots) -> QueueSlots:
    """The same room with nothing free in it."""
    kinds = {kind: room.kinds[kind].model_copy(update={"free": 0}) for kind in room.kinds}
    return room.model_copy(update={"kinds": kinds})


def is_big_change(before: Snapshot, after: Snapshot) -> bool:
    """Whether the ledger should know at once, and not with the next beat."""
    if before.is_stopping != after.is_stopping or before.queues.keys() != after.queues.keys():
        return True
    for name, new in after.queues.items():
        old = before.queues[name]
        if old.partitions != new.partitions or old.kinds.keys() != new.kinds.keys():
            return True
        if any(_is_big(old.kinds[kind], new.kinds[kind]) for kind in new.kinds):
            return True
    return False


def _is_big(old: KindSlots, new: KindSlots) -> bool:
    if old.slots != new.slots or (old.free == 0) != (new.free == 0):
        return True
    return abs(old.free - new.free) >= max(1, BIG_CHANGE_SHARE * new.slots)


class HeartbeatThread:
    """Sends beats from its own thread until `close`."""

    def __init__(
        self,
        sink: BeatSink,
        *,
        worker_id: str,
        incarnation: int,
        first: Snapshot,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._worker_id = worker_id
        self._incarnation = incarnation
        self._latest = first
        self._sent = first
        self._clock = clock
        self._wake = threading.Event()
        self._is_closing = False
        #: Beats that were handed to the client.
        self.sent_total = 0
        self._thread = threading.Thread(target=self._run, name="tidemill-heartbeat", daemon=True)

    def start(self) -> None:
        """The first beat goes out at once."""
        self._thread.start()

    def update(self, snapshot: Snapshot) -> None:
        """Called by the loop, often: replace the snapshot, and beat at once when much changed."""
        self._latest = snapshot
        if is_big_change(self._sent, snapshot):
            self._wake.set()

    def close(self) -> None:
        """Send the latest snapshot once more as a stopping worker's, and end."""
        self._latest = replace(self._latest, is_stopping=True)
        self._is_closing = True
        self._wake.set()
        self._thread.join(CLOSE_SECONDS * 2)

    def _run(self) -> None:
        while True:
            is_last = self._is_closing
            self._wake.clear()
            self._beat()
            if is_last:
                self._sink.close()
                return
            time.sleep(BEAT_GAP_SECONDS)
            self._wake.wait(HEARTBEAT_SECONDS - BEAT_GAP_SECONDS)

    def _beat(self) -> None:
        snapshot = self._latest
        beat = beat_of(
            snapshot,
            worker_id=self._worker_id,
            incarnation=self._incarnation,
            now=self._clock(),
            at_ms=int(time.time() * 1000),
        )
        self._sent = snapshot
        self._sink.send(self._worker_id.encode(), beat.model_dump_json(exclude_none=True).encode())
        self.sent_total += 1
