"""Which partition a user belongs to: as Kafka's own default partitioner says."""

from __future__ import annotations

import random

import pytest

from streams.homes import Homes, murmur2, partition_of


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


def test_a_home_is_found_once_and_stays() -> None:
    homes = Homes(7)
    users = [f"user-{n}" for n in range(50)] + ["\U0001f409", "a" * 256]
    first = [homes.of(user) for user in users]
    assert first == [homes.of(user) for user in users]
    assert first == [partition_of(user, 7) for user in users]
    assert set(first) == set(range(7))


@pytest.mark.interpreted
def test_the_memory_of_homes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.homes._CACHE_MAX", 3)
    homes = Homes(5)
    for n in range(20):
        assert homes.of(str(n)) == partition_of(str(n), 5)
        assert len(homes._known) <= 3
