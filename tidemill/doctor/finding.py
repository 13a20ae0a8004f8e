"""What a check of `doctor` is, and what it finds.

Owns the shape of both. Refuses to know any check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from tidemill.agents.settings import CommonSettings

Verdict = Literal["ok", "warning", "failed", "unknown"]

ANSWER_SECONDS: Final = 10.0  # for one question to Kafka or ClickHouse


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `hint` is empty when there is nothing to do.

    unknown: the check could not be made because another one failed.
    """

    check: str
    verdict: Verdict
    found: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One question. `needs` names the check, or the checks, without which it cannot be made.

    `asks` is the question in words, told where it cannot be asked. `run` may raise what Kafka or
    ClickHouse raise: the check has then failed.
    """

    name: str
    run: Callable[[CommonSettings], Finding]
    needs: str | tuple[str, ...] | None = None
    asks: str = ""
