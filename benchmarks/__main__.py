"""`python -m benchmarks`: the command line of the benchmarks.

Owns: options and what is printed. Measuring is in `harness.py`, programs are in their modules.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.harness import Plan, machine_facts, measure_all, write_results
from benchmarks.parts import PARTS, Part, measure_part
from benchmarks.peers import all_peers
from benchmarks.program import Program
from benchmarks.report import print_table, print_targets, write_markdown, write_targets
from benchmarks.results import RESULTS_PATH, read_document, write_part, write_sections
from benchmarks.targets import targets
from benchmarks.tidemill_programs import all_own

# The size of the published comparison; three runs, as a median of two is no median.
JOBS_DEFAULT = 100_000
RUNS_DEFAULT = 3
RATES_DEFAULT = "200,2000"
LATENCY_SECONDS_DEFAULT = 10.0
# A look: too short for a claim.
QUICK_JOBS = 20_000
QUICK_LATENCY_SECONDS = 3.0

MEASURES = ("drain", "enqueue", "latency")
MEASURES_DEFAULT = ",".join(MEASURES)
EXIT_USAGE = 2

# A session of ours or of the peers alone must not replace the comparison.
OURS_PATH = RESULTS_PATH.with_name("ours.json")
PEERS_PATH = RESULTS_PATH.with_name("peers.json")

Only = Annotated[str, typer.Option(help="Names with commas between; empty: all.")]
Jobs = Annotated[int, typer.Option(min=1, help="Jobs of a drain.")]
Runs = Annotated[int, typer.Option(min=1, help="Runs of each program.")]
Measures = Annotated[str, typer.Option(help="What to measure.")]
Rates = Annotated[str, typer.Option(help="Jobs/s of the latency runs.")]
Seconds = Annotated[float, typer.Option(min=1, help="Length of a latency run.")]
Results = Annotated[Path, typer.Option(help="The JSON to write.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer jobs, one run: a look.")] = False,
    results: Annotated[Path, typer.Option(help="The JSON to write.")] = RESULTS_PATH,
) -> None:
    """Benchmarks of Tidemill and its peers. Without a command: everything, ours and the peers in
    turn, then each part of ours, then the targets."""
    if context.invoked_subcommand is not None:
        return
    plan = Plan(
        jobs=QUICK_JOBS if quick else JOBS_DEFAULT,
        runs=1 if quick else RUNS_DEFAULT,
        rates=tuple(map(_whole_number, _names(RATES_DEFAULT))),
        latency_seconds=QUICK_LATENCY_SECONDS if quick else LATENCY_SECONDS_DEFAULT,
    )
    run_session([*all_own(), *all_peers()], plan, results=results, baseline="bullmq")
    for part in PARTS:
        run_part(part, is_quick=quick, results=results)
    show_targets(results)


@app.command("targets")
def show(
    results: Annotated[Path, typer.Option(help="The JSON to read.")] = RESULTS_PATH,
) -> None:
    """Shows what was promised and what the results file says of it; measures nothing."""
    show_targets(results)


def _add_command(part: Part) -> None:
    def command(
        quick: Annotated[bool, typer.Option("--quick", help="Small: a look.")] = False,
        results: Annotated[Path, typer.Option(help="The JSON to write.")] = RESULTS_PATH,
    ) -> None:
        run_part(part, is_quick=quick, results=results)
        show_targets(results)

    app.command(part.name, help=part.help)(command)


for _part in PARTS:
    _add_command(_part)


@app.command()
def compare(
    only: Only = "",
    jobs: Jobs = JOBS_DEFAULT,
    runs: Runs = RUNS_DEFAULT,
    measures: Measures = MEASURES_DEFAULT,
    rates: Rates = RATES_DEFAULT,
    latency_seconds: Seconds = LATENCY_SECONDS_DEFAULT,
    results: Results = RESULTS_PATH,
) -> None:
    """Measures ours and the peers in one session, without the parts."""
    plan = _plan(jobs, runs, measures, rates, latency_seconds)
    run_session(_chosen([*all_own(), *all_peers()], only), plan, results=results, baseline="bullmq")
    show_targets(results)


@app.command()
def ours(
    only: Only = "",
    jobs: Jobs = JOBS_DEFAULT,
    runs: Runs = RUNS_DEFAULT,
    measures: Measures = MEASURES_DEFAULT,
    rates: Rates = RATES_DEFAULT,
    latency_seconds: Seconds = LATENCY_SECONDS_DEFAULT,
    results: Results = OURS_PATH,
) -> None:
    """Measures Tidemill alone."""
    plan = _plan(jobs, runs, measures, rates, latency_seconds)
    run_session(_chosen(all_own(), only), plan, results=results, baseline=None)


@app.command()
def peers(
    only: Only = "",
    jobs: Jobs = JOBS_DEFAULT,
    runs: Runs = RUNS_DEFAULT,
    measures: Measures = MEASURES_DEFAULT,
    rates: Rates = RATES_DEFAULT,
    latency_seconds: Seconds = LATENCY_SECONDS_DEFAULT,
    results: Results = PEERS_PATH,
) -> None:
    """Measures the peers alone; the results go to a JSON file and a Markdown file beside it."""
    plan = _plan(jobs, runs, measures, rates, latency_seconds)
    run_session(_chosen(all_peers(), only), plan, results=results, baseline="bullmq")


def _plan(jobs: int, runs: int, measures: str, rates: str, latency_seconds: float) -> Plan:
    chosen = tuple(_known("--measures", name, MEASURES) for name in _names(measures))
    return Plan(
        jobs=jobs,
        runs=runs,
        latency_seconds=latency_seconds,
        rates=tuple(map(_whole_number, _names(rates))) if "latency" in chosen else (),
        measures=chosen,
    )


def run_session(
    programs: list[Program], plan: Plan, *, results: Path, baseline: str | None
) -> None:
    """Measures, shows and writes. A program called `baseline` gives the ratios their 1."""
    console = Console()
    facts = machine_facts()

    def notify(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    if baseline not in {program.name for program in programs}:
        baseline = None
    found = measure_all(programs, plan, notify)
    write_results(results, plan, facts, found)
    write_markdown(results.with_suffix(".md"), plan, facts, found, baseline)
    print_table(console, found, plan, baseline)
    notify(f"written: {results}")


def run_part(part: Part, *, is_quick: bool, results: Path) -> None:
    """Measures one part, shows what was found and writes it into the results file."""
    console = Console()
    console.print(f"{part.name}: {part.help}", markup=False, highlight=False)
    found = measure_part(part, is_quick=is_quick)
    write_part(results, part.name, found)
    console.print_json(data=found)


def show_targets(results: Path) -> None:
    """Prints the targets, and writes them into the results file and beside it."""
    found = targets(read_document(results))
    document = write_sections(results, {"targets": [target._asdict() for target in found]})
    write_targets(results.with_name(f"{results.stem}-targets.md"), document, found)
    print_targets(Console(), found)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _known(option: str, name: str, known: tuple[str, ...]) -> str:
    if name not in known:
        raise typer.BadParameter(f"{option}: {name!r} is unknown; known are {', '.join(known)}")
    return name


def _whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise typer.BadParameter(f"--rates: {text!r} is not a positive whole number")
    return int(text)


def _chosen(programs: list[Program], only: str) -> list[Program]:
    names = tuple(program.name for program in programs)
    wanted = [_known("--only", name, names) for name in _names(only)]
    return [program for program in programs if not wanted or program.name in wanted]


def _end(number: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds like Ctrl-C, so that no server stays behind."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    app()
