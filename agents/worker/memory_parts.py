"""What jobs remember, as far as it has come in parts before them.

Owns the parts until their job is there, and how long and how much is kept. Refuses to know what is
in a part and what becomes of a job whose parts are not all there.

A part that was dropped, or read by a worker before this one, only costs a way: its job is handed
back, and the ledger sends all of it again. So a part is acked at once.
"""

from __future__ import annotations

from typing import Any, Final

from tidemill.agents import clocks

PARTS_BYTES_MAX: Final = 67_108_864  # bytes of records, 64 MiB: four jobs with the most there is
# Seconds; a job that has not begun so long after its dispatch has been dispatched again.
PARTS_SECONDS_MAX: Final = 60.0

Key = tuple[str, str, int, int]
"""Which attempt of all: user, job, run, epoch."""


class _Held:
    """The parts of one attempt that have come."""

    __slots__ = ("entries", "kept_at", "size")

    def __init__(self) -> None:
        self.entries: dict[int, list[Any]] = {}  # by the part's number
        self.size = 0
        self.kept_at = clocks.monotonic()


class MemoryParts:
    """Parts whose job has not come yet, oldest first."""

    def __init__(self) -> None:
        self._held: dict[Key, _Held] = {}
        #: Bytes of the records of all that is kept.
        self.size = 0

    def __len__(self) -> int:
        return len(self._held)

    def keep(self, part: dict[str, Any], size: int) -> None:
        """A part, in a record of `size` bytes. What is too much makes room, oldest first."""
        key = key_of(part)
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = _Held()
        if part["number"] not in held.entries:  # else it was read again
            held.size += size
            self.size += size
        held.entries[part["number"]] = part["entries"]
        while self.size > PARTS_BYTES_MAX and len(self._held) > 1:
            self._drop(next(iter(self._held)))

    def take(self, job: dict[str, Any], parts: int) -> tuple[list[list[Any]], int] | None:
        """All that the job remembers, in order, and the bytes of its records; None when a part of
        it is missing."""
        held = self._drop(key_of(job))
        if held is None or len(held.entries) != parts:
            return None
        entries = [entry for number in sorted(held.entries) for entry in held.entries[number]]
        return entries, held.size

    def look(self, now: float) -> None:
        """Drops what is too old, at this monotonic instant."""
        while self._held:
            key, held = next(iter(self._held.items()))
            if now - held.kept_at < PARTS_SECONDS_MAX:
                return
            self._drop(key)

    def _drop(self, key: Key) -> _Held | None:
        held = self._held.pop(key, None)
        if held is not None:
            self.size -= held.size
        return held


def key_of(said: dict[str, Any]) -> Key:
    """Of a part, or of a job."""
    return (said["user_id"], said["job_id"], said["run"], said["epoch"])
