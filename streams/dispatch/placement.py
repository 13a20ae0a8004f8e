"""Where dispatched jobs go: how many share a ready pack, and on which partition it is written.

Owns the bounds of a pack and whose turn the partitions of a ready topic are. Refuses to know
records and topics (`tidemill.streams.output`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.schemas.wire import PACK_BYTES_MAX, PACK_JOBS_MAX

ReadyJob = tuple[bytes, int]
"""A job of a ready pack as JSON, and the bytes of its payload."""


class Placement:
    """Of one ledger partition.

    One group uses one ready partition a worker, not all of them: each partition in a transaction
    costs the broker two appends, and the next group uses the next ones. A single worker gets all in
    one place, so that the ledger partitions of a transaction share that too.
    """

    __slots__ = ("_first",)

    def __init__(self, partition: int) -> None:
        self._first = partition  # each ledger partition begins elsewhere

    def packs(
        self, jobs: list[ReadyJob], partitions: Sequence[int], *, workers: int, jobs_a_pack: int
    ) -> list[tuple[int, list[bytes]]]:
        """The jobs of one group and pool, in order, as packs with their ready partitions."""
        places = max(1, min(workers, len(partitions)))
        self._first += 1
        first = self._first if places > 1 else 0
        stride = len(partitions) // places
        chosen = [
            partitions[(first + place * stride) % len(partitions)] for place in range(places)
        ]
        most = max(1, min(PACK_JOBS_MAX, jobs_a_pack, -(-len(jobs) // places)))
        packs: list[list[bytes]] = [[]]
        size = 0
        for text, length in jobs:
            if packs[-1] and (len(packs[-1]) >= most or size + length > PACK_BYTES_MAX):
                packs.append([])
                size = 0
            packs[-1].append(text)
            size += length
        return [(chosen[number % places], pack) for number, pack in enumerate(packs)]
