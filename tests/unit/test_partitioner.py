"""Which partition a key belongs to: as Kafka's own default partitioner says."""

from __future__ import annotations

import random

import pytest

from tidemill.streams.partitioner import Partitioner, murmur2, partition_of


@pytest.mark.parametrize(
    ("text", "signed"),
    [
        # From the tests of Apache Kafka's client (UtilsTest.testMurmur2).
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_murmur2_as_kafka_has_it(text: str, signed: int) -> None:
    assert murmur2(text.encode()) == signed % 2**32


def test_murmur2_as_another_client_has_it() -> None:
    oracle = pytest.importorskip("aiokafka.partitioner").murmur2
    rng = random.Random(1)
    for length in range(200):
        data = rng.randbytes(length)
        assert murmur2(data) == oracle(data) % 2**32


KEYS = (
    "u", "", "a/b", 'say "ü"', "\U0001f409", "a" * 256, "schedule:nightly", "queue:ai_analysis",
    "model:gpt-4o", "breaker:smtp", "user+type:u\x00mail", *(f"user-{n}" for n in range(300)),
)


@pytest.mark.parametrize("partitions", [1, 2, 3, 4, 7, 64, 1_000])
def test_any_key_has_the_partition_that_another_clients_default_gives_it(partitions: int) -> None:
    theirs = pytest.importorskip("aiokafka.partitioner").DefaultPartitioner()
    every = list(range(partitions))
    ours = Partitioner(partitions)
    for key in KEYS:
        assert ours.of(key) == theirs(key.encode(), every, every), key


def test_a_home_is_found_once_and_stays() -> None:
    partitioner = Partitioner(7)
    users = [f"user-{n}" for n in range(50)] + ["\U0001f409", "a" * 256]
    first = [partitioner.of(user) for user in users]
    assert first == [partitioner.of(user) for user in users]
    assert first == [partition_of(user, 7) for user in users]
    assert set(first) == set(range(7))


@pytest.mark.interpreted
def test_the_memory_of_homes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.streams.partitioner._CACHE_MAX", 3)
    partitioner = Partitioner(5)
    for n in range(20):
        assert partitioner.of(str(n)) == partition_of(str(n), 5)
        assert len(partitioner._known) <= 3
