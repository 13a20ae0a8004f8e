"""How an attempt ends that was made to end: by its time-out, a cancel or the worker's stop.

Owns that mapping. Refuses to know who passed the verdict and when.
"""

from __future__ import annotations

from tidemill.agents import clocks
from tidemill.agents.worker import outcomes
from tidemill.agents.worker.attempts import Attempt
from tidemill.agents.worker.outcomes import Outcome
from tidemill.schemas.words import Reason


def end_of_verdict(attempt: Attempt, end: Outcome | None) -> Outcome:
    """How an attempt ends that was made to end; `end` is what it said itself, None if nothing."""
    match attempt.verdict:
        case "timed_out":
            note = "" if end is not None else "; it does not stop and still holds its slot"
            return outcomes.timed_out(attempt.job["timeout_ms"], note, attempt.stack)
        case "cancelled":
            return outcomes.cancelled()
        case _:
            # The worker stops: work that was finished all the same is not thrown away.
            if end is not None and end["kind"] in ("succeeded", "skipped", "suspended"):
                return end
            seconds = clocks.monotonic() - attempt.started_at
            return outcomes.returned(
                Reason.INTERRUPTED, f"its worker stopped after {seconds:.1f} s of this attempt"
            )
