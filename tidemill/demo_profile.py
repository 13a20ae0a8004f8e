"""The demo's handler: a profile of how someone writes, from their latest chat messages.

Owns the features and their formulas. Refuses to know where messages come from. Written as a user
would: it imports `tidemill` and nothing else of ours.

Nothing is arranged to fail: the data set has blank lines and lines without a word, and limits are
limits.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final

from pydantic import BaseModel, Field
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from tidemill import NonRetryable, RateLimit, Skip, job

HISTORY_MESSAGES: Final = 8  # the latest messages of a user that a profile looks at
PROFILES_PER_HOUR: Final = 15  # of one user; the rest is skipped, the next profile covers it
LEXICON_LANGUAGE: Final = "english"

# A word: letters of any script, with apostrophes inside.
_WORD: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_QUESTION_ENDS: Final = ("?", "؟", "？")
# VADER's own threshold for a text that is neither positive nor negative.
NEUTRAL_COMPOUND_MAX: Final = 0.05


class ProfileRequest(BaseModel):
    """Messages of one user, the oldest first; the last one is what the profile was asked for."""

    messages: list[str] = Field(min_length=1, max_length=HISTORY_MESSAGES)
    language: str


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


@job(
    "analysis.profile",
    max_attempts=3,
    timeout_seconds=30,
    limits=[RateLimit(f"{PROFILES_PER_HOUR}/h", by="user", over="skip")],
)
def profile(payload: ProfileRequest) -> dict[str, Any]:
    """Sentiment and language features of the messages."""
    latest = payload.messages[-1]
    if not latest.strip():
        raise Skip(reason="blank_message")
    if not _WORD.search(latest):
        raise NonRetryable(code="NO_WORDS", message=f"no word in {latest[:40]!r}")
    return {
        "language": payload.language,
        **features(payload.messages),
        **mood(payload.messages, payload.language),
    }


def features(messages: list[str]) -> dict[str, Any]:
    """Counts and shares that need no dictionary. Shares are of messages, 0 to 1."""
    words = [word.lower() for message in messages for word in _WORD.findall(message)]
    count = len(messages)
    questions = sum(message.rstrip().endswith(_QUESTION_ENDS) for message in messages)
    return {
        "messages": count,
        "words": len(words),
        "words_per_message": round(len(words) / count, 2),
        # Type-token ratio: different words by words.
        "lexical_diversity": round(len(set(words)) / len(words), 3),
        "mean_word_length": round(sum(map(len, words)) / len(words), 2),
        "question_rate": round(questions / count, 3),
        "exclamation_rate": round(sum("!" in message for message in messages) / count, 3),
    }


def mood(messages: list[str], language: str) -> dict[str, Any]:
    """VADER's compound score, -1 to 1, averaged over the messages that are not neutral.

    `sentiment` is None when no message is, and in languages that the lexicon is not made for: a
    Spanish "no" would count as an English one.
    """
    if language != LEXICON_LANGUAGE:
        return {"sentiment": None, "positive_messages": None, "negative_messages": None}
    scores = [_analyzer().polarity_scores(message)["compound"] for message in messages]
    told = [score for score in scores if abs(score) >= NEUTRAL_COMPOUND_MAX]
    return {
        "sentiment": round(sum(told) / len(told), 4) if told else None,
        "positive_messages": sum(score >= NEUTRAL_COMPOUND_MAX for score in scores),
        "negative_messages": sum(score <= -NEUTRAL_COMPOUND_MAX for score in scores),
    }
