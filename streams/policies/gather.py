"""Handlers that wait for members: `ctx.gather`.

Owns the messages of the policy and who takes each. The parent's side is in
`tidemill.streams.gathers.parent`, that of a member's home in `tidemill.streams.gathers.home`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tidemill.schemas.event_writer import Event
from tidemill.streams.gathers import wire
from tidemill.streams.gathers.home import Members
from tidemill.streams.gathers.parent import ID, Parents
from tidemill.streams.gathers.table import SINCE
from tidemill.streams.job import Job
from tidemill.streams.policies.base import ComesLater, Policy
from tidemill.streams.store.table import AnyTable

if TYPE_CHECKING:
    from tidemill.streams.turn import Turn

_INT_DICT: Final = (int, dict)
_INT_TEXTS: Final = (int, str, str)


class GatherPolicy(Policy):
    """Gathers, both sides. Nothing of it is asked about plain jobs."""

    def __init__(self) -> None:
        super().__init__(ID, SINCE)
        self.parents = Parents()
        self.members = Members()

    def tables(self) -> tuple[AnyTable, ...]:
        return (self.parents.table, self.members.table)

    def on_message(self, turn: Turn, origin: int, body: dict[str, Any]) -> None:
        kind = body.get("kind")
        if kind not in ("release", "stop", "ends"):
            raise ComesLater(f"its kind is {kind!r}")
        of = wire.membership_of(body)
        if kind == "release":
            members = wire.elements_of(body, "members", _INT_DICT, 1)
            self.members.release(turn, of, members, body.get("traceparent"))
        elif kind == "stop":
            members = wire.elements_of(body, "members", _INT_TEXTS, 1)
            self.members.stop(turn, of, members, forgets=bool(body.get("forgets")))
        else:
            ends = wire.elements_of(body, "ends", _INT_DICT, 0)
            if not self.parents.take_ends(turn, of, ends):
                turn.note_late((of[0], of[1]))

    def job_ended(self, turn: Turn, job: Job, event: Event) -> None:
        """A run of a job has ended."""
        if self.members.table.values:
            self.members.job_ended(turn, job, event)
        if self.parents.table.by_job:
            self.parents.job_ended(turn, job)

    def clear(self) -> None:
        self.parents.clear()
