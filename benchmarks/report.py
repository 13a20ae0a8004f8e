"""Shows results: one table on the terminal, the same one as Markdown.

Owns: columns, formats and footnotes, and the table of targets. It refuses to measure or to compute
anything but ratios to the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Measured, Plan
from benchmarks.targets import Target

NOTHING = "–"

# Above this share of all cores, something else on the machine makes numbers doubtful.
OTHERS_BUSY_PERCENT = 10.0


def columns(plan: Plan, baseline: str | None) -> list[str]:
    names = ["program", "drain jobs/s"]
    if baseline:
        names.append(f"× {baseline}")
    names.append("enqueue jobs/s")
    if baseline:
        names.append(f"× {baseline}")
    return names + [f"p50/p99 ms at {rate:,}/s" for rate in plan.rates]


def rows(results: Mapping[str, Measured], plan: Plan, baseline: str | None) -> list[list[str]]:
    """One row a program that ran, the quickest drain first."""
    base = results.get(baseline) if baseline else None
    able = [found for found in results.values() if found.skipped is None]
    able.sort(key=lambda found: found.median("drain") or 0.0, reverse=True)
    return [_row(found, plan, base if baseline else None, bool(baseline)) for found in able]


def _row(found: Measured, plan: Plan, base: Measured | None, has_baseline: bool) -> list[str]:
    cells = [found.title]
    for measure in ("drain", "enqueue"):
        median = found.median(measure)
        cells.append(f"{median:,.0f}" if median else NOTHING)
        if has_baseline:
            theirs = base.median(measure) if base else None
            cells.append(f"{median / theirs:.2f}" if median and theirs else NOTHING)
    for rate in plan.rates:
        latency = found.median_latency(rate)
        cells.append(f"{latency.p50_ms:.1f} / {latency.p99_ms:.1f}" if latency else NOTHING)
    return cells


def notes(results: Mapping[str, Measured]) -> list[str]:
    """What was skipped or could not be measured, and why."""
    lines = [
        f"{found.title}: skipped: {found.skipped}"
        for found in results.values()
        if found.skipped is not None
    ]
    for found in results.values():
        lines += [f"{found.title}: {line}" for line in found.not_measured]
    busy = max(
        (share for found in results.values() for share in found.others_busy_percent), default=0.0
    )
    if busy > OTHERS_BUSY_PERCENT:
        lines.append(f"noisy: something else kept up to {busy:.0f} % of the machine busy")
    return lines


def print_table(
    console: Console, results: Mapping[str, Measured], plan: Plan, baseline: str | None
) -> None:
    table = Table(title=f"{plan.jobs:,} jobs, median of {plan.runs}")
    for number, name in enumerate(columns(plan, baseline)):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows(results, plan, baseline):
        table.add_row(*row)
    console.print(table)
    for line in notes(results):
        console.print(line, markup=False)


def write_markdown(
    path: Path,
    plan: Plan,
    facts: Mapping[str, Any],
    results: Mapping[str, Measured],
    baseline: str | None,
) -> None:
    """The table with the machine above it and the settings below it."""
    lines = [
        "# Benchmark results",
        "",
        f"{plan.jobs:,} no-op jobs, median of {plan.runs} run(s) in turn; definitions in "
        "`benchmarks/program.py`.",
        "",
        f"Machine: {facts['cores']} cores ({facts['cpu']}), {facts['memory_gib']} GiB, "
        f"{facts['system']}, Python {facts['python']}; load average before: "
        f"{', '.join(map(str, facts['load_average_before']))}.",
        "",
        *_markdown_table(columns(plan, baseline), rows(results, plan, baseline)),
        "",
    ]
    lines += [f"- {line}" for line in notes(results)]
    lines += ["", "## Settings", ""]
    for found in results.values():
        settings = "; ".join(f"{name}: {value}" for name, value in found.settings.items())
        lines.append(f"- **{found.title}**: {settings}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _markdown_table(names: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] + ["---:"] * (len(names) - 1)
    return ["| " + " | ".join(row) + " |" for row in (names, rule, *cells)]


TARGET_COLUMNS = ("target", "wanted", "found", "verdict")


def print_targets(console: Console, found: Sequence[Target]) -> None:
    table = Table(title="targets")
    for number, name in enumerate(TARGET_COLUMNS):
        table.add_column(name, justify="right" if number in (1, 2) else "left")
    for target in found:
        table.add_row(*target)
    console.print(table)


def write_targets(path: Path, document: Mapping[str, Any], found: Sequence[Target]) -> None:
    """The targets as Markdown, with what each part found and how loaded the machine was."""
    lines = ["# Targets", "", *_markdown_table(TARGET_COLUMNS, found), "", "## Parts", ""]
    for name, part in document.get("parts", {}).items():
        facts = "; ".join(f"{key}: {value}" for key, value in part.items())
        lines.append(f"- **{name}**: {facts}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
