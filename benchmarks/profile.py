"""Where the processor time of a job goes: by process, by thread, by module.

Owns the measurement of one strict drain (see `tidemill_programs`): processor time of each role and
of each of its threads, bytes on the broker's disk, and, where py-spy is installed, in which modules
the ledger's interpreter was. Refuses to judge. Linux only: it reads the threads' clocks in /proc.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.dev_stack import DevStack
from benchmarks.processes import wait_until
from benchmarks.program import MissingError
from benchmarks.tidemill_programs import dev

JOBS = 100_000
QUICK_JOBS = 10_000
# Drains before the one that counts: the broker's compiler has done its work then.
WARM_JOBS = 20_000
QUICK_WARM_JOBS = 2_000
# Threads and modules below this share of all are left out.
SHOWN_US_PER_JOB = 0.25
SHOWN_PERCENT = 0.5
# A thread dump of the broker comes within a moment.
DUMP_SECONDS = 10.0
POLL_SECONDS = 0.05
# py-spy: an odd number of samples a second falls in step with no timer.
SPY_RATE = 199
SPY_SECONDS_MAX = 600
SPY_END_SECONDS = 30.0

_DUMPED = re.compile(r'^"([^"]+)".*? nid=(0x[0-9a-f]+|\d+)', re.MULTILINE)
_NUMBER = re.compile(r"\d+")
# A frame of py-spy's raw format: function (module:line).
_FRAME = re.compile(r"\(([^():]+)(?::\d+)?\)$")

ThreadTimes = dict[int, tuple[str, float]]


def measure(*, is_quick: bool) -> dict[str, Any]:
    """µs of processor time per job. The numbers of a sampled run are a little higher."""
    if not Path("/proc/self/task").is_dir():
        raise MissingError("threads' clocks are read from /proc: run this on Linux")
    jobs = QUICK_JOBS if is_quick else JOBS
    program = dev()
    try:
        program.start()
        program.drain(QUICK_WARM_JOBS if is_quick else WARM_JOBS)
        names = _broker_threads(program.stack)
        before, cpu = _all_threads(program.stack), program.stack.cpu_seconds()
        disk = _bytes_on_disk(program.stack)
        with _Spy(program.stack) as spy:
            rate = program.drain(jobs)
        after = _all_threads(program.stack)
        used = program.stack.cpu_seconds()
        return {
            "jobs": jobs,
            "drain_jobs_per_second": round(rate),
            "cpu_us_per_job": {
                role: round((used[role] - cpu[role]) / jobs * 1e6, 1) for role in used
            },
            "threads_us_per_job": {
                role: _by_kind(before[role], after[role], names, jobs) for role in after
            },
            "bytes_on_disk_per_job": {
                topic: round((size - disk.get(topic, 0)) / jobs, 1)
                for topic, size in _bytes_on_disk(program.stack).items()
                if (size - disk.get(topic, 0)) / jobs >= 1
            },
            "ledger_modules_percent": spy.modules(),
        }
    finally:
        program.stop()


def _all_threads(stack: DevStack) -> dict[str, ThreadTimes]:
    found: dict[str, ThreadTimes] = {}
    for role, processes in stack.processes().items():
        found[role] = {}
        for process in processes:
            found[role].update(_threads(process))
    return found


def _threads(process: psutil.Process) -> ThreadTimes:
    """Seconds on a processor of each thread, with its name, by its number."""
    found: ThreadTimes = {}
    for folder in Path(f"/proc/{process.pid}/task").iterdir():
        # A thread may end while we read.
        with contextlib.suppress(OSError):
            nanoseconds = int((folder / "schedstat").read_text().split()[0])
            found[int(folder.name)] = ((folder / "comm").read_text().strip(), nanoseconds / 1e9)
    return found


def _broker_threads(stack: DevStack) -> Mapping[int, str]:
    """The whole names of the broker's threads, from a dump: the system keeps 15 characters only."""
    outputs = list(stack.folder.rglob("broker.out"))
    if not outputs:
        return {}
    output = outputs[0]
    begun_at = output.stat().st_size

    def dumped() -> str:
        return output.read_bytes()[begun_at:].decode(errors="replace")

    for process in stack.processes()["broker"]:
        os.kill(process.pid, signal.SIGQUIT)
    wait_until(lambda: "JNI global refs" in dumped(), DUMP_SECONDS, "a thread dump", POLL_SECONDS)
    return {int(match[2], 0): match[1] for match in _DUMPED.finditer(dumped())}


def _by_kind(
    before: ThreadTimes, after: ThreadTimes, names: Mapping[int, str], jobs: int
) -> dict[str, float]:
    """µs per job of each kind of thread: names that differ in numbers only are one kind."""
    used: defaultdict[str, float] = defaultdict(float)
    for number, (name, seconds) in after.items():
        kind = _NUMBER.sub("#", names.get(number, name))
        used[kind] += (seconds - before.get(number, (name, 0.0))[1]) / jobs * 1e6
    ordered = sorted(used.items(), key=lambda found: -found[1])
    return {kind: round(us, 1) for kind, us in ordered if us >= SHOWN_US_PER_JOB}


def _bytes_on_disk(stack: DevStack) -> dict[str, int]:
    """Bytes of each topic's log, all partitions."""
    sizes: Counter[str] = Counter()
    for log in stack.folder.rglob("*.log"):
        topic, _, partition = log.parent.name.rpartition("-")
        if topic and partition.isdecimal():
            with contextlib.suppress(OSError):
                sizes[topic] += log.stat().st_size
    return dict(sizes)


class _Spy:
    """py-spy beside the first ledger, when it is installed."""

    def __init__(self, stack: DevStack) -> None:
        beside = Path(sys.executable).with_name("py-spy")
        self._command = str(beside) if beside.exists() else shutil.which("py-spy")
        self._stack = stack
        self._raw = stack.folder / "ledger.raw"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Spy:
        if self._command is not None:
            pid = self._stack.processes()["ledger"][0].pid
            words = ["record", "-f", "raw", "-t", "-r", str(SPY_RATE), "-d", str(SPY_SECONDS_MAX)]
            self._process = subprocess.Popen(
                [self._command, *words, "-o", str(self._raw), "-p", str(pid)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(SPY_END_SECONDS)

    def modules(self) -> dict[str, float] | None:
        """Share of the main thread's samples in each module itself; None without py-spy."""
        if not self._raw.exists():
            return None
        samples: Counter[str] = Counter()
        for line in self._raw.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            frames = stack.split(";")
            found = _FRAME.search(frames[-1])
            if "MainThread" in frames[0] and found:
                samples[found[1]] += int(count)
        total = samples.total()
        shares = {name: round(100 * n / total, 1) for name, n in samples.most_common()}
        return {name: share for name, share in shares.items() if share >= SHOWN_PERCENT}
