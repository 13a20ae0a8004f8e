"""docs/STATE_MACHINE.md: the life of a job as a diagram and a table, from TRANSITIONS.

Owns the layout. Refuses to know any transition.
"""

from __future__ import annotations

from typing import Final

from tidemill.schemas.words import AUDIT_KINDS, TERMINAL_STATES, EventKind, State
from tidemill.streams.lifecycle import NOTES, TRANSITIONS
from tools.generate.words import EVENT_MEANINGS, STATE_MEANINGS

HEAD: Final = """# The life of a job

Written by `make docs` from `streams/lifecycle.py` (`TRANSITIONS`); a test keeps it fresh.

Arrows carry the event that leads from one state to the next. An event that is not drawn cannot
happen in that state. Every event but the audit ones has the next `sequence` of its job.
"""


def _diagram() -> list[str]:
    edges: dict[tuple[str, str], list[str]] = {}
    for (before, kind), after in TRANSITIONS.items():
        start = "[*]" if before is None else before.value
        edges.setdefault((start, after.value), []).append(kind.value)
    lines = ["```mermaid", "stateDiagram-v2"]
    for (begin, end), kinds in edges.items():
        lines.append(f"    {begin} --> {end}: {', '.join(kinds)}")
    lines += [f"    {state.value} --> [*]" for state in State if state in TERMINAL_STATES]
    return [*lines, "```"]


def _table() -> list[str]:
    lines = ["| state | event | next state |", "|---|---|---|"]
    for (before, kind), after in TRANSITIONS.items():
        begin = "(none)" if before is None else before.value
        lines.append(f"| {begin} | {kind.value} | {after.value} |")
    return lines


def _of(states: tuple[State | None, ...]) -> str:
    """In which states an event may be told that changes nothing."""
    named = "known" if set(State) <= set(states) else ""
    unknown = "not known" if None in states else ""
    return " or ".join(word for word in (named, unknown) if word)


def render() -> str:
    """The Markdown text."""
    states = [f"| {state.value} | {STATE_MEANINGS[state]} |" for state in State]
    events = [f"| {k.value} | {EVENT_MEANINGS[k]} |" for k in EventKind if k not in AUDIT_KINDS]
    audits = [
        f"| {k.value} | {EVENT_MEANINGS[k]} | {_of(NOTES[k])} |"
        for k in EventKind if k in AUDIT_KINDS
    ]
    parts = [
        HEAD.rstrip(), "", *_diagram(), "",
        "## States", "", "| state | meaning |", "|---|---|", *states, "",
        "## Events", "", "| event | meaning |", "|---|---|", *events, "",
        "Audit events: something arrived and changed nothing. They have no sequence.", "",
        "| event | meaning | of a job that is |", "|---|---|---|", *audits, "",
        "## Every transition", "", *_table(),
    ]
    return "\n".join(parts) + "\n"
