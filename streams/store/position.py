"""How far a partition is: the last record decided of each input, its clock, and its counters.

Owns that row and the names of inputs in it. Refuses to know who reads the inputs.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from tidemill.schemas.batch_builder import BatchBuilder
from tidemill.streams.store.table import AnyTable

KIND: Final = b"p"


class Position(AnyTable):
    """One row, b"p", which every transaction with a change writes last."""

    def __init__(self) -> None:
        super().__init__(KIND)
        self.applied: dict[str, int] = {}  # last decided offset by input (`input_name`)
        self.clock_ms = 0
        self.accepted = 0  # jobs accepted so far
        self.sent = 0  # messages to partitions so far
        self.needs = ""  # the first version of Tidemill that reads all rows; "" of all versions
        self._before: tuple[dict[str, int], int, int, int] | None = None

    def begin(self, now_ms: int) -> int:
        """Starts a group; the partition's clock never goes back. Returns the instant to use."""
        if self._before is None:
            self._before = (dict(self.applied), self.clock_ms, self.accepted, self.sent)
        return self.move_clock(now_ms)

    def move_clock(self, now_ms: int) -> int:
        self.clock_ms = max(self.clock_ms, now_ms)
        return self.clock_ms

    def has_changes(self) -> bool:
        """Of the inputs: the clock alone is no reason to write."""
        before = self._before
        return before is not None and before[0] != self.applied

    def write(self, pages: BatchBuilder) -> None:
        row: dict[str, Any] = {
            "applied": self.applied, "clock": self.clock_ms, "accepted": self.accepted
        }
        if self.sent:
            row["sent"] = self.sent
        if self.needs:
            row["needs"] = self.needs
        pages.add(KIND, orjson.dumps(row))

    def commit(self) -> None:
        self._before = None

    def rollback(self) -> None:
        if self._before is not None:
            self.applied, self.clock_ms, self.accepted, self.sent = self._before
        self._before = None

    def load(self, key: bytes, value: bytes) -> None:
        row = orjson.loads(value)
        self.applied, self.clock_ms, self.accepted = row["applied"], row["clock"], row["accepted"]
        self.sent = row.get("sent", 0)


def needs_in(value: bytes | None) -> str | None:
    """What the row says of the version that reads all rows; None when it says nothing."""
    needs = None if value is None else orjson.loads(value).get("needs")
    return needs if isinstance(needs, str) else None


def input_name(topic: str, partition: int, home: int) -> str:
    """The name of an input in the position of the ledger partition `home` that reads it.

    Its own partition of a topic goes by the topic. A partition that was added to the topic later is
    "topic/partition"; no topic's name has a slash.
    """
    return topic if partition == home else f"{topic}/{partition}"


def input_place(name: str, home: int) -> tuple[str, int]:
    """Topic and partition of an input by its name."""
    topic, _, partition = name.partition("/")
    return topic, int(partition) if partition else home
