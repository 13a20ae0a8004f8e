"""Batches to the brokers that lead their partitions: in order, each once, one request a broker.

Owns the connections, the producer's identity and sequence numbers, and what a broker's answer to a
batch means. Refuses to know transactions (`tidemill.agents.runtime.transaction`) and what a record
says. The wire format and the metadata are aiokafka's.

A stock client sends a request for each partition, and a broker answers a client's requests one
after the other: for small batches that takes longer than all else (decision 0023).

An answer that does not come is asked for again: a partition's leader knows a batch again by its
sequence numbers. So every batch gets a definite answer, however often its broker goes away.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Iterator
from typing import Any, Final, TypeAlias

from aiokafka import errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.structs import TopicPartition

from tidemill.agents.runtime.batches_out import OutBatch, Target
from tidemill.agents.runtime.clients import client_logger
from tidemill.agents.runtime.errors import AbortableError, FatalError, FencedError
from tidemill.agents.runtime.failstop import fail_stop
from tidemill.agents.runtime.threads import call_aside

KafkaErrorClass: TypeAlias = type[errors.KafkaError]

# A request without an answer for so long is given up with its connection. As long as a transaction
# may take, so that who waits in vain for its coordinator has lost the transaction anyway.
REQUEST_TIMEOUT_MS: Final = 10_000
# A topic that the cluster does not know, for so long, is not about to appear.
TOPIC_SECONDS_MAX: Final = 10.0
# One new look at who leads what.
METADATA_SECONDS_MAX: Final = 5.0
# Who leaves while the first answer of a broker is on its way waits for it so long.
BOOTSTRAP_END_SECONDS: Final = 2.0
# A broker that is away or that moves: the first wait, and the longest.
AWAY_SECONDS: Final = (0.02, 1.0)
# From so many bytes on a thread compresses them: a hop there and back costs 0.1 ms.
SEALED_ASIDE_BYTES: Final = 65_536
# Sequence numbers go round.
SEQUENCES: Final = 2**31

# Nothing of the batch was written, and what was asked may be mended from outside.
_TOO_LARGE: Final = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
_REFUSED: Final[Collection[KafkaErrorClass]] = (
    errors.TopicAuthorizationFailedError,
    errors.InvalidTopicError,
    errors.PolicyViolationError,
)
# Nothing of the batch was written, and another try may write it: it was never sent, or refused
# before it came into the log. NotLeaderForPartition is not here: a leader that is replaced while
# its followers take the batch says the same.
_UNWRITTEN: Final[Collection[KafkaErrorClass]] = (
    errors.NodeNotReadyError,
    errors.UnknownTopicOrPartitionError,
    errors.NotEnoughReplicasError,
)


class TopicMissing(AbortableError):
    """The cluster does not know a topic."""


class TooLarge(AbortableError):
    """The topic takes no batch of this size; its records, one by one, may be small enough."""


class _Client(AIOKafkaClient):  # type: ignore[misc]  # untyped base
    """aiokafka's client, whose every failure to get an answer is a KafkaError."""

    async def send(self, node_id: int, request: Any, **where: Any) -> Any:
        try:
            return await super().send(node_id, request, **where)
        except errors.KafkaError:  # a RuntimeError as well
            raise
        except (RuntimeError, OSError, KeyError) as error:
            # A connection that broke a moment ago, and of which aiokafka does not know yet.
            raise errors.KafkaConnectionError(f"the connection broke: {error!r}") from error


