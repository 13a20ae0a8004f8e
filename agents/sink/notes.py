"""The note beside a committed offset: its text, and what it tells.

Owns that text, which later versions must read. Refuses to know who commits it
(`tidemill.agents.sink.intents`) and which marks a store has (`tidemill.agents.sink.store`).
"""

from __future__ import annotations

import re
from typing import Final

from tidemill.agents.sink.batches import InsertIntent

_MARK: Final = re.compile(r"^tidemill-sink/\d+ store=([0-9a-f]+)(?: |$)")
# Version 2 named no store.
_NOTE: Final = re.compile(
    r"^tidemill-sink/(?:2|3 store=[0-9a-f]+)"
    r" last=([0-9]{1,20}) of=([0-9]+(?:,[0-9]+)*) insert=([^ ]+)$"
)


def place_note(mark: str) -> str:
    """The note beside an offset at which nothing was begun."""
    return f"tidemill-sink/3 store={mark}"


def note_of(begun: InsertIntent, mark: str) -> str:
    """The note of a batch that was begun."""
    partitions = ",".join(str(partition) for partition in begun.partitions)
    return f"{place_note(mark)} last={begun.last} of={partitions} insert={begun.token}"


def begun_of(note: str | None) -> InsertIntent | None:
    """The batch that a note tells of; None when it tells of none."""
    found = _NOTE.match(note or "")
    if found is None:
        return None
    partitions = tuple(int(partition) for partition in found[2].split(","))
    return InsertIntent(int(found[1]), found[3], partitions)


def mark_of(note: str | None) -> str | None:
    """The mark that a note names; None for a note of an earlier version, or none."""
    found = _MARK.match(note or "")
    return None if found is None else found[1]
