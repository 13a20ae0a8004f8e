"""The files that keep the lines of roles: one a role, its owner's alone, rotated by size.

Owns how a line gets into its file, and what happens when the disk takes none: role and terminal go
on, and one line says what is missing in which file. Refuses to know whose lines they are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tidemill.agents import clocks
from tidemill.agents.private_files import FILE_MODE

LOG_BYTES_MAX: Final = 16 * 1_048_576  # of one file; one older file is kept
TOLD_EVERY_SECONDS: Final = 60.0  # a full disk refuses each line; one word of it is enough


class LineFile:
    """A log file whose disk may be full or gone: whoever writes a line notices nothing."""

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self._path = path
        self._tell = tell
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._size = 0
        self._told_at = float("-inf")

    def write(self, line: str) -> None:
        """Append a line; a failure is told, at most once a minute, and never raised."""
        told = f"{line}\n".encode(errors="backslashreplace")
        with self._lock:
            try:
                self._append(told)
            except OSError as error:
                self._release()
                self._note(error)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._release()

    def _append(self, told: bytes) -> None:
        if self._descriptor is not None and self._size + len(told) > LOG_BYTES_MAX:
            self._release()
            self._path.replace(f"{self._path}.1")
        if self._descriptor is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, FILE_MODE)
            self._size = os.fstat(self._descriptor).st_size
        # Unbuffered: what the disk did not take would come again with the next line.
        while told:
            written = os.write(self._descriptor, told)
            self._size += written
            told = told[written:]

    def _release(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _note(self, error: OSError) -> None:
        now = clocks.monotonic()
        if now - self._told_at >= TOLD_EVERY_SECONDS:
            self._told_at = now
            self._tell(f"lines are missing in {self._path}: {error.strerror}")
