"""How far gathers are, told in the story of the job that waits: at most once a second.

Owns when that is told, the words for people, and the estimate of the end. Nothing of it is a row:
after a restore it is told once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tidemill.schemas.instants import instant_text
from tidemill.streams.commands import Tell
from tidemill.streams.gathers.table import GATHER, Gather, Gathers
from tidemill.streams.job import SUSPENSION

if TYPE_CHECKING:
    from tidemill.streams.turn import Turn

EVERY_MS: Final = 1_000  # ms between two words of one gather
TOLD_MAX: Final = 200  # words in one group


class Progress:
    """What is to be told of gathers, and when."""

    def __init__(self) -> None:
        self._told: dict[bytes, int] = {}  # by gather, epoch ms of the last word
        self._due: dict[bytes, int] = {}

    def clear(self) -> None:
        """What is to be told is noted anew."""
        self._due = {}

    def note(self, digest: bytes) -> None:
        """Its counts are others now."""
        if digest not in self._due:
            self._due[digest] = self._told.get(digest, 0) + EVERY_MS

    def drop(self, digest: bytes) -> None:
        """It is over."""
        self._due.pop(digest, None)
        self._told.pop(digest, None)

    def next_at(self) -> int | None:
        """Epoch ms of the next word; None: there is nothing to tell."""
        return min(self._due.values()) if self._due else None

    def work(self, turn: Turn, table: Gathers) -> None:
        """Tells what is due."""
        if not self._due:
            return
        now_ms = turn.now_ms
        due = [digest for digest, at_ms in self._due.items() if at_ms <= now_ms]
        for digest in due[:TOLD_MAX]:
            del self._due[digest]
            gather = table.of_digest.get(digest)
            header = None if gather is None else gather.header
            if gather is None or header is None:
                continue
            job = turn.job(header.key)
            if job is not None and job.waits_for == (SUSPENSION, GATHER, header.name):
                self._told[digest] = now_ms
                turn.decide(header.key, job, Tell(progress_of(gather, now_ms)))


def progress_of(gather: Gather, now_ms: int) -> dict[str, Any]:
    """`data` of the event: as a handler's own progress, and the counts."""
    header = gather.head
    members, ended, failed = header.members, gather.done, gather.failed
    message = f"members {ended:,} of {members:,}"
    if failed:
        message += f", {failed:,} failed"
    ends_at = ends_about(gather, now_ms)
    if ends_at is not None:
        message += f", ends about {instant_text(ends_at)[11:19]} UTC"
    return {
        "percent": round(100 * ended / members, 1), "stage": header.name, "message": message,
        "members": members, "released": header.released, "ended": ended, "failed": failed,
        "ends_at": None if ends_at is None else instant_text(ends_at),
    }


def ends_about(gather: Gather, now_ms: int) -> int | None:
    """Epoch ms at which the last member will have ended, if the others end as fast as those so far.
    None when none has ended in this run."""
    header = gather.head
    ended = gather.done - gather.kept
    if not ended:
        return None
    return now_ms + (header.members - gather.done) * (now_ms - header.opened_at) // ended
