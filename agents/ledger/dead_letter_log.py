"""A line in the log for each job that failed for good and for each record that was refused.

Owns the words and their bound. Refuses to know why: the ledger has decided it. No line holds a
payload or the words of an error, which may quote one; both are kept beside the dead letter.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from tidemill.agents.tally import LINES_A_SECOND, Tally
from tidemill.schemas.safe_text import safe_line
from tidemill.streams.output import DeadLetter

logger = logging.getLogger("tidemill.ledger")

_FAILED: Final = "attempt"


class DeadLetterLog:
    """Told after the commit of each group; used from the loop."""

    def __init__(self, tally: Tally[tuple[str, str, str]] | None = None) -> None:
        self._tally = tally or Tally[tuple[str, str, str]]()

    def tell(self, dead_letters: Iterable[DeadLetter]) -> None:
        """Dead letters that are committed."""
        for letter in dead_letters:
            if self._tally.count((letter.stage, letter.code, letter.type)) <= LINES_A_SECOND:
                _tell(letter)
        for (stage, code, type_name), more, seconds in self._tally.untold():
            what = f"jobs of {safe_line(type_name) or 'an unknown type'} failed for good"
            if stage != _FAILED:
                what = f"{stage} records were refused"
            logger.warning(
                "%d more %s with %s within %.1f s: `tidemill dead list` has each", more, what,
                safe_line(code), seconds,
            )


def _tell(letter: DeadLetter) -> None:
    if letter.stage == _FAILED:
        logger.warning(
            "a job failed for good",
            extra={
                "job": safe_line(letter.job_id), "user": safe_line(letter.user_id),
                "type": safe_line(letter.type), "attempt": letter.attempts,
                "code": safe_line(letter.code), "reason": safe_line(letter.reason),
            },
        )
        return
    known = {
        "code": letter.code, "source": letter.origin, "field": letter.field,
        "user": letter.user_id, "job": letter.job_id, "type": letter.type,
    }
    logger.warning(
        "a %s was refused; `tidemill dead list` says why", letter.stage,
        extra={name: safe_line(value) for name, value in known.items() if value},
    )


DEAD_LETTERS: Final = DeadLetterLog()
"""The one of this process."""
