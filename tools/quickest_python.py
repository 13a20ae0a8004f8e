"""Prints which of the Pythons given is the quickest one that can make an environment and compile.

    python tools/quickest_python.py python3 python3.12 /usr/bin/python3

Owns the choice. Refuses to know what it is for. The same version differs by a tenth: distributions
build theirs with profiles of real programs, a plain build from source has none. The first one
stays unless another is quicker by more than `MARGIN`. Runs on any Python 3, alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Final

MARGIN: Final = 0.05  # of its time: less is noise
ROUNDS: Final = 5  # of each try
TRIES: Final = 3  # of each Python, in turn; the best round of all counts
TRY_SECONDS: Final = 60.0

# Looks up, calls, makes and formats, as an engine does. Prints the best round's seconds of
# processor time.
PROBE: Final = """
import sys, time
assert sys.version_info >= (3, 11)
import ensurepip, venv, pathlib, sysconfig
assert (pathlib.Path(sysconfig.get_paths()["include"]) / "Python.h").exists()

class Thing:
    __slots__ = ("name", "number")
    def __init__(self, name, number):
        self.name, self.number = name, number

def work():
    found = {}
    for number in range(30_000):
        thing = Thing(f"user-{number % 100}", number)
        found[thing.name] = found.get(thing.name, 0) + thing.number
    return ",".join(sorted(found))

def timed():
    begun = time.process_time()
    work()
    return time.process_time() - begun

print(min(timed() for _ in range(ROUNDS)))
""".replace("ROUNDS", str(ROUNDS))


def seconds_of(python: str) -> float | None:
    """What the probe takes there; None when it is not there, too old or not complete."""
    path = shutil.which(python)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, "-c", PROBE], capture_output=True, text=True, timeout=TRY_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return float(done.stdout) if done.returncode == 0 else None


def quickest(candidates: list[str]) -> str | None:
    """The first one, or another that is clearly quicker; None when none is usable."""
    seconds: dict[str, float] = {}
    for _ in range(TRIES):
        for candidate in candidates:
            found = seconds_of(candidate)
            if found is not None:
                seconds[candidate] = min(found, seconds.get(candidate, found))
    best: str | None = None
    for candidate in candidates:
        if candidate not in seconds:
            continue
        if best is None or seconds[candidate] < seconds[best] * (1 - MARGIN):
            best = candidate
    return best


def main() -> int:
    """The exit code: 1 when none is usable, which then says nothing."""
    found = quickest(sys.argv[1:])
    if found is None:
        return 1
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
