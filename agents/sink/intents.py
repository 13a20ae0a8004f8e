"""Where a batch begins and ends, written down before it is inserted.

Owns the note beside the group's committed offset: the offset is where the batch begins, the note
says into which store rows go (`store`), where the batch ends, which insert it is part of and which
partitions that one has. Refuses to know what is in a batch.

Kafka keeps both with the commit of an offset, which only the owner of a partition makes
(`commit_as_owner`), so a process that was stopped for a while and then goes on cannot write intents
over those of its successor. All commits of the sink go through `Intents`, one at a time: one that
overtook another could take the note away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from aiokafka.structs import TopicPartition
from faust.types import TP

from tidemill.agents.runtime.app import RoleApp
from tidemill.agents.runtime.commits import commit_as_owner
from tidemill.agents.sink.batches import Insert, InsertIntent
from tidemill.agents.sink.notes import begun_of, note_of, place_note
from tidemill.agents.sink.store import Store


class Intents:
    """The committed offsets of the partitions that this process owns, and their notes."""

    def __init__(self, app: RoleApp, store: Store) -> None:
        self._app = app
        self._store = store
        self._lock = asyncio.Lock()
        # Partition -> (offset, note) as last committed here; cleared at a rebalance.
        self._written: dict[TP, tuple[int, str]] = {}

    def forget(self, topic: str) -> None:
        """A rebalance: what others commit from now on is not known here.

        Of one topic, by who reads it: what another reader of this process has learnt since stays.
        """
        for tp in [tp for tp in self._written if tp.topic == topic]:
            del self._written[tp]

    async def read(self, tps: Collection[TP]) -> dict[TP, InsertIntent | None]:
        """The batch that was begun at each committed offset; None where none was."""
        async with self._lock:
            wanted = [TopicPartition(tp.topic, tp.partition) for tp in tps]
            coordinator = self._app.chunks.kafka._coordinator
            found = await coordinator.fetch_committed_offsets(wanted)
            known: dict[TP, InsertIntent | None] = dict.fromkeys(tps)
            for place, committed in found.items():
                tp = TP(place.topic, place.partition)
                if not self._store.holds(tp, committed.metadata):
                    continue  # of another store, like the batch that was begun there
                self._written[tp] = (committed.offset, committed.metadata)
                known[tp] = begun_of(committed.metadata)
            return known

    async def write(self, insert: Insert) -> bool:
        """Write down the batches of an insert, all or none; False when a partition is another's
        now, or soon will be."""
        async with self._lock:
            mark = self._store.mark
            wanted: dict[TP, tuple[int, str]] = {}
            for batch in insert.batches:
                note = note_of(insert.begun(batch), mark)
                wanted[TP(batch.topic, batch.partition)] = (batch.first, note)
            return await self._commit(wanted)

    async def commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit what is acked, without touching the note of a batch that was begun behind it."""
        async with self._lock:
            wanted = {
                tp: (offset, place_note(self._store.mark))
                for tp, offset in offsets.items()
                if offset > self._written.get(tp, (-1, ""))[0]
            }
            return not wanted or await self._commit(wanted)

    async def _commit(self, wanted: Mapping[TP, tuple[int, str]]) -> bool:
        generation = self._app.consumer_generation_id
        if not await commit_as_owner(self._app.chunks.kafka, generation, wanted):
            return False
        self._written.update(wanted)
        return True
