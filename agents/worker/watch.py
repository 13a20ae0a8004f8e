"""The worker's side of its stand-in: starts the process, tells it each beat, starts it again.

Owns that process and its pipe. Refuses to know what it does with what it is told. Without it
nothing is lost but the beats of a worker whose interpreter is held.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import confluent_kafka

from tidemill.agents import own_streams
from tidemill.agents.worker.pulse import Pulse

# Nothing of the user's: Python's own modules first, then ours and the Kafka client.
CODE: Final = (
    "import sys; sys.path += sys.argv[3:]; from tidemill.agents.worker.stand_in import main; main()"
)
END_SECONDS: Final = 1.0  # it ends with its pipe, within a moment
FAILED_MAX: Final = 5  # ends in a row, without a beat between, after which it is given up

logger = logging.getLogger("tidemill.worker")


class Watch:
    """One stand-in at a time. `words` is what it must know."""

    def __init__(self, words: dict[str, Any], pulse: Pulse) -> None:
        self._words = words | {"pulse": pulse.descriptor}
        self._process: subprocess.Popen[bytes] | None = None
        self._failed = 0

    @property
    def pid(self) -> int | None:
        """Of the process that stands in now."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it; the log tells when that cannot be."""
        found = Path(confluent_kafka.__file__ or "").parent.parent
        home = Path(__file__).parents[3]  # of `tidemill`
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-I", "-S", "-c", CODE, json.dumps(self._words),
                    str(os.getpid()), str(home), str(found),
                ],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=own_streams.log(),
                pass_fds=[self._words["pulse"]], cwd="/",
                # Ctrl-C and a stop of the whole group are the worker's.
                start_new_session=True,
            )
        except OSError as error:
            self._failed = FAILED_MAX
            logger.warning(
                "no process stands in for this worker while a handler holds the interpreter, "
                "which then looks like its death after 10 s: %s", error,
            )
            return
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def tell(self, beat: bytes) -> None:
        """On the beat's thread: the worker has said this. Never waits."""
        process = self._process
        if process is None or process.stdin is None:
            return
        try:
            # The first line's end closes one that had no room as a whole.
            os.write(process.stdin.fileno(), b"\n" + beat + b"\n")
        except BlockingIOError:
            return  # it is stopped, or starved: what it missed is old by then
        except OSError:
            self._start_again(process)
        else:
            self._failed = 0

    def _start_again(self, process: subprocess.Popen[bytes]) -> None:
        code = self._end(process)
        self._process = None
        self._failed += 1
        if self._failed >= FAILED_MAX:
            logger.warning("the worker's stand-in ended again (%s): it is left alone", code)
            return
        logger.warning("the worker's stand-in ended (%s): started again", code)
        self.start()

    def close(self) -> None:
        """The worker ends, and its stand-in with it."""
        process, self._process = self._process, None
        if process is not None:
            self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> int | None:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            return process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(END_SECONDS)
