"""What the group tells of a rebalance, brought to the consumer in the order that loses nothing.

Owns the two callbacks of aiokafka. Refuses to know what is read and by whom.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import aiokafka.abc
from aiokafka.structs import TopicPartition
from faust.transport.consumer import ensure_TPset


class RebalanceListener(aiokafka.abc.ConsumerRebalanceListener):  # type: ignore[misc]  # untyped base
    """Hands the group's callbacks to the consumer."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> Any:
        # Before the first await, so that a cancelled rebalance is noted all the same.
        self._consumer.app.on_rebalance_start()
        self._consumer._is_revoked, self._consumer.is_placed = True, False
        return self._consumer.on_partitions_revoked(ensure_TPset(revoked))

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        consumer = self._consumer
        coordinator = consumer.kafka._coordinator
        # aiokafka beats again only after this callback, and a restore may outlast the session.
        coordinator._start_heartbeat_task()
        # Nothing is fetched before perform_seek has said from where; a fetch that waits for data
        # would also hold up the requests for offsets behind it on the same connection. The
        # partitions of Faust's changelogs stay paused, since they are empty.
        consumer.kafka.pause(*assigned)
        generation = coordinator.generation
        consumer.app.consumer_generation_id = generation
        consumer.assignments += 1
        consumer._is_revoked, consumer.is_placed = False, not assigned
        if consumer._fit is not None:
            consumer._fit.look()
        await consumer.on_partitions_assigned(ensure_TPset(assigned), generation)