class BatchWriter:
    """One producer identity, on the loop that calls `connect`. One `write` at a time."""

    def __init__(self, kafka: str, client_id: str, transactional_id: str | None = None) -> None:
        self.client_id = client_id
        self.producer_id = -1
        self.epoch = -1
        self._kafka = kafka
        self._transactional_id = transactional_id
        self._log = client_logger(client_id)
        self._client: Any = None  # untyped
        self._sequences: dict[Target, int] = {}

    @property
    def client(self) -> Any:
        """aiokafka's client, which is untyped; only after `connect`."""
        if self._client is None:
            raise FatalError(f"{self.client_id} is not connected")
        return self._client

    async def connect(self) -> None:
        """Learn of the cluster, however long it takes."""
        client = _Client(
            bootstrap_servers=self._kafka,
            client_id=self.client_id,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        for pause in pauses(AWAY_SECONDS):
            try:
                await _bootstrap(client)
            except errors.KafkaError as error:
                self._log.warning("connecting to %s is tried again: %r", self._kafka, error)
                await asyncio.sleep(pause)
            else:
                self._client = client
                client._sync_task.add_done_callback(_on_metadata_end)
                return

    async def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            await self._client.close()

    def take_identity(self, producer_id: int, epoch: int) -> None:
        """Write as this producer from now on; its sequences begin anew."""
        self.producer_id, self.epoch = producer_id, epoch
        self._sequences.clear()

    async def introduce(self) -> None:
        """Take a new identity, for batches outside of transactions."""
        for pause in pauses(AWAY_SECONDS):
            try:
                answer = await self.client.send(
                    self.client.get_random_node(), InitProducerIdRequest(None, 0)
                )
                found = error_of(answer.error_code)
            except errors.KafkaError as error:
                found = type(error)
            if found is None:
                self.take_identity(answer.producer_id, answer.producer_epoch)
                return
            if not found.retriable:
                raise self.meaning(found, "introducing itself")
            await self.wait(pause, "introducing itself", found())

    async def know_topics(self, topics: set[str]) -> None:
        """Learn who leads the partitions of `topics`. TopicMissing: some are not there."""
        cluster = self.client.cluster
        unknown = [topic for topic in topics if not cluster.partitions_for_topic(topic)]
        if not unknown:
            return
        try:
            async with asyncio.timeout(TOPIC_SECONDS_MAX):
                for pause in pauses(AWAY_SECONDS):
                    for topic in unknown:
                        await self.client.add_topic(topic)
                    unknown = [name for name in unknown if not cluster.partitions_for_topic(name)]
                    if not unknown:
                        return
                    await asyncio.sleep(pause)
                    await self.client.force_metadata_update()
        except TimeoutError as error:
            raise TopicMissing(
                f"the cluster knows no topic {', '.join(unknown)}: start `tidemill dev`, or run "
                "`tidemill topics apply`"
            ) from error

    async def write(self, batches: list[OutBatch]) -> list[tuple[OutBatch, AbortableError]]:
        """Write at most one batch of each partition; those that were refused, and why.

        Returns with a definite answer for each. FatalError: this identity must write no more.
        """
        refused: list[tuple[OutBatch, AbortableError]] = []
        in_doubt: set[Target] = set()
        for pause in pauses(AWAY_SECONDS):
            await self._seal(batches)
            answers = await asyncio.gather(
                *(self._produce(*item) for item in self._by_leader(batches).items())
            )
            again: list[OutBatch] = []
            error: errors.KafkaError | None = None
            for batch, found in itertools.chain.from_iterable(answers):
                if found is None or found is errors.DuplicateSequenceNumber:
                    self._sequences[batch.target] = self._sequence(batch, batch.count)
                elif found.retriable:
                    again.append(batch)
                    if found not in _UNWRITTEN:
                        in_doubt.add(batch.target)
                    error = found()
                else:
                    topic, partition = batch.target
                    meaning = self.meaning(found, f"writing to {topic}-{partition}")
                    if not isinstance(meaning, AbortableError):
                        raise meaning
                    if batch.target in in_doubt:
                        # The try before this one may have written it: its place in the sequence
                        # may be taken, and what is written there next would count as known.
                        raise FatalError(f"in doubt, then refused: {meaning}") from meaning
                    refused.append((batch, meaning))
            if error is None:
                break
            batches = again
            await self.wait(pause, "writing", error)
        return refused

    async def wait(self, seconds: float, doing: str, error: Exception) -> None:
        """Before another try: some time, and a new look at who leads what."""
        self._log.warning("%s as %s is tried again: %r", doing, self.client_id, error)
        await asyncio.sleep(seconds)
        # Bounded, because the task that updates might have ended; the next try then says more.
        await asyncio.wait({self.client.force_metadata_update()}, timeout=METADATA_SECONDS_MAX)

    def meaning(self, error: KafkaErrorClass, doing: str) -> Exception:
        """AbortableError when nothing was written, otherwise FatalError."""
        said = getattr(error, "description", "")
        text = f"{doing} as {self.client_id}: {error.__name__}: {said}"
        if error in _TOO_LARGE:
            return TooLarge(text)
        if error in _REFUSED:
            return AbortableError(text)
        return (FencedError if error is errors.InvalidProducerEpoch else FatalError)(text)

    async def _seal(self, batches: list[OutBatch]) -> None:
        def seal() -> None:
            for batch in batches:
                batch.seal(self.producer_id, self.epoch, self._sequence(batch))

        # The compressor lets go of the interpreter's lock, so that the loop goes on meanwhile.
        if sum(batch.size for batch in batches) > SEALED_ASIDE_BYTES:
            await call_aside(seal)
        else:
            seal()

    async def _produce(
        self, leader: int, batches: list[OutBatch]
    ) -> list[tuple[OutBatch, KafkaErrorClass | None]]:
        """One request; each batch with its error, None for taken."""
        by_target = {batch.target: batch for batch in batches}
        topics: dict[str, list[tuple[int, bytes]]] = {}
        for (topic, partition), batch in by_target.items():
            topics.setdefault(topic, []).append((partition, batch.data))
        request = ProduceRequest(
            transactional_id=self._transactional_id,
            required_acks=-1,
            timeout=REQUEST_TIMEOUT_MS,
            topics=list(topics.items()),
        )
        try:
            response = await self.client.send(leader, request)
        except errors.KafkaError as error:
            return [(batch, type(error)) for batch in batches]
        answers: list[tuple[OutBatch, KafkaErrorClass | None]] = []
        for topic, partitions in response.topics:
            for partition, code, offset, *_ in partitions:
                batch = by_target[topic, partition]
                batch.base_offset = offset
                answers.append((batch, error_of(code)))
        if len(answers) != len(batches):
            raise FatalError(
                f"writing as {self.client_id}: broker {leader} answered for {len(answers)} of "
                f"{len(batches)} partitions"
            )
        return answers

    def _sequence(self, batch: OutBatch, plus: int = 0) -> int:
        return (self._sequences.get(batch.target, 0) + plus) % SEQUENCES

    def _by_leader(self, batches: list[OutBatch]) -> dict[int, list[OutBatch]]:
        cluster = self.client.cluster
        found: dict[int, list[OutBatch]] = {}
        for batch in batches:
            leader = cluster.leader_for_partition(TopicPartition(*batch.target))
            if leader is None or leader < 0:
                # Nobody leads it, as far as is known: any broker answers that it does not either.
                leader = self.client.get_random_node()
            found.setdefault(leader, []).append(batch)
        return found


async def _bootstrap(client: Any) -> None:
    """The client's bootstrap, which who cancels it waits for.

    aiokafka forgets the connection of a bootstrap that is cancelled, and leaves it open.
    """
    bootstrap = asyncio.create_task(client.bootstrap())
    try:
        await asyncio.shield(bootstrap)
    except asyncio.CancelledError:
        await asyncio.wait({bootstrap}, timeout=BOOTSTRAP_END_SECONDS)
        bootstrap.cancel()
        await asyncio.gather(bootstrap, return_exceptions=True)
        await client.close()
        raise


def _on_metadata_end(task: asyncio.Task[None]) -> None:
    """Without it nobody would learn of a new leader."""
    if not task.cancelled():
        fail_stop("the Kafka client's look at the cluster ended", task.exception())


def pauses(first_and_longest: tuple[float, float]) -> Iterator[float]:
    """Seconds to wait before each further try: doubling."""
    seconds, longest = first_and_longest
    while True:
        yield seconds
        seconds = min(longest, seconds * 2)


def error_of(code: int) -> KafkaErrorClass | None:
    """The class of an answer's error; None for 0."""
    return errors.for_code(code) if code else None
