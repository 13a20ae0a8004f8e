"""Cancels that came before their request: kept, then applied to it or told as forgotten.

Owns one fold over `jobs.events`, in log order. Refuses to know how the engine keeps them.
"""

from __future__ import annotations

from typing import Any, Final

from tests.chaos.report import Report

JobId = tuple[str, str]
Place = tuple[str, int, int]
"""(topic, partition, offset) of a command."""

KEPT_MS: Final = 86_400_000  # how long a cancel waits for its request


def place_of(event: dict[str, Any]) -> Place | None:
    """The input that an event names as its cause."""
    cause = event["cause"]
    return None if cause is None else (cause["topic"], cause["partition"], cause["offset"])


class KeptFold:
    """Which cancels wait, and whether each was applied to the request that came."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.waiting: dict[JobId, Place] = {}
        self._due: dict[JobId, Place] = {}  # requested a moment ago: the next event must end it

    def feed_audit(self, event: dict[str, Any]) -> None:
        """An event of a job that nobody has asked for: it has no state."""
        key, place = (event["user_id"], event["job_id"]), place_of(event)
        is_told = event["sequence"] is None and event["state_before"] is None
        if not is_told or place is None:
            self.report.violate("kept_cancel_told_wrong", f"{key}: {event}")
        elif event["event"] == "cancel_kept":
            self.waiting[key] = place
        elif event["event"] != "command_refused":
            self.report.violate("kept_cancel_told_wrong", f"{key}: {event['event']} has no state")
        elif self.waiting.pop(key, None) != place:
            self.report.violate("kept_cancel_invented", f"{key}: {place} was not kept")

    def feed_step(self, event: dict[str, Any]) -> None:
        """An event of a job's story."""
        key = (event["user_id"], event["job_id"])
        due = self._due.pop(key, None)
        if due is not None and (event["event"] != "cancelled" or place_of(event) != due):
            self.report.violate(
                "kept_cancel_lost",
                f"{key}: {event['event']} by {place_of(event)}, a cancel of {due} was kept",
            )
        if event["event"] == "requested" and key in self.waiting:
            self._due[key] = self.waiting.pop(key)
