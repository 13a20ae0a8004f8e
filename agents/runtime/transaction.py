"""One Kafka transaction per group of records: what the ledger writes with.

Owns the steps of a transaction, and what each answer of its coordinator means. Refuses to know what
a record says, and how batches travel (`tidemill.agents.runtime.batch_writer`).

    init     take the transactional id over; an older owner is fenced
    send     name the partitions to the coordinator (one request), then write all their batches
    commit   or abort: the coordinator ends the transaction (one request)

An answer that does not come is asked for again: the coordinator answers the same question the same
way. So every transaction ends with a definite answer, and an error that is not known to be harmless
ends this process.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from aiokafka import errors
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.protocol.transaction import (
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
)

from tidemill.agents import clocks
from tidemill.agents.runtime.batch_writer import (
    AWAY_SECONDS,
    REQUEST_TIMEOUT_MS,
    BatchWriter,
    KafkaErrorClass,
    error_of,
    pauses,
)
from tidemill.agents.runtime.batches_out import NO_CODECS, OutBatch, Target, transactional_batches
from tidemill.agents.runtime.clients import client_logger
from tidemill.agents.runtime.errors import AbortableError, FatalError
from tidemill.schemas.batch_builder import OutGroup

# A longer open transaction is aborted by the broker; till then it holds up all readers.
TRANSACTION_TIMEOUT_MS: Final = 10_000
# init waits out the former owner's commit, or the coordinator's start.
INIT_SECONDS_MAX: Final = 60.0
# The coordinator writes the markers of a transaction just after it has answered the commit, and
# refuses the next one till then: the first wait for it, and the longest.
MARKERS_SECONDS: Final = (0.001, 0.02)
# A group that is not written by then is not about to be: the transaction is lost, or a topic is.
SEND_SECONDS_MAX: Final = 60.0
# Closing leaves an open transaction to the broker's time-out after so long.
CLOSE_SECONDS_MAX: Final = 5.0

# The coordinator is elsewhere or not there yet.
_MOVED: Final[Collection[KafkaErrorClass]] = (
    errors.NotCoordinatorError,
    errors.CoordinatorNotAvailableError,
    errors.CoordinatorLoadInProgressError,
)


class TransactionalProducer:
    """One transactional id; one transaction at a time, on the loop that calls `init`.

    A group either becomes visible as a whole (`commit` returns), or not at all (AbortableError:
    do the same group again), or this process must end (FatalError).
    """

    def __init__(
        self, kafka: str, transactional_id: str, *, codecs: Mapping[str, int] = NO_CODECS
    ) -> None:
        """`codecs`: by topic, of those that are not written in the usual one."""
        self.transactional_id = transactional_id
        self._codecs = codecs
        self._kafka = kafka
        self._log = client_logger(transactional_id)
        self._writer = BatchWriter(kafka, transactional_id, transactional_id)
        self._coordinator: int | None = None
        self._is_open = False  # the coordinator knows of a transaction that has not ended
        self._is_sending = False  # an answer is awaited, or was when the call was cancelled

    async def init(self) -> None:
        """Take the transactional id over: an older owner is fenced when this returns."""
        try:
            async with asyncio.timeout(INIT_SECONDS_MAX):
                await self._writer.connect()
                answer = await self._ask(
                    InitProducerIdRequest(self.transactional_id, TRANSACTION_TIMEOUT_MS),
                    lambda response: [response.error_code],
                    "fencing",
                )
        except TimeoutError as error:
            raise FatalError(
                f"fencing as {self.transactional_id}: no answer from {self._kafka} in "
                f"{INIT_SECONDS_MAX:.0f} s"
            ) from error
        self._writer.take_identity(answer.producer_id, answer.producer_epoch)

    async def commit_group(self, group: OutGroup) -> None:
        """Write `group` in one transaction and return when it is visible."""
        await self.send(group)
        await self.commit()

    async def send(self, group: OutGroup) -> None:
        """Write `group`; nobody who reads what is committed sees it yet.

        AbortableError: the transaction was aborted. PoisonMessage: no transaction was begun.
        """
        batches = transactional_batches(group, clocks.wall_ms(), self._codecs)
        self._is_sending = True
        try:
            async with asyncio.timeout(SEND_SECONDS_MAX):
                await self._send(batches)
        except AbortableError:
            await self.abort()
            self._is_sending = False
            raise
        except TimeoutError as error:
            raise FatalError(
                f"writing as {self.transactional_id}: no definite answer in "
                f"{SEND_SECONDS_MAX:.0f} s"
            ) from error
        self._is_sending = False

    async def commit(self) -> None:
        """Make what was sent visible; returns only with a definite answer."""
        await self._end(is_commit=True)

    async def abort(self) -> None:
        """Take back what was sent, if anything was."""
        if self._is_open:
            await self._end(is_commit=False)

    async def close(self) -> None:
        """Let go of the id without fencing anybody; an open transaction is aborted.

        Not one whose `send` was cancelled: a batch might still arrive after the abort, and nothing
        would ever end what it begins. The time-out, or the next `init`, raises the epoch as well.
        """
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                if not self._is_sending:
                    await self.abort()
        except (TimeoutError, FatalError) as error:
            # Somebody else has fenced it, or the broker's time-out will end the transaction.
            self._log.info("closing %s: %s", self.transactional_id, error)
        await self._writer.close()

    # --- the steps ---

    async def _send(self, batches: dict[Target, deque[OutBatch]]) -> None:
        await self._writer.know_topics({topic for topic, _ in batches})
        await self._add_partitions(batches)
        # A partition's next batch goes only after the one before has been taken.
        while batches:
            for _, refusal in await self._writer.write([few[0] for few in batches.values()]):
                raise refusal
            for few in batches.values():
                few.popleft()
            batches = {target: few for target, few in batches.items() if few}

    async def _add_partitions(self, targets: Iterable[Target]) -> None:
        partitions: dict[str, list[int]] = {}
        for topic, partition in targets:
            partitions.setdefault(topic, []).append(partition)
        writer = self._writer
        await self._ask(
            AddPartitionsToTxnRequest(
                self.transactional_id, writer.producer_id, writer.epoch, list(partitions.items())
            ),
            lambda response: [code for _, found in response.errors for _, code in found],
            "adding partitions",
        )
        self._is_open = True

    async def _end(self, *, is_commit: bool) -> None:
        writer = self._writer
        await self._ask(
            EndTxnRequest(self.transactional_id, writer.producer_id, writer.epoch, is_commit),
            lambda response: [response.error_code],
            "committing" if is_commit else "aborting",
        )
        self._is_open = False

    async def _ask_once(self, coordinator: int, request: Any, doing: str) -> Any:
        try:
            return await self._writer.client.send(
                coordinator, request, group=ConnectionGroup.COORDINATION
            )
        except errors.RequestTimedOutError as error:
            # The system may still deliver it when the line heals. It names the producer's epoch,
            # not the transaction, and so would end or begin the next one. A new epoch is safe.
            raise FatalError(
                f"{doing} as {self.transactional_id}: no answer in {REQUEST_TIMEOUT_MS} ms"
            ) from error

    async def _ask(
        self, request: Any, codes_of: Callable[[Any], Iterable[int]], doing: str
    ) -> Any:
        """The coordinator's answer, asked for until it is definite."""
        client = self._writer.client
        away, markers = pauses(AWAY_SECONDS), pauses(MARKERS_SECONDS)
        while True:
            try:
                if self._coordinator is None:
                    self._coordinator = await client.coordinator_lookup(
                        CoordinationType.TRANSACTION, self.transactional_id
                    )
                answer = await self._ask_once(self._coordinator, request, doing)
                found = _first_error(codes_of(answer))
            except errors.KafkaError as error:
                found = type(error)
            if found is None:
                return answer
            if found is errors.ConcurrentTransactions:
                await asyncio.sleep(next(markers))
                continue
            if found not in _MOVED and not found.retriable:
                raise self._writer.meaning(found, doing)
            self._coordinator = None
            await self._writer.wait(next(away), doing, found())


def _first_error(codes: Iterable[int]) -> KafkaErrorClass | None:
    """The first that says something: "not attempted" only says that another one failed."""
    found = [error_of(code) for code in codes if code]
    return next((error for error in found if error is not errors.OperationNotAttempted), None)
