"""Counts finished jobs of a worker process into a small shared file.

Owns: one memory-mapped file a process: how many jobs ended, when the last one did, and the latency
of each job that carries a due time. A job costs about a microsecond here. It refuses to know which
framework runs it. The harness reads the files (`benchmarks/peers/python_peers.py` has the layout).
"""

import mmap
import os
import struct
import threading
import time
from pathlib import Path

# Header: jobs ended (int64), CLOCK_MONOTONIC of the last end in ns (int64), latencies (int64).
HEADER = struct.Struct("<qqq")
SAMPLE = struct.Struct("<d")
# Samples a process may store: two minutes at 2,000 jobs/s in one process.
SAMPLES_MAX = 240_000


class Meter:
    """The counters of this process, thread-safe."""

    def __init__(self, folder: Path) -> None:
        path = folder / f"meter-{os.getpid()}"
        size = HEADER.size + SAMPLES_MAX * SAMPLE.size
        with path.open("wb") as file:
            file.truncate(size)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._lock = threading.Lock()
        self._ended = 0
        self._samples = 0

    def ended(self, due_ns: int) -> None:
        """Notes the end of a job; `due_ns` is when it was due to be sent, 0 where nobody asks."""
        now = time.monotonic_ns()
        with self._lock:
            self._ended += 1
            if due_ns:
                offset = HEADER.size + self._samples * SAMPLE.size
                SAMPLE.pack_into(self._map, offset, (now - due_ns) / 1e6)
                self._samples += 1
            HEADER.pack_into(self._map, 0, self._ended, now, self._samples)


_meter: Meter | None = None
_meter_pid = 0
_opening = threading.Lock()


def job_ended(due_ns: int) -> None:
    """The whole body of a no-op job. The file is opened on first use, after the worker forked."""
    global _meter, _meter_pid
    if _meter is None or _meter_pid != os.getpid():
        with _opening:
            if _meter is None or _meter_pid != os.getpid():
                _meter = Meter(Path(os.environ["PEER_METER_FOLDER"]))
                _meter_pid = os.getpid()
    _meter.ended(due_ns)
