"""Asks for jobs the way strangers do, and keeps what Kafka acknowledged.

Owns the mix of requests, repeats and poison, three kinds of producer and the receipts. Everything
is drawn from a seed. Refuses to know what the engine does with it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from random import Random
from typing import Any, Final, Literal

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tests.chaos.receipts import Receipt

USERS: Final = 400
MIX: Final = (
    ("chaos.noop", 54.5), ("chaos.flaky", 12.0), ("chaos.thread", 6.0), ("chaos.skip", 5.0),
    ("chaos.delay", 4.0), ("chaos.once", 2.5), ("chaos.parent", 2.0), ("chaos.refuses", 2.0),
    ("chaos.slow", 1.5), ("chaos.process", 0.5), ("chaos.late", 0.05), ("chaos.steps", 2.5),
    ("chaos.nap", 1.5), ("chaos.nap_thread", 0.6), ("chaos.nap_process", 0.2),
    ("chaos.shared", 1.5), ("chaos.fan", 0.5), ("chaos.asks", 1.0),
)
"""Type -> share of the requests, in percent."""
LIMITED_USERS: Final = 40  # users of limited types: few, so that limits bite
SHARING_USERS: Final = 5  # users of a type that collapses: few, so that requests meet
NAPS: Final = ("chaos.nap", "chaos.nap_thread", "chaos.shared", "chaos.fan", "chaos.asks")
# Seconds from the request to each signal that is sent: early ones, double ones, late ones, none.
ANSWERS: Final = (
    (-1.0,), (0.0,), (0.5,), (1.5, 1.5), (-1.0, 0.5), (0.2, 0.3, 3.0), (9.0,), (3.0, 9.0), (),
)
WOKEN: Final = 0.08  # share of those that are cancelled while they sleep, or around that
WOKEN_SECONDS: Final = (0.3, 2.5)  # from the request to such a cancel
REPEATED: Final = 0.03  # share of requests that are sent twice
CONFLICTING: Final = 0.005  # share that is sent again with another body
POISONED: Final = 0.01  # share of records that are no request at all
NAMELESS: Final = 0.05  # share without a job_id
RUN_AT: Final = 0.03  # share with an instant
BROKEN: Final = 0.005  # share that is refused by its id at first; the mended one follows
CANCELLED_EVERY: Final = 150  # of so many requests with an id one is cancelled, around its sending
DELIVERY_SECONDS: Final = 300.0  # a broker that is away for a minute loses no acknowledgement
LINGER_MS: Final = 20
POLL_EVERY: Final = 50  # records between two polls

Kind = Literal["job", "poison", "either"]


@dataclass(slots=True)
class Sent:
    """One record to send and what it is."""

    value: bytes | None
    user_id: str | None
    job_id: str | None
    kind: Kind
    unique_key: str | None = None
    run_at_ms: int | None = None
    cancel_after: float | None = None  # seconds
    answers: tuple[float, ...] = ()  # seconds to each signal


@dataclass(slots=True)
class Tally:
    """What has been acknowledged so far. Filled by the producers' callbacks."""

    receipts: list[Receipt] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def requests(count: int, seed: int) -> Iterator[Sent]:
    """`count` records: requests in all shapes, repeats and poison among them."""
    random = Random(seed)
    types = [name for name, _ in MIX]
    weights = [share for _, share in MIX]
    recent: list[dict[str, Any]] = []
    mended: dict[str, Any] | None = None
    for number in range(count):
        chance = random.random()
        if mended is not None:
            yield _sent(mended)
            mended = None
        elif chance < POISONED:
            yield Sent(_poison(random), None, None, "poison")
        elif recent and chance < POISONED + CONFLICTING:
            body = dict(random.choice(recent))
            body["payload"] = {"n": -1}
            yield _sent(body)
        elif recent and chance < POISONED + CONFLICTING + REPEATED:
            yield _sent(random.choice(recent))
        elif chance > 1 - BROKEN:
            mended = {"type": "chaos.noop", "user_id": f"user-{random.randrange(USERS)}",
                      "payload": {"n": number}, "job_id": f"job-{number}"}
            broken = json.dumps({**mended, "no_such_field": 1}).encode()
            yield Sent(broken, None, None, "poison")
        else:
            body = _request(random, random.choices(types, weights)[0], number)
            if "job_id" in body:
                recent.append(body)
                del recent[:-200]
            sent = _sent(body)
            if body["type"] in NAPS and random.random() < WOKEN:
                sent.cancel_after = random.uniform(*WOKEN_SECONDS)
            if body["type"] == "chaos.asks":
                sent.answers = random.choice(ANSWERS)
            yield sent


def _request(random: Random, type_name: str, number: int) -> dict[str, Any]:
    is_limited = type_name in ("chaos.skip", "chaos.delay", "chaos.once")
    is_shared = type_name == "chaos.shared"
    users = SHARING_USERS if is_shared else LIMITED_USERS if is_limited else USERS
    user = random.randrange(users)
    body: dict[str, Any] = {
        "type": type_name, "user_id": f"user-{user}", "payload": {"n": number},
        "job_id": f"job-{number}",
    }
    if is_shared:
        body["payload"]["thing"] = number % 2
    elif type_name == "chaos.once":
        body["unique_key"] = f"key-{random.randrange(3)}"
    elif type_name == "chaos.noop":
        if random.random() < NAMELESS:
            del body["job_id"]
        elif random.random() < RUN_AT:
            body["run_at"] = int(time.time() * 1000) + random.randrange(10_000)
        if random.random() < 0.1:
            body["priority"] = random.choice(("high", "low"))
    return body


