"""What is installed here: versions, compiled parts, packages that hide ours.

Owns the checks that need neither Kafka nor ClickHouse. Refuses to connect to anything.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from typing import Final

from tidemill.agents.settings import CommonSettings
from tidemill.doctor.finding import Check, Finding
from tidemill.installed import in_words, wrong_versions
from tidemill.schemas.native import core

PACKAGES: Final = (
    "tidemill", "confluent-kafka", "faust-streaming", "aiokafka", "pydantic", "orjson",
    "clickhouse-connect", "chdb",
)


def versions(_settings: CommonSettings) -> Finding:
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if wrong := wrong_versions("all"):
        told, mend = in_words(wrong)
        return Finding("versions", "failed", f"Tidemill does not run on {told}", mend)
    return Finding("versions", "ok", ", ".join(found))


def compiled_core(_settings: CommonSettings) -> Finding:
    """Whether decisions run compiled, which only their speed shows."""
    return Finding("core", "ok", str(core))


def extension(_settings: CommonSettings) -> Finding:
    check = "faust extension"
    if importlib.util.find_spec("faust") is None:
        return Finding(
            check, "warning", "Faust is not installed: no role can run here",
            "pip install 'tidemill[ledger]' where roles run; a producer does not need it",
        )
    if importlib.util.find_spec("faust._cython.streams") is None:
        return Finding(
            check, "failed", "Faust runs in pure Python, which acks stale records on a rebalance",
            "install a wheel of faust-streaming that has the Cython extension for this system",
        )
    return Finding(check, "ok", "Cython extension present")


CHECKS: Final = (
    Check("versions", versions),
    Check("core", compiled_core),
    Check("faust extension", extension),
)
