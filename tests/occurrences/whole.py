"""The whole check: all canonical zones, ten years, each minute within two days of a change.

    python -m tests.occurrences.whole [--processes 2] [ZONE ...]

Prints one line a hundred zones, and at the end what was compared. Exit code 1: something differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from itertools import product

from tests.occurrences import oracle
from tests.occurrences.oracle import DAY
from tidemill.agents import zones
from tidemill.streams.occurrences.cron import Cron
from tidemill.streams.occurrences.plan import ByCron, Fold, Gap, Plan, between

BEGIN = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
END = int(datetime(2036, 1, 1, tzinfo=UTC).timestamp())
WEEK = int(datetime(2027, 6, 7, tzinfo=UTC).timestamp())
MARGIN = 2 * DAY
PATTERNS = (
    "* * * * *", "*/15 * * * *", "@hourly", "@daily", "30 2 * * *", "0 3 * * *", "59 23 * * *",
    "15 0-4 * * *", "0 9 * * MON-FRI", "30 1,2,3 * * SUN", "0 */6 * * *", "0 2 L * *",
    "0 0 1 * *", "5/20 22-23 * * 6", "0 0 29 3,10 0",
)
RULES: list[tuple[Gap, Fold]] = list(product(("next", "skip"), ("first", "second", "both")))


def differences(
    name: str, spans: list[tuple[int, int]], patterns: tuple[str, ...] = PATTERNS,
    step: int = oracle.MINUTE,
) -> Iterator[tuple[str, int]]:
    """What differs, in words, and how many instants were compared, for each comparison."""
    zone = zones.zone(name)
    pairs = [(text, oracle.Pattern(text), Cron(text)) for text in patterns]
    for begin, end in spans:
        seen = oracle.window(name, begin, end, step)
        for (text, pattern, cron), (gap, fold) in product(pairs, RULES):
            if not (seen.gaps or seen.repeated) and (gap, fold) != RULES[0]:
                continue  # no clock is moved: the rules cannot differ
            expected = [instant * 1_000 for instant in oracle.due(pattern, seen, gap, fold)]
            plan = Plan(ByCron(cron, zone, gap, fold))
            got = between(plan, begin * 1_000 - 1, end * 1_000 - 1, at_most=len(expected) + 10)
            said = ""
            if got != expected:
                missed = sorted(set(expected) - set(got))[:3]
                extra = sorted(set(got) - set(expected))[:3]
                said = f"{name} {text!r} {gap}/{fold}: missed {missed}, too many {extra}"
            yield said, len(expected)


def check(name: str) -> tuple[str, list[str], int, int, int]:
    spans = oracle.windows(name, BEGIN, END, MARGIN, WEEK)
    found = list(differences(name, spans))
    minutes = sum(end - begin for begin, end in spans) // oracle.MINUTE
    return name, [said for said, _ in found if said], len(found), sum(n for _, n in found), minutes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("zones", nargs="*")
    given = parser.parse_args()
    names = given.zones or oracle.zone_files()
    begun, wrong, compared, instants, minutes = time.monotonic(), 0, 0, 0, 0
    with ProcessPoolExecutor(given.processes) as pool:
        for number, (_, said, n, due, looked_at) in enumerate(pool.map(check, names), 1):
            print("\n".join(said[:5])) if said else None
            wrong += len(said)
            compared, instants, minutes = compared + n, instants + due, minutes + looked_at
            if number % 100 == 0 or number == len(names):
                print(f"{number} zones, {time.monotonic() - begun:.0f} s", flush=True)
    print(
        f"tzdata {zones.version()}: {len(names)} zones, {len(PATTERNS)} patterns, {len(RULES)} "
        f"rules, {minutes:,} minutes: {compared:,} comparisons, {instants:,} instants due, "
        f"{wrong} differ"
    )
    return min(1, wrong)


if __name__ == "__main__":
    sys.exit(main())
