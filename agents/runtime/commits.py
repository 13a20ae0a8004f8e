"""Commits of a consumer's offsets, by the member that was given the partitions or by nobody.

Owns the one request and what its errors mean. Refuses to know when a commit is due and what a note
beside an offset says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from aiokafka.errors import (
    ConsumerStoppedError,
    IllegalGenerationError,
    KafkaError,
    NoError,
    RebalanceInProgressError,
    UnknownMemberIdError,
    for_code,
)
from aiokafka.protocol.group import HeartbeatRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.types import TP

logger = logging.getLogger("tidemill.runtime")

# The partitions are another member's by now, or about to be.
_LOST: Final = (IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError)


async def commit_as_owner(
    kafka: Any, generation: int, offsets: Mapping[TP, tuple[int, str]]
) -> bool:
    """Commit offsets and their notes, asked once; False when they were not taken, or may not be.

    `generation` is the one that gave the partitions to this process. A group without members takes
    offsets from anybody, and aiokafka asks again as whoever it is by then. So an owner that was
    stopped and forgotten would set back the offsets of a successor that has ended meanwhile.
    """
    request = {
        TopicPartition(tp.topic, tp.partition): OffsetAndMetadata(*found)
        for tp, found in offsets.items()
    }
    coordinator = kafka._coordinator
    try:
        await coordinator.ensure_coordinator_known()
        # A commit that is on its way ends, whoever no longer waits for it.
        await asyncio.shield(_ask(coordinator, generation, request))
    except _LOST as error:
        logger.warning("offsets not committed, their records will come again: %r", error)
        return False
    except KafkaError as error:
        logger.warning("commit failed and will be tried again: %r", error)
        return False
    return True


async def is_member(consumer: Any, generation: int) -> bool:
    """Whether the group still knows this process as the member that was given its partitions by
    that generation. False also when nobody answers; a member that is forgotten joins anew.

    The client's own beat would take the answer to an old question for the end of the membership
    that it is about to get.
    """
    try:
        coordinator = consumer.kafka._coordinator
        await coordinator.ensure_coordinator_known()
        if coordinator.generation != generation:
            return False
        asked = HeartbeatRequest(coordinator.group_id, generation, coordinator.member_id)
        answer = await coordinator._send_req(asked)
    except (KafkaError, ConsumerStoppedError) as error:
        logger.warning("the group was not asked who its members are: %r", error)
        return False
    # While the group shares anew, nothing goes to others before its members have come.
    is_known = for_code(answer.error_code) in (NoError, RebalanceInProgressError)
    return is_known and bool(coordinator.generation == generation)


async def _ask(
    coordinator: Any, generation: int, request: Mapping[TopicPartition, OffsetAndMetadata]
) -> None:
    async with coordinator._commit_lock:
        # Up to here it may have become another member's; what follows is one step to the request.
        if coordinator.generation != generation:
            raise IllegalGenerationError(f"generation {generation} is over")
        await coordinator._do_commit_offsets(None, request)
