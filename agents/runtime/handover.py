"""Notes beside committed offsets: whether a partition was let go in order, and who had it last.

Owns the two notes and what they say of the records behind an offset. Refuses to know what a record
holds and when offsets are committed.

A partition that was let go in order has nothing behind its offset that anybody has begun. Whoever
takes it writes its own name there before it reads, so what lies behind an offset with a name, or
without any offset, may have been delivered before: to a process that died of it, perhaps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from faust.types import TP

from tidemill.agents.runtime.commits import commit_as_owner

LET_GO: Final = "let-go"
_HELD: Final = "held:"
NOTE_LENGTH_MAX: Final = 400  # characters; the broker takes 4,096 bytes
# What aiokafka answers for a partition without a committed offset.
UNKNOWN_OFFSET: Final = -1


class Handover(NamedTuple):
    """How a partition came to this process."""

    #: Records below this offset may have been delivered before.
    doubtful_until: int = 0
    #: Who had the partition last; None when nobody has said so.
    former_owner: str | None = None


NOTHING_KNOWN: Final = Handover()


def handover_of(note: str | None, *, has_offset: bool, end: int) -> Handover:
    """What the note beside a committed offset says of a log that ends at `end` now."""
    if has_offset and note == LET_GO:
        return NOTHING_KNOWN
    is_named = note is not None and note.startswith(_HELD)
    return Handover(end, note.removeprefix(_HELD) if is_named and note is not None else None)


class Handovers:
    """The notes of one consumer. `name` is None for a role that keeps none: its committed offsets
    are only a hint."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._found: dict[TP, Handover] = {}
        self._places: dict[TP, int] = {}
        self._ends: dict[TP, int] = {}
        #: Committed offsets and their notes, as found last.
        self.committed: dict[TP, tuple[int, str]] = {}
        #: What stands beside each offset that is committed while partitions are read.
        self.note = "" if name is None else f"{_HELD}{name}"[:NOTE_LENGTH_MAX]

    def of(self, topic: str, partition: int) -> Handover:
        """How a partition of ours came here."""
        return self._found.get(TP(topic, partition), NOTHING_KNOWN)

    async def find(
        self, kafka: Any, wanted: Collection[TP], *,
        starts: Mapping[TP, int], ends: Mapping[TP, int],
    ) -> dict[TP, int]:
        """Where reading goes on: committed offsets, where there are any."""
        committed = await kafka._coordinator.fetch_committed_offsets(wanted)
        positions: dict[TP, int] = {}
        self._found, self.committed = {}, {}
        for tp in wanted:
            offset = getattr(committed.get(tp), "offset", UNKNOWN_OFFSET)
            note = getattr(committed.get(tp), "metadata", None)
            if offset != UNKNOWN_OFFSET:
                positions[tp] = offset
                self.committed[tp] = (offset, note or "")
            # An offset that the log no longer holds says nothing of what is read in its place.
            has_offset = starts[tp] <= offset <= ends[tp]
            self._found[tp] = handover_of(note, has_offset=has_offset, end=ends[tp])
        self._places, self._ends = {**starts, **positions}, dict(ends)
        return positions

    async def take(self, kafka: Any, generation: int) -> None:
        """Write our name where a former owner has let go; nothing may be read there before."""
        if self._name is None:
            return
        free = [tp for tp, found in self._found.items() if not found.doubtful_until]
        if not free:
            return
        noted = {tp: (self._places[tp], self.note) for tp in free}
        if not await commit_as_owner(kafka, generation, noted):
            # Without our name there, who comes after us would take all of it for new.
            self._found |= {tp: Handover(self._ends[tp]) for tp in free}

    async def let_go(self, kafka: Any, generation: int, places: Mapping[TP, int]) -> None:
        """Say of these offsets that nothing behind them was begun."""
        if self._name is not None and places:
            await commit_as_owner(
                kafka, generation, {tp: (offset, LET_GO) for tp, offset in places.items()}
            )
