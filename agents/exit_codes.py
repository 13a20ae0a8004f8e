"""How processes of ours end: the exit codes of roles and of the command line.

Owns the numbers; docs/REFERENCE.md lists them. Refuses to know who uses which.
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
NOT_FOUND: Final = 4
CHECK_FAILED: Final = 5
TIMED_OUT: Final = 6
JOB_NOT_SUCCEEDED: Final = 7
CONFLICT: Final = 8
IN_USE: Final = 9
MODULES: Final = 64
GAP: Final = 65
FAIL_STOP: Final = 70
DAMAGED: Final = 74
RECYCLED: Final = 75
CONFIG: Final = 78
TOO_OLD: Final = 79
INTERRUPTED: Final = 130

MEANINGS: Final = {
    OK: "Done.",
    FAILED: "Something failed that has no code of its own; the message says what.",
    USAGE: "The command line cannot be understood.",
    UNREACHABLE: "Kafka or ClickHouse does not answer.",
    NOT_FOUND: "There is no such job.",
    CHECK_FAILED: "A check of `doctor` failed, or `topics plan` found differences.",
    TIMED_OUT: "What was waited for did not happen in time.",
    JOB_NOT_SUCCEEDED: "`enqueue --wait`: the job ended, and not as succeeded.",
    CONFLICT: "What exists does not fit, such as another number of partitions. A supervisor does "
    "not try again.",
    IN_USE: "A port or a data folder is used by another process.",
    MODULES: "A worker's modules or queues cannot be used. A supervisor does not try again.",
    GAP: "Records of an input were deleted before they were read; the log names them. A supervisor "
    "does not try again.",
    FAIL_STOP: "A role met what it must not survive; the log has the reason. Start it again.",
    DAMAGED: "What was written cannot be read any more, in Kafka's folder or a topic; the message "
    "names it. A supervisor does not try again.",
    RECYCLED: "A worker ended to be started afresh, after handlers that could not be stopped.",
    CONFIG: "A setting or a module of handlers cannot be used. A supervisor does not try again.",
    TOO_OLD: (
        "A ledger met a record or a row that only a newer version reads; the log names the "
        "version. A supervisor does not try again."
    ),
    INTERRUPTED: "Another command was stopped by Ctrl-C; a role ends with 0.",
}

HOPELESS: Final = frozenset({USAGE, CONFLICT, MODULES, CONFIG, TOO_OLD, GAP, DAMAGED})
"""Codes after which starting again would end the same way, also of what has been ready before."""

PASSING: Final = frozenset({UNREACHABLE, FAIL_STOP, RECYCLED})
"""Codes of a role that waits for others or asks for a fresh start: it is always started again."""
