"""`tidemill dev` in processes of its own, watched from outside.

Owns the start and the end of the measured stack, its folder and ports, which process plays which
role, and the processor time of each. Refuses to know what is measured. It is the command that a
user types; roles beside it (a second ledger) are the commands that an operator types.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.noop_jobs import GATE_VARIABLE
from benchmarks.processes import (
    READY_SECONDS,
    Child,
    cache_folder,
    discard,
    wait_until,
)
from benchmarks.program import NotMeasuredError
from tidemill.agents.embedded.ports import free_port
from tidemill.schemas.topics import DEV_PARTITIONS

JOBS_MODULE = Path(__file__).resolve().parent / "noop_jobs.py"
ROLES = ("broker", "ledger", "worker", "stack")
POLL_SECONDS = 0.05
# What a role prints when it serves.
ROLE_READY = '"role_ready"'
# One question to the embedded ClickHouse.
SQL_SECONDS = 60.0


class DevStack:
    """A running `tidemill dev`, with other roles beside it."""

    def __init__(
        self, *, concurrency: int, extra_ledgers: int = 0, module: str | Path = JOBS_MODULE,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._concurrency = concurrency
        self._extra_ledgers = extra_ledgers
        self._module = str(module)  # of handlers
        self._environment = dict(environment or {})
        self._children: list[Child] = []
        self.folder = Path()
        self.kafka = ""
        self.clickhouse = ""

    @property
    def gate(self) -> Path:
        """The file that lets `bench.hold` jobs end."""
        return self.folder / "gate"

    def start(self) -> None:
        """Returns when every role serves."""
        self.folder = Path(tempfile.mkdtemp(prefix="stack-", dir=cache_folder("tidemill")))
        kafka, clickhouse, http = (free_port() for _ in range(3))
        self.kafka = f"127.0.0.1:{kafka}"
        self.clickhouse = f"http://127.0.0.1:{clickhouse}/"
        self._add(
            "dev",
            [
                "dev",
                self._module,
                "--data",
                str(self.folder / "data"),
                "--kafka-port",
                str(kafka),
                "--clickhouse-port",
                str(clickhouse),
                "--http-port",
                str(http),
                "--concurrency",
                str(self._concurrency),
            ],
            "ready kafka=",
        )
        for number in range(1, self._extra_ledgers + 1):
            name = f"ledger-{number}"
            self._add(name, self._role("ledger", "--instance-id", f"bench-{name}"), ROLE_READY)

    def add_worker(self, name: str) -> Child:
        """Another worker, which nobody starts again when it dies."""
        words = self._role("worker", self._module, "--worker-id", name)
        return self._add(name, [*words, "--concurrency", str(self._concurrency)], ROLE_READY)

    def _role(self, role: str, *words: str) -> list[str]:
        return [role, *words, "--kafka", self.kafka, "--partitions", str(DEV_PARTITIONS)]

    def stop(self) -> None:
        """Ends what was started, the first one last; its folder goes with the session."""
        self.thaw()
        for child in reversed(self._children):
            child.stop()
        self._children.clear()
        if self.folder != Path():
            discard(self.folder)
            self.folder = Path()

    def _add(self, name: str, words: Sequence[str], ready: str) -> Child:
        log = self.folder / f"{name}.log"
        environment = {
            GATE_VARIABLE: str(self.gate), "PYTHONUNBUFFERED": "1", **self._environment
        }
        child = Child([sys.executable, "-m", "tidemill", *words], log=log, env=environment)
        self._children.append(child)

        def is_ready() -> bool:
            if not child.is_alive():
                raise NotMeasuredError(f"{name} ended at its start: {child.log_tail()}")
            return ready in log.read_text(errors="replace")

        wait_until(is_ready, READY_SECONDS, f"the start of {name}", POLL_SECONDS)
        return child

    # -- which process is what -----------------------------------------------------------------

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The processes of each role, `broker` included."""
        found: dict[str, list[psutil.Process]] = {role: [] for role in ROLES}
        for child in self._children:
            top = psutil.Process(child.pid)
            for process in [top, *top.children(recursive=True)]:
                role = _role_of(process)
                if role is not None:
                    found[role].append(process)
        return found

    def freeze(self, role: str) -> None:
        """Stops a role where it stands (SIGSTOP)."""
        for process in self.processes()[role]:
            process.suspend()

    def thaw(self) -> None:
        """Lets every frozen role go on."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for processes in self.processes().values():
                for process in processes:
                    process.resume()

    def kill(self, role: str) -> None:
        """SIGKILL to the processes of a role; `tidemill dev` starts them again."""
        for process in self.processes()[role]:
            os.kill(process.pid, signal.SIGKILL)

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time of each role so far."""
        used: dict[str, float] = {}
        for role, processes in self.processes().items():
            times = [process.cpu_times() for process in processes]
            used[role] = sum(time_.user + time_.system for time_ in times)
        return used

    def memory_mib(self, role: str) -> float:
        """Resident memory of the largest process of a role."""
        return max(float(process.memory_info().rss) for process in self.processes()[role]) / 2**20

    # -- what the sink has ---------------------------------------------------------------------

    def sql(self, query: str) -> list[Mapping[str, Any]]:
        """Rows of a query over the port that stock clients use."""
        asked = urllib.request.Request(self.clickhouse, f"{query} FORMAT JSONEachRow".encode())
        with urllib.request.urlopen(asked, timeout=SQL_SECONDS) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]

    def count(self, condition: str) -> int:
        """Rows of `job_events` that meet a condition."""
        return int(self.sql(f"SELECT count() AS n FROM job_events WHERE {condition}")[0]["n"])

    def wait_rows(self, rows: int, condition: str, deadline_seconds: float) -> None:
        """Returns when `job_events` has that many rows that meet the condition."""
        wait_until(
            lambda: self.count(condition) >= rows,
            deadline_seconds,
            f"{rows} rows with {condition}",
            POLL_SECONDS,
        )


def _role_of(process: psutil.Process) -> str | None:
    try:
        words = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return None
    if "kafka.Kafka" in words:
        return "broker"
    if "tidemill" in words[:3]:
        role = words[words.index("tidemill") + 1]
        return role if role in ROLES else None
    return None
