"""Words to cancel that came before their jobs.

Owns how many are kept and for how long. Refuses to know what a cancel does.

Most words are for other workers; one may be quicker than its job, so each is kept a while.
"""

from __future__ import annotations

from typing import Final

from tidemill.agents import clocks

CANCEL_WORDS_MAX: Final = 10_000  # words kept for jobs that have not arrived yet
CANCEL_WORD_SECONDS: Final = 120.0  # a word is kept for so long; its job arrives within a lease

AttemptKey = tuple[str, str, int, int]
"""User, job, run, epoch."""


class EarlyCancels:
    """The newest words, with the instant of their arrival."""

    def __init__(self) -> None:
        self._told_at: dict[AttemptKey, float] = {}

    def __len__(self) -> int:
        return len(self._told_at)

    def keep(self, key: AttemptKey) -> None:
        """A word for an attempt that is not here."""
        self._told_at[key] = clocks.monotonic()
        if len(self._told_at) > CANCEL_WORDS_MAX:
            del self._told_at[next(iter(self._told_at))]

    def take(self, key: AttemptKey) -> bool:
        """Whether there is a word for this attempt, which is used up by that."""
        told_at = self._told_at.pop(key, None)
        # An id may be used anew: an old word is for a job that has long ended.
        return told_at is not None and clocks.monotonic() - told_at < CANCEL_WORD_SECONDS
