"""A short number for one attempt, by which ledger and workers mean the same.

Owns the number. Refuses to know who keeps it and why.
"""

from __future__ import annotations

import zlib


def mark_of(job_id: str, epoch: int) -> int:
    """32 bits. Two attempts may have the same one: whoever acts on it must bear that."""
    return zlib.crc32(job_id.encode(), epoch & 0xFFFFFFFF)
