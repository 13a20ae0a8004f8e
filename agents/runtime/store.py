"""A Faust table whose rows live in our own state topic: restored before any record flows.

Owns the moment of restore, revoke and hand-over of partitions; refuses to know what a row is.
Faust's changelog topic of the table exists and stays empty: the table is there so that Faust
assigns partition p of all input topics to one process, and for its place in the rebalance.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import faust
from faust.stores.base import Store
from faust.types import TP

from tidemill.agents import clocks
from tidemill.agents.runtime.errors import NotRestoredError
from tidemill.agents.runtime.failstop import fail_stop

logger = logging.getLogger("tidemill.runtime")

# Partitions restored side by side: restoring is bound by one core, more would only fight for it.
RESTORES_MAX = 2
# A longer quiesce holds up the whole group; transactions end within 10 s by their timeout.
QUIESCE_SECONDS_MAX = 20.0

S = TypeVar("S")


class PartitionOwner(Protocol[S]):
    """The ledger's side of owning partitions; ``S`` is the live state of one partition.

    Any exception that leaves one of these ends the process.
    """

    async def restore(self, partition: int) -> S:
        """Fence the former owner, read the state, return it. Records flow after all returned."""

    def positions(self, partition: int, state: S) -> Mapping[tuple[str, int], int]:
        """(Topic, partition) of each input of it -> the applied position + 1. One that is left out
        starts at the log's start."""

    async def quiesce(self, partitions: frozenset[int]) -> None:
        """A rebalance begins: let the transactions in flight end and start none until ``resume``.

        Every chunk handed out before is stale by now (``Chunk.is_stale``): never begin a group
        with one.
        """

    async def resume(self, partitions: frozenset[int]) -> None:
        """The rebalance is over; ``partitions`` are all that this process owns now."""

    async def revoke(self, partition: int, state: S) -> None:
        """The partition has gone elsewhere: free its state and close its producer."""


class PartitionStore(Store[int, S], Generic[S]):
    """partition -> state, for the partitions that this process owns and has restored."""

    def __init__(self, *args: Any, owner: PartitionOwner[S], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._owner = owner
        self._states: dict[int, S] = {}
        self._is_over = False  # this process is stopping

    async def on_rebalance(
        self,
        assigned: set[TP],
        revoked: set[TP],
        newly_assigned: set[TP],
        generation_id: int = 0,
    ) -> None:
        """Free what has gone, restore what is new; Faust awaits this before records flow."""
        owned = frozenset(tp.partition for tp in assigned if tp.topic in self._changelog_topics())
        try:
            for partition in sorted(self._states.keys() - owned):
                await self._owner.revoke(partition, self._states.pop(partition))
            await self._restore_all(sorted(owned - self._states.keys()))
            if not self._is_over:
                await self._owner.resume(owned)
            if self._is_over:  # by now: the stop came while the partitions were resumed
                await self.quiesce()
        except Exception as error:  # noqa: BLE001  # the process must end
            fail_stop(f"taking over partitions {sorted(owned)} failed: {error!r}", error)

    async def _restore_all(self, partitions: list[int]) -> None:
        limit = asyncio.Semaphore(RESTORES_MAX)

        async def restore_one(partition: int) -> None:
            async with limit:
                started_at = clocks.monotonic()
                self._states[partition] = await self._owner.restore(partition)
                logger.info(
                    "partition %s restored in %.2f s", partition, clocks.monotonic() - started_at
                )

        await asyncio.gather(*map(restore_one, partitions))

    async def quiesce(self) -> None:
        """Stop deciding on every owned partition, within a bound."""
        try:
            async with asyncio.timeout(QUIESCE_SECONDS_MAX):
                await self._owner.quiesce(frozenset(self._states))
        except Exception as error:  # noqa: BLE001  # the process must end
            fail_stop(f"handing over partitions failed: {error!r}", error)

    async def quiesce_for_good(self) -> None:
        """The same at the end of the process: a rebalance under way resumes nothing."""
        self._is_over = True
        await self.quiesce()

    def applied_positions(self, partitions: Iterable[int]) -> dict[tuple[str, int], int]:
        """Return (topic, partition) -> the offset where reading goes on."""
        return {
            place: offset
            for partition in partitions
            for place, offset in self._owner.positions(partition, self[partition]).items()
        }

    def _changelog_topics(self) -> set[str]:
        return {self.table.changelog_topic.get_topic_name()}

    # -- a mapping of partitions; nothing is written through it --------------------------------

    def __getitem__(self, partition: int) -> S:
        try:
            return self._states[partition]
        except KeyError:
            raise NotRestoredError(
                f"partition {partition} is not restored in this process; it owns "
                f"{sorted(self._states)}"
            ) from None

    def __contains__(self, partition: object) -> bool:
        return partition in self._states

    def __iter__(self) -> Iterator[int]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def __setitem__(self, partition: int, state: S) -> None:
        raise TypeError("a partition's state comes from restore, it is never assigned")

    def __delitem__(self, partition: int) -> None:
        raise TypeError("a partition's state goes with revoke, it is never deleted")

    def clear(self) -> None:
        raise TypeError("a partition's state goes with revoke, it is never cleared")

    # -- what Faust's recovery asks: there is nothing of its own to recover ---------------------

    def persisted_offset(self, tp: TP) -> int | None:
        return None

    def apply_changelog_batch(
        self, batch: Iterable[Any], to_key: Callable[..., Any], to_value: Callable[..., Any]
    ) -> None:
        if any(True for _ in batch):
            fail_stop(f"Faust's changelog of table {self.table_name} must stay empty")

    def reset_state(self) -> None:
        """Faust resets tables before a recovery of its own; ours has none."""

    async def backup_partition(
        self,
        tp: TP | int,
        flush: bool = True,
        purge: bool = False,
        keep: int = 1,
    ) -> None:
        """The state topic is the backup."""

    def restore_backup(self, tp: TP | int, latest: bool = True, backup_id: int = 0) -> None:
        """The state topic is the backup."""


class PartitionTable(faust.Table[int, Any]):
    """A table over a ``PartitionStore``."""

    owner: PartitionOwner[Any]

    def _new_store(self) -> Any:
        return PartitionStore("memory://", self.app, self, owner=self.owner, loop=self.loop)

    @property
    def store(self) -> PartitionStore[Any]:
        found = self.data
        if not isinstance(found, PartitionStore):
            raise TypeError(f"table {self.name} has a foreign store: {found!r}")
        return found
