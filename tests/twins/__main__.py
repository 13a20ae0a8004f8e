"""The old core and the new one over the same random inputs.

usage: python -m tests.twins OLD_CHECKOUT [--inputs N] [--rounds N] [--rows-may-differ]

Owns the comparison: what a group writes for others must be the same byte for byte, and so must its
rows, unless they are meant to differ. Then the new core is restored from the rows that the old one
wrote, and must go on in the same way. `--rounds` compares the speed instead: decisions per second
of a plain drain, old and new in turn. Each core runs in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.twins.tape import Tape
from tests.twins.worlds import record_drain, record_random

HERE: Final = Path(__file__).resolve().parent.parent.parent
REPLAY: Final = Path(__file__).with_name("replay.py")
INPUTS: Final = 100_000
DRAIN_JOBS: Final = 20_000
DECISIONS_A_JOB: Final = 3  # asked for, dispatched, ended
REPEATS: Final = 2  # of a drain in one process: the first one warms up


def replay(checkout: Path, *arguments: str) -> str:
    """What `replay.py` prints with the packages of that checkout."""
    done = subprocess.run(
        [sys.executable, "-P", str(REPLAY), *arguments],
        cwd=checkout, check=False, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(checkout), "PYTHONHASHSEED": "0"},
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr[-4_000:]}")
    return done.stdout


def differences(old: Sequence[str], new: Sequence[str], *, rows: bool) -> list[int]:
    """The numbers of the lines that differ; without `rows` those of the state do not count."""
    def seen(line: str) -> list[str]:
        words = line.split(" ")
        return words if rows or not words[0].isdigit() else [*words[:2], *words[3:]]

    found = [index for index, pair in enumerate(zip(old, new, strict=False))
             if seen(pair[0]) != seen(pair[1])]
    return found if len(old) == len(new) else [*found, min(len(old), len(new))]


def _show(tape: Path, old: Path, lines: Sequence[str], index: int) -> None:
    """The first record that differs."""
    seal = lines[index].split(" ")[0] if index < len(lines) else ""
    if not seal.isdigit():
        print(f"line {index}: {lines[index:index + 1]}")
        return
    dumps = [replay(core, str(tape), "-", "--dump", seal).splitlines() for core in (old, HERE)]
    print(f"group {seal}: {len(dumps[0])} records of the old core, {len(dumps[1])} of the new")
    for before, after in zip(*dumps, strict=False):
        if before != after:
            print(f"- {before}\n+ {after}")
            return


def compare(old: Path, tape: Tape, folder: Path, *, rows_may_differ: bool) -> bool:
    """Whether both cores say the same."""
    path = folder / "tape"
    tape.save(path)
    outs = {name: folder / name for name in ("old", "new", "handed over")}
    rows = str(folder / "rows")
    replay(old, str(path), str(outs["old"]), "--rows-out", rows)
    replay(HERE, str(path), str(outs["new"]))
    replay(HERE, str(path), str(outs["handed over"]), "--rows-in", rows)
    said = {name: out.read_text(encoding="utf-8").split("\n") for name, out in outs.items()}
    restores = sum(call[1] == "restore" for call in tape.calls)
    groups = sum(call[1] == "seal" for call in tape.calls)
    records = sum(int(line.split(" ")[3]) for line in said["old"] if line[:1].isdigit())
    print(
        f"{tape.inputs} inputs in {tape.worlds} worlds, {groups} groups, {restores} restores, "
        f"{records} public records"
    )
    is_same = True
    for name in ("new", "handed over"):
        with_rows = name == "new" and not rows_may_differ
        found = differences(said["old"], said[name], rows=with_rows)
        print(f"{name}: {len(found)} differences in {len(said['old'])} lines"
              f"{', rows included' if with_rows else ''}")
        if found:
            is_same = False
            _show(path, old, said["old"], found[0])
    return is_same


def compare_speed(old: Path, rounds: int, folder: Path) -> None:
    """Decisions per second of both, in turn; the old one twice, for the spread."""
    tape = Tape()
    record_drain(tape, DRAIN_JOBS)
    path = folder / "drain"
    tape.save(path)
    found: dict[str, list[float]] = {"old": [], "new": [], "old again": []}
    for _ in range(rounds):
        for name, core in (("old", old), ("new", HERE), ("old again", old)):
            seconds = float(replay(core, str(path), "-", "--time", str(REPEATS)))
            found[name].append(DECISIONS_A_JOB * DRAIN_JOBS / seconds)
    for name, figures in found.items():
        print(f"{name}: median {statistics.median(figures):,.0f} decisions/s of processor time, "
              f"{min(figures):,.0f} to {max(figures):,.0f}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("old", type=Path)
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--rows-may-differ", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.rounds:
            compare_speed(given.old, given.rounds, Path(folder))
            return 0
        tape = Tape()
        record_random(tape, given.inputs)
        is_same = compare(given.old, tape, Path(folder), rows_may_differ=given.rows_may_differ)
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
