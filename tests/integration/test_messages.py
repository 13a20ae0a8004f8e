"""Messages between partitions over a real broker: two ledgers, ends between two steps of a group.

Owns the proof from the log and the rows that each message was sent and taken once, in order, and
what a ledger without the policy does. The policy is the tests' relay (`tests.unit.message_kit`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import orjson
import pytest
from confluent_kafka import Producer

from tests.chaos.rawlog import read_topic
from tests.chaos.running import Tail
from tests.unit.message_kit import (
    RELAY,
    SINCE,
    Message,
    Plan,
    Taken,
    check_order,
    check_taken,
    expected,
    read_message,
)
from tests.waiting import wait_until
from tidemill.agents import exit_codes
from tidemill.agents.crash import CRASH_EXIT_CODE, CRASH_VARIABLE
from tidemill.agents.topics import apply
from tidemill.schemas.topics import BIG_RECORD_BYTES, Topics
from tidemill.streams.envelope import (
    KIND_HEADER,
    MESSAGE_BYTES_MAX,
    ORIGIN_HEADER,
    POLICY_HEADER,
    message_headers,
)
from tidemill.streams.partitioner import Partitioner

ROOT: Final = Path(__file__).resolve().parents[2]
PARTITIONS: Final = 4
SECONDS: Final = 60.0
KEYS: Final = ("u", "queue:mail", "schedule:nightly", "model:gpt-4o", "user-1", "breaker:smtp")
ROUNDS: Final = 40  # of a chain, each in a group of its own at the least

pytestmark = pytest.mark.timeout(240)


class LedgerProcess:
    """One ledger, with the relay or without."""

    def __init__(
        self, ending: ExitStack, folder: Path, name: str, kafka: str, prefix: str,
        *, env: Mapping[str, str] | None = None, program: str = "tests.integration.relay_ledger",
    ) -> None:
        self.log = folder / f"{name}-{len(list(folder.iterdir()))}.log"
        with self.log.open("wb") as out:
            self.popen = subprocess.Popen(
                [
                    sys.executable, "-m", program, "ledger", "--kafka", kafka, "--topic-prefix",
                    prefix, "--partitions", str(PARTITIONS), "--instance-id", name,
                ],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env={**os.environ, **(env or {})},
            )
        ending.callback(self.popen.wait)
        ending.callback(self.popen.kill)

    def told(self) -> str:
        return self.log.read_text()[-4_000:]

    def wait_serving(self) -> None:
        """Until it owns partitions."""
        wait_until(lambda: "owns partitions [" in self.log.read_text(), SECONDS, self.told)

    def wait_end(self) -> int:
        wait_until(lambda: self.popen.poll() is not None, SECONDS, self.told)
        return self.popen.wait()


@pytest.fixture
def ending() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def topics(kafka: str, topic_prefix: str) -> Topics:
    made = Topics(topic_prefix)
    apply(kafka, made, PARTITIONS)
    return made


def chain(rounds: int) -> Plan:
    """From key to key; now and then to all, which end there, and two to the same key in order."""
    if not rounds:
        return []
    ends: Plan = [(None, [])] if rounds % 5 == 0 else [(KEYS[rounds % 4], [])]
    return [*ends, (KEYS[rounds % len(KEYS)], chain(rounds - 1)), (KEYS[rounds % 4], [])]


class Seeds:
    """Messages that begin a plan, written as partition 0 would."""

    def __init__(self, kafka: str, topics: Topics) -> None:
        self._producer = Producer(
            {"bootstrap.servers": kafka, "linger.ms": 0, "message.max.bytes": BIG_RECORD_BYTES}
        )
        self._topics = topics
        self.wanted: Counter[tuple[int, int, str]] = Counter()

    def send(self, name: str, target: int, plan: Plan) -> None:
        headers: list[tuple[str, str | bytes | None]] = [
            *message_headers(
                policy=RELAY, internal=self._topics.internal, partition=0, number=1, needs=SINCE
            )
        ]
        self._producer.produce(
            self._topics.internal, orjson.dumps({"name": name, "plan": plan}), partition=target,
            headers=headers,
        )
        assert self._producer.flush(20) == 0
        self.wanted[0, target, name] += 1
        self.wanted += expected(target, name, plan, PARTITIONS)


def taken_in(rows: Tail) -> dict[int, dict[int, Taken]]:
    """By target and origin: what the rows say was taken."""
    found: dict[int, dict[int, Taken]] = {number: {} for number in range(PARTITIONS)}
    for record in list(rows.records):
        if record.key is not None and record.key[:1] == b"r":
            found[record.partition][int(record.key[1:])] = tuple(orjson.loads(record.value or b""))
    return found


def count_of(taken: dict[int, dict[int, Taken]]) -> int:
    return sum(len(names) for origins in taken.values() for names in origins.values())


def messages_of(kafka: str, topics: Topics) -> list[Message]:
    return [
        read_message(record.partition, record.value, record.headers)
        for record in read_topic(kafka, topics.internal)
    ]


def test_each_message_is_taken_once_when_ledgers_end_between_two_steps(
    kafka: str, topic_prefix: str, topics: Topics, ending: ExitStack, tmp_path: Path
) -> None:
    def ledger(name: str, crash_at: str = "") -> LedgerProcess:
        env = {CRASH_VARIABLE: crash_at} if crash_at else {}
        return LedgerProcess(ending, tmp_path, name, kafka, topic_prefix, env=env)

    rows = Tail(kafka, topics.state, PARTITIONS)
    rows.start()
    ending.callback(rows.close)
    seeds = Seeds(kafka, topics)
    # The group is committed, and its owner never learns that.
    first = ledger("first", "ledger.after_commit_before_apply:8")
    second = ledger("second")
    first.wait_serving()
    second.wait_serving()
    for number in range(PARTITIONS):
        seeds.send(f"a{number}", number, chain(ROUNDS))
    assert first.wait_end() == CRASH_EXIT_CODE, first.told()
    # All is written and not committed; and one that ends by a signal, wherever it is.
    third = ledger("first", "ledger.after_produce_before_commit:8")
    third.wait_serving()
    for number in range(PARTITIONS):
        seeds.send(f"b{number}", number, chain(ROUNDS))
    assert third.wait_end() == CRASH_EXIT_CODE, third.told()
    fourth = ledger("first")
    fourth.wait_serving()
    seeds.send("c", 2, chain(ROUNDS))
    second.popen.kill()
    last = ledger("second", "ledger.after_apply_before_ack:8")
    last.wait_serving()
    for number in range(PARTITIONS):
        seeds.send(f"d{number}", number, chain(ROUNDS))
    assert last.wait_end() == CRASH_EXIT_CODE, last.told()
    total = seeds.wanted.total()
    wait_until(
        lambda: count_of(taken_in(rows)) >= total, SECONDS,
        lambda: f"{count_of(taken_in(rows))} of {total} are taken\n{fourth.told()}",
    )
    sent = messages_of(kafka, topics)
    assert Counter((one.origin, one.target, one.body["name"]) for one in sent) == seeds.wanted
    check_taken(sent, taken_in(rows))
    check_order([one for one in sent if "/" in one.body["name"]])
    assert not list(read_topic(kafka, topics.dead))


def test_a_ledger_without_the_policy_takes_what_it_can_and_ends_with_the_reason(
    kafka: str, topic_prefix: str, topics: Topics, ending: ExitStack, tmp_path: Path
) -> None:
    client = Producer({"bootstrap.servers": kafka, "linger.ms": 0})
    origin = (ORIGIN_HEADER, f"{topics.internal}/1/1".encode())
    broken: list[list[tuple[str, str | bytes | None]]] = [
        [], [(KIND_HEADER, b"message")], [origin, (KIND_HEADER, b"message")],
        [origin, (KIND_HEADER, b"message"), (POLICY_HEADER, b"\xff")],
    ]
    for headers in broken:
        client.produce(topics.internal, b"[]", b"k", 0, headers=headers)
    assert client.flush(20) == 0
    Seeds(kafka, topics).send("m", 0, [])
    plain = LedgerProcess(ending, tmp_path, "plain", kafka, topic_prefix, program="tidemill")
    assert plain.wait_end() == exit_codes.TOO_OLD, plain.told()
    for part in (
        f"{topics.internal}[0]@{len(broken)}", f"the policy '{RELAY}'",
        f"Tidemill {SINCE} or later", "nothing was lost",
    ):
        assert part in plain.told()
    # A ledger that has the policy goes on there: the message is taken, the others are buried.
    rows = Tail(kafka, topics.state, PARTITIONS)
    rows.start()
    ending.callback(rows.close)
    newer = LedgerProcess(ending, tmp_path, "newer", kafka, topic_prefix)
    wait_until(lambda: taken_in(rows)[0] == {0: ("m",)}, SECONDS, newer.told)
    # One whose value is nearly as large as it may be, then one with such a key.
    seeds = Seeds(kafka, topics)
    seeds.send("big", 0, [(KEYS[0], [("k" * (MESSAGE_BYTES_MAX - 1_000), [])])])
    total = 1 + seeds.wanted.total()
    wait_until(lambda: count_of(taken_in(rows)) == total, SECONDS, newer.told)
    letters = list(read_topic(kafka, topics.dead))
    assert [record.value for record in letters] == [b"[]"] * len(broken)
    codes = [dict(record.headers)["tidemill.dead.error.code"] for record in letters]
    assert codes == [b"BROKEN_FORWARD", b"BROKEN_FORWARD", b"BROKEN_MESSAGE", b"BROKEN_MESSAGE"]


def test_a_client_of_librdkafka_gives_any_key_the_same_partition(
    kafka: str, topics: Topics
) -> None:
    client = Producer({"bootstrap.servers": kafka, "partitioner": "murmur2_random"})
    found: dict[bytes | None, int | None] = {}
    keys = [*KEYS, "a/b", "\U0001f409", "a" * 256, *(f"user-{n}" for n in range(200))]
    for key in keys:
        client.produce(
            topics.requested, b"{}", key,
            on_delivery=lambda _, m: found.update({m.key(): m.partition()}),
        )
    assert client.flush(20) == 0
    ours = Partitioner(PARTITIONS)
    assert found == {key.encode(): ours.of(key) for key in keys}