def _sent(body: dict[str, Any]) -> Sent:
    return Sent(
        json.dumps(body).encode(), body["user_id"], body.get("job_id"), "job",
        body.get("unique_key"), body.get("run_at"),
    )


def _poison(random: Random) -> bytes | None:
    return random.choice(
        (None, b"", b"\xff\xfe\x00", b"[1,2,3]", b'{"type":"chaos.noop"', b"{}", b"null",
         b'{"type":"chaos.noop"}', b'{"user_id":"","type":"chaos.noop"}', b"[" * 10_000)
    )


class Loader(threading.Thread):
    """Sends `count` records over about `seconds`; `join` it, then read `tally`.

    Three producers take turns: Java's partitioner, librdkafka's default, and no key at all.
    """

    def __init__(
        self, kafka: str, topic: str, *, count: int, seconds: float, seed: int
    ) -> None:
        super().__init__(name="loader")
        self.tally = Tally()
        self.sent: list[Sent] = []
        self.error: BaseException | None = None
        self._topic = topic
        self._commands = topic.removesuffix("requested") + "commands"
        self._count, self._seconds, self._seed = count, seconds, seed
        self._producers = [
            _producer(kafka, "murmur2_random"), _producer(kafka, "consistent_random"),
            _producer(kafka, "consistent_random"),
        ]

    def run(self) -> None:
        """Send, then wait until each record is acknowledged."""
        try:
            self._send()
            for producer in self._producers:
                if left := producer.flush(DELIVERY_SECONDS):
                    self.tally.failures.append(f"{left} records were never acknowledged")
        except (KafkaException, BufferError) as error:
            self.error = error

    def _send(self) -> None:
        begun = time.monotonic()
        later: list[tuple[float, int, Callable[[], None]]] = []
        for number, sent in enumerate(requests(self._count, self._seed)):
            self.sent.append(sent)
            for after, ask in self._asked_later(sent):
                if after < 0:  # before its request
                    ask()
                else:
                    heappush(later, (time.monotonic() + after, len(later) + number, ask))
            while later and later[0][0] <= time.monotonic():
                heappop(later)[2]()
            lane = number % len(self._producers)
            key = None if lane == 2 or sent.user_id is None else sent.user_id.encode()
            is_cancelled = sent.job_id is not None and number % CANCELLED_EVERY < 2
            # Of two neighbours one is cancelled before its request, the other one behind it.
            if is_cancelled and number % CANCELLED_EVERY == 0:
                self._cancel(self._producers[lane], sent, key)
            self._produce(self._producers[lane], sent, key)
            if is_cancelled and number % CANCELLED_EVERY == 1:
                self._cancel(self._producers[lane], sent, key)
            if number % POLL_EVERY == 0:
                for producer in self._producers:
                    producer.poll(0)
                ahead = begun + self._seconds * number / self._count - time.monotonic()
                if ahead > 0:
                    time.sleep(ahead)
        for _, _, ask in sorted(later, key=lambda one: one[:2]):
            ask()

    def _asked_later(self, sent: Sent) -> Iterator[tuple[float, Callable[[], None]]]:
        """What is asked for around a request: so many seconds behind it, and how."""
        if sent.cancel_after is not None:
            yield sent.cancel_after, partial(self._cancel, self._producers[0], sent, None)
        for number, after in enumerate(sent.answers):
            yield after, partial(self._signal, sent, number)

    def _signal(self, sent: Sent, number: int) -> None:
        command = {
            "command": "signal", "user_id": sent.user_id, "job_id": sent.job_id, "name": "answer",
            "value": {"number": number},
        }
        self._producers[0].produce(self._commands, json.dumps(command))

    def _cancel(self, producer: Producer, sent: Sent, key: bytes | None) -> None:
        command = {"command": "cancel", "user_id": sent.user_id, "job_id": sent.job_id}
        producer.produce(self._commands, json.dumps(command), key)

    def _produce(self, producer: Producer, sent: Sent, key: bytes | None) -> None:
        tally = self.tally

        def delivered(error: KafkaError | None, message: Message) -> None:
            partition, offset = message.partition(), message.offset()
            if error is not None or partition is None or offset is None:
                tally.failures.append(f"{sent.job_id}: {error}")
                return
            tally.receipts.append(
                Receipt(
                    partition, offset, sent.kind, sent.user_id, sent.job_id, sent.unique_key,
                    sent.run_at_ms,
                )
            )

        while True:
            try:
                producer.produce(self._topic, sent.value, key, on_delivery=delivered)
                return
            except BufferError:
                # The broker is away and the queue is full: wait for room, as producers do.
                producer.poll(0.5)


def _producer(kafka: str, partitioner: str) -> Producer:
    return Producer(
        {
            "bootstrap.servers": kafka,
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": LINGER_MS,
            "partitioner": partitioner,
            "delivery.timeout.ms": int(DELIVERY_SECONDS * 1000),
            "queue.buffering.max.messages": 200_000,
            "reconnect.backoff.max.ms": 1_000,
            "log_level": 0,
        }
    )
