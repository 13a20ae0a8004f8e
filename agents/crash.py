"""Crash points: where a test may end this process between two steps, as kill -9 would.

Owns the names of the step boundaries and the one function that stands at them. Refuses to know
what is done before and after; docs/DELIVERY.md has one row for each name.

`TIDEMILL_CRASH_AT=<name>` ends the process the first time it comes to `<name>`; `<name>:<n>` the
n-th time; `<name>@<file>` the first time that the file is there. Without the variable `crash_point`
is an empty function, chosen once at import.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

CRASH_VARIABLE: Final = "TIDEMILL_CRASH_AT"
CRASH_EXIT_CODE: Final = 137  # what a shell reports after kill -9

CRASH_POINTS: Final = {
    "ledger.before_begin": "decided, no transaction yet",
    "ledger.after_produce_before_commit": "all records produced, not committed",
    "ledger.after_commit_before_apply": "committed, live state not changed yet",
    "ledger.after_apply_before_ack": "live state changed, inputs not acked",
    "worker.after_run_before_outcome": "the handler ended, its outcome is not produced",
    "worker.after_outcome_before_commit": "the outcome is durable, the ready offset is not",
    "sink.before_intents": "rows are ready, their intents are not written down",
    "sink.after_intents_before_insert": "intents are durable, nothing is inserted",
    "sink.after_insert_before_commit": "inserted, offsets not committed",
}
"""Every crash point: its name, and what holds there."""


class UnknownCrashPoint(ValueError):
    """The variable or a caller names a crash point that is not in `CRASH_POINTS`."""


def _never(name: str) -> None:
    """Stand-in when no crash is asked for."""


def crash_function(asked: str, end: Callable[[int], object] = os._exit) -> Callable[[str], None]:
    """The function for `asked`, the text of the variable; "" gives the empty one.

    Raises UnknownCrashPoint for a name or a count that means nothing: a test that waits for a
    crash which cannot come would pass for the wrong reason.
    """
    if not asked:
        return _never
    place, _, file = asked.partition("@")
    wanted, _, count_text = place.partition(":")
    if wanted not in CRASH_POINTS or (count_text and not count_text.isdecimal()):
        known = ", ".join(CRASH_POINTS)
        raise UnknownCrashPoint(
            f"{CRASH_VARIABLE}={asked!r}: write <name>, <name>:<n> or <name>@<file>; names: {known}"
        )
    left = max(1, int(count_text or 1))

    def crash_at(name: str) -> None:
        nonlocal left
        if name not in CRASH_POINTS:
            raise UnknownCrashPoint(f"crash point {name!r} is not in CRASH_POINTS")
        if name == wanted and (not file or Path(file).exists()):
            left -= 1
            if left == 0:
                end(CRASH_EXIT_CODE)

    return crash_at


crash_point: Final = crash_function(os.environ.get(CRASH_VARIABLE, ""))
"""Call it with the boundary's name, between two steps."""
