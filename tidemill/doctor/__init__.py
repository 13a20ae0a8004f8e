"""Is everything there that a job needs: one finding a check, with what to do about it.

Owns the list of checks and that each gets an answer. Refuses to mend anything, and to know what a
check looks at: a family of checks is a module of this package with its own `CHECKS`.
"""

from __future__ import annotations

from typing import Final

from confluent_kafka import KafkaException

from tidemill.agents.answers import AnswerError
from tidemill.agents.settings import CommonSettings
from tidemill.agents.topics import TopicsError
from tidemill.doctor import (
    clickhouse,
    doors,
    installation,
    kafka,
    ledger,
    schedules,
    waiting,
    workers,
)
from tidemill.doctor.finding import Check, Finding, Verdict
from tidemill.sql import SqlError

__all__ = ["CHECKS", "Check", "Finding", "Verdict", "examine"]

# In the order in which they build on each other: a check comes after the one that it needs.
CHECKS: Final[tuple[Check, ...]] = (
    *installation.CHECKS,
    *doors.CHECKS,
    *kafka.CHECKS,
    *ledger.CHECKS,
    *workers.CHECKS,
    *clickhouse.CHECKS,
    *waiting.CHECKS,
    *schedules.CHECKS,
)
WORDS: Final = {"kafka": "Kafka", "clickhouse": "ClickHouse"}  # a check that others need


def examine(settings: CommonSettings) -> list[Finding]:
    """The finding of each check, in their order."""
    failed: set[str] = set()
    findings: list[Finding] = []
    for check in CHECKS:
        finding = _answer(check, settings, failed)
        findings.append(finding)
        if finding.verdict == "failed":
            failed.add(check.name)
    return findings


def _answer(check: Check, settings: CommonSettings, failed: set[str]) -> Finding:
    needs = (check.needs,) if isinstance(check.needs, str) else check.needs
    if needs is None:
        return check.run(settings)
    for need in needs:
        if need in failed:
            left = f": {check.asks}" if check.asks else ""
            return Finding(check.name, "unknown", f"not checked without {WORDS[need]}{left}")
    try:
        return check.run(settings)
    except AnswerError as error:
        return Finding(check.name, "failed", str(error), "as the text says")
    except (KafkaException, TopicsError, SqlError, TimeoutError) as error:
        name = WORDS[needs[0]]
        return Finding(check.name, "failed", f"no answer: {error}", f"mend {name} and try again")
