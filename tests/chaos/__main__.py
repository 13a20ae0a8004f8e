"""`python -m tests.chaos [--long] [--jobs N] [--kills N] [--seed S] [--mutations]`.

Owns the command line, the folders and the exit code: 0 when every run is clean and every mutation
is caught. Refuses to know how a run works.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.chaos.engine import Engine, EngineFailed
from tests.chaos.mutations import MUTATIONS, Mutation, scratch_copy
from tests.chaos.run import SEED, Outcome, Plan, run
from tidemill.agents.embedded.ports import free_port

SOURCE: Final = Path(__file__).resolve().parents[2]
LONG_JOBS: Final = 200_000
LONG_KILLS: Final = 30
LONG_SECONDS: Final = 900.0  # requests, kills and the outage fit in, at a rate that a laptop bears
OUTAGE_SECONDS: Final = 600.0  # ClickHouse away
MUTATED_QUIET_SECONDS: Final = 30.0  # lost jobs never end; a rescue would come within this


def engine_in(folder: Path, source: Path = SOURCE, *, with_history: bool = True) -> Engine:
    """An engine on free ports."""
    return Engine(
        folder, kafka_port=free_port(), clickhouse_port=free_port(), http_port=free_port(),
        source=source, with_history=with_history,
    )


def chaos(plan: Plan, folder: Path, source: Path = SOURCE) -> Outcome:
    """One run from an empty folder, everything closed afterwards."""
    engine = engine_in(folder, source, with_history=plan.with_history)
    try:
        engine.start()
        outcome = run(engine, plan)
        outcome.stop_codes = engine.stop()
        return outcome
    finally:
        engine.close()


def mutated(mutation: Mutation, folder: Path) -> bool:
    """Whether the checker catches this bug."""
    source = scratch_copy(SOURCE, folder / "source", mutation.patches)
    plan = Plan(
        jobs=mutation.jobs, seconds=mutation.seconds, faults=mutation.faults, with_history=False,
        quiet_seconds=MUTATED_QUIET_SECONDS,
    )
    print(f"mutation {mutation.name}: {mutation.meaning}")
    try:
        outcome = chaos(plan, folder / "engine", source)
    except EngineFailed as error:
        print(f"  the engine did not survive its bug: {str(error)[:300]}")
        return False
    caught = outcome.report.kinds & mutation.caught_by
    print("  " + outcome.report.text().replace("\n", "\n  "))
    print(f"  {'caught by ' + ', '.join(sorted(caught)) if caught else 'NOT CAUGHT'}")
    return bool(caught)


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--long", action="store_true", help="200,000 jobs, 30 kills, an outage")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--outage", type=float, help="seconds in which ClickHouse is away")
    parser.add_argument("--mutations", action="store_true", help="only the known bugs")
    parser.add_argument("--mutation", choices=[one.name for one in MUTATIONS])
    parser.add_argument("--no-history", action="store_true", help="without ClickHouse")
    given = parser.parse_args(arguments)
    short = Plan()
    plan = Plan(
        jobs=given.jobs or (LONG_JOBS if given.long else short.jobs),
        kills=given.kills or (LONG_KILLS if given.long else short.kills),
        seconds=given.seconds or (LONG_SECONDS if given.long else short.seconds),
        seed=given.seed,
        outage_seconds=given.outage or (
            OUTAGE_SECONDS if given.long and not given.no_history else 0.0
        ),
        with_history=not given.no_history,
    )
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="tidemill-chaos-") as name:
        folder = Path(name)
        if not given.mutations and given.mutation is None:
            began = time.monotonic()
            outcome = chaos(plan, folder / "engine")
            print(outcome.report.text())
            kills = sum(death.exit_code == -signal.SIGKILL for death in outcome.deaths)
            print(
                f"{kills} kill -9, {len(outcome.deaths)} deaths; all ended "
                f"{outcome.ended_seconds:.1f} s after the last request; took "
                f"{time.monotonic() - began:.0f} s; seed {plan.seed}"
            )
            if not outcome.report.is_clean:
                failed.append("the engine")
        for mutation in MUTATIONS:
            wanted = given.mutation in (None, mutation.name)
            if (given.long or given.mutations or given.mutation) and wanted and not any(
                mutated(mutation, folder / f"{mutation.name}-{number}")
                for number in range(mutation.tries)
            ):
                failed.append(mutation.name)
    print(f"failed: {', '.join(failed)}" if failed else "all as it should be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
