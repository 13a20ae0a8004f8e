"""The processes of a system's demo: begun, waited for, and ended with it.

Owns their output's file and their end. Refuses to know what runs in them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ANY_PORTS: Final = ("--kafka-port", "0", "--clickhouse-port", "0", "--http-port", "0")
START_SECONDS_MAX: Final = 180.0
STOP_SECONDS_MAX: Final = 40.0  # what runs may end first
LOOK_SECONDS: Final = 0.2


@contextmanager
def running(
    words: list[str], ready: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """`python -m` with these words until the block ends, once `ready` is in its output; that line.

    Raises SystemExit with the end of the output when it does not start.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], env={**os.environ, **(environment or {})},
            stdout=out, stderr=out,
        )
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while ready not in (text := log.read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{words[0]} did not start; {log} ends with:\n{text[-3000:]}")
            time.sleep(LOOK_SECONDS)
        yield next(line for line in text.splitlines() if ready in line)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def addresses(ready: str) -> dict[str, str]:
    """Of the line with which `tidemill dev` is ready, by name: kafka, clickhouse, http."""
    return dict(word.split("=", 1) for word in ready.split() if "=" in word)
