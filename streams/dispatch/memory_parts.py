"""What a job remembers, cut into parts that each fit a record.

Owns the bounds of a part. Refuses to know records and topics (`tidemill.streams.output`) and how a
worker joins the parts (`tidemill.agents.worker.memory_parts`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.schemas.wire import MEMORY_PART_BYTES_MAX


def cut(entries: Sequence[bytes]) -> list[bytes]:
    """The entries in their order, as many in a part as it may hold, each part with commas."""
    parts: list[list[bytes]] = [[]]
    size = 0
    for entry in entries:
        if parts[-1] and size + len(entry) > MEMORY_PART_BYTES_MAX:
            parts.append([])
            size = 0
        parts[-1].append(entry)
        size += len(entry) + 1
    return [b",".join(part) for part in parts]
