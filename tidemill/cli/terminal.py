"""What a command that runs for long shows, written by a thread of its own.

Owns the way to stdout and stderr. Refuses to know what is told. A terminal that takes nothing
(Ctrl-S, a pipe that nobody reads, a window that was closed) holds up nobody: what finds no place
is left out, and the log files have it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from typing import Final

LINES_WAITING_MAX: Final = 2_000  # some minutes of a talkative worker
CLOSE_SECONDS: Final = 1.0  # for what waits at the end


class Terminal:
    """Text goes out in its order; `write` never waits and never raises."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[str, bool] | None] = queue.Queue(LINES_WAITING_MAX)
        self._left_out = 0
        self._thread = threading.Thread(target=self._run, name="terminal", daemon=True)
        self._thread.start()

    def write(self, line: str, *, is_result: bool = False) -> None:
        """A line to stderr; to stdout when it is what the command was asked for."""
        try:
            self._waiting.put_nowait((line, is_result))
        except queue.Full:
            self._left_out += 1

    def close(self) -> None:
        """Give what waits a moment; a terminal that takes nothing is not waited for."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while (told := self._waiting.get()) is not None:
            line, is_result = told
            _put(f"{line}\n", is_result=is_result)
            if self._left_out and self._waiting.empty():
                count, self._left_out = self._left_out, 0
                _put(
                    f"({count} lines found no place here; the log files have them)\n",
                    is_result=False,
                )


def _put(text: str, *, is_result: bool) -> None:
    stream = sys.stdout if is_result else sys.stderr
    if stream is None:  # closed before the start
        return
    # Not through the stream: a thread that waits in there holds a lock that Python's end needs.
    with contextlib.suppress(OSError, ValueError):
        data = text.encode(stream.encoding or "utf-8", stream.errors or "replace")
        while data:
            data = data[os.write(stream.fileno(), data) :]
