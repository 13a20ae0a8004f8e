"""Runs programs in turn and keeps what they measured.

Owns: the order of runs, medians, facts about the machine, ratios and the results file. It refuses
to know any program: it sees the `Program` protocol only. Tables are in `report.py`.

Runs of different programs alternate (A B C A B C ...), so that a machine that grows slower or
quicker meanwhile favours nobody, and a ratio is always of programs that ran in the same session.
Between its turns a program is stopped with its servers: it takes no processor time from others.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.program import Latency, MissingError, NotMeasuredError, Program
from benchmarks.results import now_text, write_sections

# How long is looked at what else the machine does before a turn.
BUSY_SECONDS = 1.0

# What a version question may take.
VERSION_SECONDS = 20.0
VERSION_COMMANDS: Mapping[str, Sequence[str]] = {
    "node": ("node", "--version"),
    "go": ("go", "env", "GOVERSION"),
    "redis": ("redis-server", "--version"),
    "postgres": ("postgres", "--version"),
    "java": ("java", "-version"),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    jobs: int
    """Jobs of a drain and of an enqueue."""
    runs: int
    """Runs a program; the result is their median."""
    rates: tuple[int, ...]
    """Jobs per second of each latency run; empty: no latency."""
    latency_seconds: float
    """Length of a latency run after its warm-up."""
    measures: tuple[str, ...] = ("drain", "enqueue", "latency")


@dataclass(slots=True)
class Measured:
    """All that is known of one program after a session."""

    title: str
    settings: dict[str, str]
    skipped: str | None = None
    drain: list[float] = field(default_factory=list)
    enqueue: list[float] = field(default_factory=list)
    latency: dict[int, list[Latency]] = field(default_factory=dict)
    not_measured: list[str] = field(default_factory=list)
    others_busy_percent: list[float] = field(default_factory=list)
    """How busy all cores were before each turn, when nothing of the benchmark ran."""

    def median(self, measure: str) -> float | None:
        """The median jobs per second of `drain` or `enqueue`; None when there is no run."""
        runs: list[float] = getattr(self, measure)
        return statistics.median(runs) if runs else None

    def median_latency(self, rate: int) -> Latency | None:
        """The medians of both percentiles over the runs at `rate`."""
        runs = self.latency.get(rate, [])
        if not runs:
            return None
        return Latency(
            p50_ms=statistics.median(run.p50_ms for run in runs),
            p99_ms=statistics.median(run.p99_ms for run in runs),
            jobs=sum(run.jobs for run in runs),
        )


Notify = Callable[[str], None]


def measure_all(programs: Iterable[Program], plan: Plan, notify: Notify) -> dict[str, Measured]:
    """Installs all programs, then measures them in turn. One that cannot run, or that fails, is
    reported and stops nobody else."""
    results: dict[str, Measured] = {}
    able: list[Program] = []
    for program in programs:
        results[program.name] = Measured(program.title, dict(program.settings))
        notify(f"{program.name}: installing")
        try:
            program.install()
        except MissingError as error:
            results[program.name].skipped = str(error)
            notify(f"{program.name}: skipped: {error}")
        else:
            able.append(program)
    for run in range(1, plan.runs + 1):
        for program in able:
            _one_turn(program, plan, results[program.name], run, notify)
    return results


def _one_turn(program: Program, plan: Plan, measured: Measured, run: int, notify: Notify) -> None:
    """One start of one program, and each measurement once."""

    def drain() -> str:
        measured.drain.append(program.drain(plan.jobs))
        return f"{measured.drain[-1]:,.0f} jobs/s"

    def enqueue() -> str:
        measured.enqueue.append(program.enqueue(plan.jobs))
        return f"{measured.enqueue[-1]:,.0f} jobs/s"

    def latency(rate: int) -> str:
        found = program.latency(rate, plan.latency_seconds)
        measured.latency.setdefault(rate, []).append(found)
        return f"p50 {found.p50_ms:.1f} ms, p99 {found.p99_ms:.1f} ms"

    measured.others_busy_percent.append(psutil.cpu_percent(interval=BUSY_SECONDS))
    steps: list[tuple[str, Callable[[], str]]] = []
    if "drain" in plan.measures:
        steps.append((f"drain of {plan.jobs:,} jobs", drain))
    if "enqueue" in plan.measures:
        steps.append((f"enqueue of {plan.jobs:,} jobs", enqueue))
    if "latency" in plan.measures:
        steps += [(f"latency at {rate:,} jobs/s", partial(latency, rate)) for rate in plan.rates]
    _run_steps(program, steps, measured, f"run {run}/{plan.runs}", notify)


def _run_steps(
    program: Program,
    steps: Sequence[tuple[str, Callable[[], str]]],
    measured: Measured,
    turn: str,
    notify: Notify,
) -> None:
    needs_start = True
    try:
        for label, step in steps:
            try:
                if needs_start:
                    program.start()
                shown = step()
                needs_start = False
            except (NotMeasuredError, MissingError) as error:
                shown = f"not measured: {error}"
                measured.not_measured.append(f"{turn}, {label}: {error}")
                # What is left of a failed measurement must not be in the next one.
                program.stop()
                needs_start = True
            notify(f"{turn} {program.name}: {label}: {shown}")
    finally:
        program.stop()


def machine_facts() -> dict[str, Any]:
    """What a reader needs in order to compare with another machine, read now."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "cpu_mhz": _cpu_mhz(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
        "python": _python_text(),
        "versions": {name: _version(command) for name, command in VERSION_COMMANDS.items()},
    }


