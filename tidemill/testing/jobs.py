"""A job of an engine under test, as a test looks at it.

Owns reading a job's story from the events that the engine has written. Refuses to know how they
come about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tidemill.completed import CompletedJob
from tidemill.schemas.events import JobError, JobEvent
from tidemill.schemas.words import EventKind


class EngineError(Exception):
    """What a test asked for cannot be: the text says what, and the way out."""


class EngineJob:
    """One job. What it says is always of the present instant; `engine.run()` comes first."""

    def __init__(
        self,
        user_id: str,
        job_id: str,
        story: Callable[[], list[JobEvent]],
        end: Callable[[], CompletedJob | None],
    ) -> None:
        self.user_id = user_id
        self.job_id = job_id
        self._story = story
        self._end = end

    def __repr__(self) -> str:
        named = f"job {self.job_id!r} of {self.user_id!r}"
        if not self.events:
            return f"<{named}: no event yet; engine.run() lets it run>"
        why = [word for word in (self.reason, self.error and self.error.message) if word]
        told = f" ({'; '.join(why)})" if why else ""
        return f"<{self.type} {named}: {self.status}{told}: {', '.join(self.events)}>"

    @property
    def story(self) -> list[JobEvent]:
        """Each event about the job, in order, as on `jobs.events`."""
        return self._story()

    @property
    def events(self) -> list[str]:
        """The kinds of these events."""
        return [event.event.value for event in self._story()]

    @property
    def type(self) -> str | None:
        """Its type; None before the first event."""
        last = self._last()
        return None if last is None else last.type

    @property
    def payload(self) -> Any:
        """What was asked for, as JSON gives it back; None before the first event."""
        asked = [e.data for e in self._story() if e.event is EventKind.REQUESTED]
        return None if not asked or asked[-1] is None else asked[-1]["payload"]

    @property
    def status(self) -> str | None:
        """The state after the last event, such as `retrying` or `succeeded`; None: nobody has
        decided about the request yet."""
        last = self._last()
        return None if last is None or last.state_after is None else last.state_after.value

    @property
    def reason(self) -> str | None:
        """Why it waits or ended, as the last event has it."""
        last = self._last()
        return None if last is None else last.reason

    @property
    def attempts(self) -> int:
        """Attempts begun in its present run."""
        last = self._last()
        return 0 if last is None else last.attempt

    @property
    def run(self) -> int:
        """1, and one more with each redrive; 0 before the first event."""
        last = self._last()
        return 0 if last is None else last.run

    @property
    def completed(self) -> CompletedJob | None:
        """The record on `jobs.completed` of its last run that ended; None before that."""
        return self._end()

    @property
    def result(self) -> Any:
        """What the handler returned, as JSON gives it back; of a job that was collapsed, what the
        winner's did. None where there is none."""
        end = self._end()
        return None if end is None else end.result

    @property
    def error(self) -> JobError | None:
        """Why an attempt failed, the last one that did; None when none has."""
        found = [event.error for event in self._story() if event.error is not None]
        return found[-1] if found else None

    @property
    def progress(self) -> dict[str, Any] | None:
        """What its handler has told last of how far it is."""
        told = [e.data for e in self._story() if e.event is EventKind.PROGRESSED]
        return told[-1] if told else None

    def _last(self) -> JobEvent | None:
        """The last event that moved the job: notes have no number."""
        moved = [event for event in self._story() if event.sequence is not None]
        return moved[-1] if moved else None
