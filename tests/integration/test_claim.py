"""How the right to write a partition passes from one process to the next, against a real broker.

Owns the proof that of two processes which believe that they own a partition only the later one
writes, and that a hand-over in good order stops nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import orjson
import pytest

from tidemill.agents import topics as topics_
from tidemill.agents.embedded.broker import Broker
from tidemill.agents.ledger import claim as claim_
from tidemill.agents.ledger.claim import Claim
from tidemill.agents.runtime.errors import FencedError
from tidemill.agents.runtime.restore import read_compacted
from tidemill.agents.runtime.transaction import TransactionalProducer
from tidemill.schemas.batch_builder import OutGroup
from tidemill.schemas.topics import Topics

PARTITIONS = 2


@pytest.fixture
def topics(kafka: str, topic_prefix: str) -> Topics:
    found = Topics(topic_prefix)
    topics_.apply(kafka, found, PARTITIONS)
    return found


class Process:
    """What a ledger process writes with: one producer for all its partitions, a claim for each."""

    def __init__(self, kafka: str, topics: Topics, producer: TransactionalProducer) -> None:
        self.topics = topics
        self.producer = producer
        self.claims = [
            Claim(kafka, topics, number, (producer.transactional_id,))
            for number in range(PARTITIONS)
        ]

    async def write(self, text: bytes, partition: int = 0) -> None:
        """One group that touches one partition."""
        await self.producer.commit_group(
            OutGroup([(self.topics.state, partition, text, text, None)])
        )


@asynccontextmanager
async def process(kafka: str, topics: Topics, name: str) -> AsyncIterator[Process]:
    async with AsyncExitStack() as stack:
        producer = TransactionalProducer(kafka, f"{topics.prefix}-{name}")
        stack.push_async_callback(producer.close)
        await producer.init()
        made = Process(kafka, topics, producer)
        for claim in made.claims:
            stack.push_async_callback(claim.close)
        yield made


def written(kafka: str, topics: Topics, partition: int = 0) -> list[bytes | None]:
    return [
        value for batch in read_compacted(kafka, topics.state, partition) for _, value in batch
    ]


async def test_a_zombie_writes_nothing_more(kafka: str, topics: Topics) -> None:
    async with process(kafka, topics, "a") as a, process(kafka, topics, "b") as b:
        await a.claims[0].take()
        await a.write(b"1")
        await b.claims[0].take()
        with pytest.raises(FencedError):
            await a.write(b"2")
        await b.write(b"3")
    assert written(kafka, topics) == [b"1", b"3"]


async def test_an_open_transaction_of_the_former_owner_is_gone_once_the_claim_is_taken(
    kafka: str, topics: Topics
) -> None:
    async with process(kafka, topics, "a") as a, process(kafka, topics, "b") as b:
        await a.claims[0].take()
        await a.producer.send(OutGroup([(topics.state, 0, b"open", b"open", None)]))
        await b.claims[0].take()
        await b.write(b"1")
        assert written(kafka, topics) == [b"1"]
        with pytest.raises(FencedError):
            await a.producer.commit()


async def test_an_owner_that_let_go_goes_on_with_its_other_partitions(
    kafka: str, topics: Topics
) -> None:
    async with process(kafka, topics, "a") as a, process(kafka, topics, "b") as b:
        for claim in a.claims:
            await claim.take()
            await claim.let_go()
        await b.claims[0].take()
        await a.claims[1].renew()
        await a.write(b"a", partition=1)
        await b.write(b"b")
    assert written(kafka, topics, 1) == [b"a"]
    assert written(kafka, topics) == [b"b"]


async def test_an_owner_that_let_go_learns_that_another_one_has_been_there(
    kafka: str, topics: Topics
) -> None:
    async with process(kafka, topics, "a") as a, process(kafka, topics, "b") as b:
        await a.claims[0].take()
        await a.claims[0].let_go()
        await b.claims[0].take()
        await b.claims[0].let_go()
        with pytest.raises(FencedError):
            await a.claims[0].renew()


async def test_a_renewed_claim_is_fenced_like_a_first_one(kafka: str, topics: Topics) -> None:
    async with process(kafka, topics, "a") as a, process(kafka, topics, "b") as b:
        await a.claims[0].take()
        await a.claims[0].let_go()
        await a.claims[0].renew()
        await b.claims[0].take()
        with pytest.raises(FencedError):
            await a.write(b"1")


async def test_of_two_that_claim_at_once_the_later_one_wins(kafka: str, topics: Topics) -> None:
    async with process(kafka, topics, "a") as a, process(kafka, topics, "b") as b:
        # A has locked and learnt that nobody is to be fenced; then B comes and is quicker.
        write = a.claims[0]._write

        async def after_b(*, has_let_go: bool) -> None:
            await b.claims[0].take()
            await write(has_let_go=has_let_go)

        a.claims[0]._write = after_b  # type: ignore[method-assign]  # the instant between two steps
        with pytest.raises(FencedError):
            await a.claims[0].take()
        await b.write(b"1")
    assert written(kafka, topics) == [b"1"]


async def test_the_same_process_need_not_fence_itself(kafka: str, topics: Topics) -> None:
    async with process(kafka, topics, "a") as a:
        await a.claims[0].take()
        await a.write(b"1")
        comes_back = Claim(kafka, topics, 0, (a.producer.transactional_id,))
        await comes_back.take()
        await a.write(b"2")
        await comes_back.close()
    # Its next life, under the same name: the producer's `init` has fenced the former one.
    async with process(kafka, topics, "a") as again:
        await again.claims[0].take()
        await again.write(b"3")
    assert written(kafka, topics) == [b"1", b"2", b"3"]


async def test_a_hand_over_without_a_broker_ends_and_the_claim_is_renewed_later(
    own_broker: Broker, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_, "LET_GO_SECONDS_MAX", 0.5)
    own_broker.start()
    kafka, topics = own_broker.bootstrap, Topics(topic_prefix)
    topics_.apply(kafka, topics, PARTITIONS)
    async with process(kafka, topics, "a") as a:
        await a.claims[0].take()
        own_broker.kill()
        began = time.monotonic()
        await a.claims[0].let_go()
        assert time.monotonic() - began < 5
        own_broker.start()
        await a.claims[0].renew()
        await a.write(b"1")
        assert written(kafka, topics) == [b"1"]


async def test_a_stop_that_meets_a_renewal_lets_go(kafka: str, topics: Topics) -> None:
    async with process(kafka, topics, "a") as a:
        claim = a.claims[0]
        await claim.take()
        await claim.let_go()
        # A rebalance renews it, the process stops, and the rebalance lets go once more.
        await asyncio.gather(claim.renew(), claim.let_go(), claim.let_go())
        rows = [row for batch in read_compacted(kafka, topics.owners, 0) for row in batch]
        assert orjson.loads(rows[-1][1] or b"")["has_let_go"]
