"""The transitions that a job may make, written down a second time.

Owns its own table, made from the design by hand: were it generated from the engine's, a wrong
cell there would be right here too. Refuses to know any code of the engine.
"""

from __future__ import annotations

from typing import Final

TERMINAL: Final = frozenset({"succeeded", "failed", "cancelled", "skipped", "expired"})
AUDIT: Final = frozenset(
    {
        "duplicate_ignored", "conflict_ignored", "outcome_ignored", "command_refused",
        "cancel_kept", "signal_kept",
    }
)
_WAITING: Final = ("scheduled", "pending", "retrying")
_FLIGHT: Final = ("dispatched", "running")


def _to(after: str, *befores: str) -> frozenset[tuple[str | None, str]]:
    return frozenset((before, after) for before in befores)


def _stay(*states: str) -> frozenset[tuple[str | None, str]]:
    return frozenset((state, state) for state in states)


LEGAL: Final[dict[str, frozenset[tuple[str | None, str]]]] = {
    # A request that was refused does not take its id: a mended one begins the next run.
    "requested": frozenset({(None, "pending"), ("failed", "pending")}),
    "scheduled": _to("scheduled", "pending", "scheduled"),
    "deferred": _to("scheduled", "pending", "scheduled", "retrying"),
    "dispatched": _to("dispatched", *_WAITING),
    "attempt_started": _to("running", "dispatched"),
    "progressed": _stay("running", "awaiting"),
    # A quick job reports only its end, so an attempt may end that never reported its start.
    "attempt_succeeded": _to("running", *_FLIGHT),
    "attempt_failed": _to("running", *_FLIGHT),
    "retry_scheduled": _to("retrying", "running"),
    "returned": _to("pending", *_FLIGHT),
    "rescued": _to("pending", *_FLIGHT),
    "step_completed": _stay("running"),
    "suspended": _to("awaiting", *_FLIGHT),
    "resumed": _to("pending", "awaiting"),
    "cancel_requested": _stay(*_FLIGHT),
    "redriven": _to("pending", *sorted(TERMINAL)),
    "succeeded": _to("succeeded", "running"),
    "failed": _to("failed", *_WAITING, "running", "awaiting"),
    "cancelled": _to("cancelled", *_WAITING, "running", "awaiting"),
    "skipped": _to("skipped", *_WAITING, *_FLIGHT),
    "expired": _to("expired", *_WAITING),
}
"""Event -> the (state before, state after) that it may have."""
