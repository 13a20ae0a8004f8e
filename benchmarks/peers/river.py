"""River on Postgres: `river bench` for the drain, a small Go program for the rest.

Drain: `river bench -n JOBS` empties the table, inserts the jobs, starts its client and measures
from there to the last completion that its own event stream reports. It is a new process each time;
a Go program needs no warm-up, and its connections are warm from inserting.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.processes import (
    READY_SECONDS,
    Child,
    cache_folder,
    copy_sources,
    mark_installed,
    run_step,
)
from benchmarks.program import (
    LATENCY_WARMUP_SECONDS,
    MEASURE_DEADLINE_SECONDS,
    Latency,
    MissingError,
    NotMeasuredError,
    check_rate_held,
)
from benchmarks.servers import POSTGRES_SETTINGS, Postgres, postgres_folder

SOURCES = Path(__file__).resolve().parent / "sources" / "river"
RIVER_COMMAND = "github.com/riverqueue/river/cmd/river"
GO_MINIMUM = (1, 24)

# `river bench` prints one such line at its end.
SUMMARY = re.compile(r"total jobs worked \[\s*(\d+) \].*overall job/sec \[\s*([\d.]+) \]")

# Connections of each of our program's pools; the driver's default of 4 queues single inserts.
POOL_SIZE = 20


class River:
    """See `Program`."""

    name = "river"
    title = "River 0.24 (Postgres)"
    settings: ClassVar[Mapping[str, str]] = {
        "server": POSTGRES_SETTINGS,
        "worker": "`river bench -n`: 2,000 workers, fetch cooldown 2 ms",
        "enqueue": "InsertManyFast of 5,000 (COPY)",
        "latency": "until the job's function ran; worker as in `river bench`",
    }

    def __init__(self) -> None:
        self._postgres = Postgres()
        self._folder = Path()
        self._program: Child | None = None

    def install(self) -> None:
        postgres_folder()
        if shutil.which("go") is None:
            minimum = ".".join(map(str, GO_MINIMUM))
            raise MissingError(f"go is not on PATH; install Go {minimum} or newer")
        here = Path.cwd()
        version = run_step(["go", "env", "GOVERSION"], cwd=here).strip()
        found = re.match(r"go(\d+)\.(\d+)", version)
        if found is None or (int(found[1]), int(found[2])) < GO_MINIMUM:
            raise MissingError(f"Go 1.24 or newer is needed, found {version}")
        self._folder = cache_folder(self.name)
        if not copy_sources(SOURCES, self._folder):
            no_vcs = {"GOFLAGS": "-buildvcs=false"}
            for target, package in (("river", RIVER_COMMAND), ("program", ".")):
                build = ["go", "build", "-o", f"bin/{target}", package]
                run_step(build, cwd=self._folder, env=no_vcs)
            mark_installed(self._folder)

    def start(self) -> None:
        self._postgres.start()
        migrate = ["bin/river", "migrate-up", "--database-url", self._postgres.url]
        run_step(migrate, cwd=self._folder)
        url = f"{self._postgres.url}&pool_max_conns={POOL_SIZE}"
        self._program = Child(
            ["bin/program", url], cwd=self._folder, log=self._folder / "program.log", talks=True
        )
        self._program.answer(READY_SECONDS)

    def drain(self, jobs: int) -> float:
        bench = Child(
            ["bin/river", "bench", "-n", str(jobs), "--database-url", self._postgres.url],
            cwd=self._folder,
            log=self._folder / "bench.log",
            talks=True,
        )
        try:
            printed = bench.finish(MEASURE_DEADLINE_SECONDS)
        finally:
            bench.stop()
        summary = SUMMARY.search(printed)
        if summary is None or int(summary[1]) != jobs:
            raise NotMeasuredError(f"`river bench` did not work {jobs} jobs: {printed[-300:]}")
        return float(summary[2])

    def enqueue(self, jobs: int) -> float:
        seconds = self._ask(do="add", jobs=jobs)["seconds"]
        self._ask(do="clear")
        return jobs / float(seconds)

    def latency(self, rate: int, seconds: float) -> Latency:
        paced = self._ask(
            do="pace", rate=rate, seconds=seconds, warmup_seconds=LATENCY_WARMUP_SECONDS
        )
        check_rate_held(rate=rate, jobs=paced["sent"], seconds=paced["seconds"])
        self._ask(do="clear")
        return Latency.of(paced["latencies_ms"])

    def stop(self) -> None:
        if self._program is not None:
            self._program.stop()
            self._program = None
        self._postgres.stop()

    def _ask(self, **command: object) -> dict[str, Any]:
        assert self._program is not None
        return self._program.ask(MEASURE_DEADLINE_SECONDS, **command)