def _python_text() -> str:
    """Version and build: a plain build from source is a tenth slower than a distribution's."""
    kind = "the system's" if Path(sys.base_prefix) == Path("/usr") else "built apart"
    return f"{platform.python_version()} ({kind}, {platform.python_compiler()})"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _cpu_mhz() -> int | None:
    # The stubs promise a value, but psutil answers None where the system does not tell.
    frequency: Any = psutil.cpu_freq()
    return round(frequency.max or frequency.current) if frequency else None


def _version(command: Sequence[str]) -> str | None:
    """The first line that the command prints; None where it does not exist or fails."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
            timeout=VERSION_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


def ratios(results: Mapping[str, Measured], measure: str) -> dict[str, dict[str, float]]:
    """For each pair, how many times the first does what the second does: `ratios[a][b]`."""
    medians = {name: found.median(measure) for name, found in results.items()}
    known = {name: value for name, value in medians.items() if value}
    return {
        name: {other: round(mine / theirs, 3) for other, theirs in known.items() if other != name}
        for name, mine in known.items()
    }


def write_results(
    path: Path, plan: Plan, facts: Mapping[str, Any], results: Mapping[str, Measured]
) -> dict[str, Any]:
    """Writes the session into the results file; the whole document."""
    return write_sections(
        path,
        {
            "finished_at": now_text(),
            "machine": dict(facts),
            "plan": asdict(plan),
            "programs": {name: _as_json(found) for name, found in results.items()},
            "ratios": {measure: ratios(results, measure) for measure in ("drain", "enqueue")},
        },
    )


def _as_json(found: Measured) -> dict[str, Any]:
    def of_runs(measure: str) -> dict[str, Any]:
        runs: list[float] = getattr(found, measure)
        median = found.median(measure)
        return {
            "median": round(median, 1) if median is not None else None,
            "runs": [round(run, 1) for run in runs],
        }

    latency = {}
    for rate, runs in found.latency.items():
        median = found.median_latency(rate)
        latency[str(rate)] = {
            "median": asdict(median) if median else None,
            "runs": [asdict(run) for run in runs],
        }
    return {
        "title": found.title,
        "settings": found.settings,
        "skipped": found.skipped,
        "not_measured": found.not_measured,
        "others_busy_percent": found.others_busy_percent,
        "drain_jobs_per_second": of_runs("drain"),
        "enqueue_jobs_per_second": of_runs("enqueue"),
        "latency_ms_by_rate": latency,
    }
