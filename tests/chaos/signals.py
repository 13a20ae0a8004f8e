"""Signals that came before anybody waited: kept, then given to the handler or told as forgotten.

Owns one fold over `jobs.events`, in log order. Refuses to know how the engine keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tests.chaos.kept import Place, place_of
from tests.chaos.report import Report

SignalId = tuple[str, str, str]
"""user_id, job_id, name."""

ENDED_FOR_GOOD: Final = ("succeeded", "cancelled", "skipped", "expired")
REFUSED: Final = (
    "already_signalled", "name_taken", "timed_out", "already_ended", "too_many_signals",
    "too_large",
)
"""Why a signal may be refused when it comes."""
FORGOTTEN: Final = ("not_awaited", "unknown_job")


class SignalFold:
    """Which signals wait, and whether each was given to who waited for it."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.waiting: dict[SignalId, Place] = {}
        self._due: dict[tuple[str, str], SignalId] = {}  # suspended a moment ago for a kept one

    def is_about_one(self, event: dict[str, Any]) -> bool:
        """Whether a note is of a signal: it has the signal's name."""
        return event["event"] == "signal_kept" or (
            event["event"] == "command_refused" and "name" in (event["data"] or {})
        )

    def feed_audit(self, event: dict[str, Any]) -> None:
        """A signal was kept, forgotten or refused."""
        key, place = _key(event), place_of(event)
        if event["sequence"] is not None or place is None:
            self._wrong("signal_told_wrong", event)
        elif event["event"] == "signal_kept":
            if key in self.waiting:
                self._wrong("signal_kept_twice", event)
            self.waiting[key] = place
        elif event["reason"] in FORGOTTEN:
            if self.waiting.pop(key, None) != place:
                self._wrong("kept_signal_invented", event)
        elif event["reason"] not in REFUSED:
            self._wrong("signal_told_wrong", event)

    def feed_step(self, event: dict[str, Any], remembered: Mapping[str, Any]) -> None:
        """An event of a job's story, before it is folded; `remembered`: by name."""
        job = (event["user_id"], event["job_id"])
        due = self._due.pop(job, None)
        if due is not None and event["event"] not in ("resumed", "cancelled", "failed"):
            self._wrong("kept_signal_lost", event)
        data = event["data"] or {}
        if event["event"] == "suspended" and data["kind"] == "signal":
            if _key(event) in self.waiting and data["name"] not in remembered:
                self._due[job] = _key(event)
        elif event["event"] == "resumed" and data["kind"] == "signal":
            kept = self.waiting.pop(_key(event), None)
            if kept is not None and kept != place_of(event):
                self._wrong("kept_signal_lost", event)
            if "value" not in data and data["name"] not in remembered:
                self._wrong("signal_told_wrong", event)
            if "value" in data and data["name"] in remembered:
                self._wrong("signalled_twice", event)
        elif event["event"] == "resumed" and data["kind"] == "timed_out":
            if _key(event) in self.waiting:
                self._wrong("kept_signal_lost", event)
        elif event["event"] in ENDED_FOR_GOOD:
            for key in [key for key in self.waiting if key[:2] == job]:
                del self.waiting[key]

    def _wrong(self, kind: str, event: dict[str, Any]) -> None:
        self.report.violate(
            kind, f"{_key(event)}: {event['event']} {event['reason']} by {place_of(event)}"
        )


def _key(event: dict[str, Any]) -> SignalId:
    return event["user_id"], event["job_id"], (event["data"] or {}).get("name", "")
