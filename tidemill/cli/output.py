"""How answers look: tables for people, JSON for programs.

Owns the way from values to text, and what goes to stdout. Refuses to know what is shown. Colours go
away by themselves with NO_COLOR and when the output is no terminal. Text of strangers is made plain
here, so that no command has to think of it.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from tidemill.agents.plain_text import plain, plain_json
from tidemill.cli.table import Column, lines_of

WHOLE: Final = ("_id", "_at", "bootstrap", "environment")
"""Ends of names whose values are copied or compared as one word."""
TERMINAL_COLUMNS: Final = 80  # where a terminal does not tell its width


class CliError(Exception):
    """A command cannot go on. The text says why and the way out."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE, default=str)
    sys.stdout.write(plain_json(text.decode()))


def print_table(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    title: str | None = None,
    spare: Sequence[str] = (),
) -> None:
    """Rows as a table on stdout. `spare`: columns that a narrow terminal may leave out."""
    shown = list(rows)
    heads = [
        Column(
            name,
            is_number=_are_numbers(row.get(name) for row in shown),
            is_whole=name.endswith(WHOLE),
        )
        for name in columns
    ]
    cells = [[cell_of(row.get(name)) for name in columns] for row in shown]
    print_lines(heads, cells, title=title, spare=spare)


def print_lines(
    columns: Sequence[Column],
    cells: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    spare: Sequence[str] = (),
) -> None:
    """A table whose cells are text already; a pipe gets every row on one line, uncut."""
    lines = lines_of(columns, cells, width=terminal_width(), spare=spare)
    if title is not None:
        sys.stdout.write(f"{title}\n")
    for number, line in enumerate(lines):
        text = f"\x1b[1m{line}\x1b[0m" if number == 0 and _has_color() else line
        sys.stdout.write(f"{text}\n")


def terminal_width() -> int | None:
    """Places of a line; None when stdout is no terminal."""
    if not sys.stdout.isatty():
        return None
    return max(1, shutil.get_terminal_size((TERMINAL_COLUMNS, 24)).columns)


def _has_color() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _are_numbers(values: Iterable[object]) -> bool:
    found = [value for value in values if value is not None]
    return bool(found) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in found
    )


def cell_of(value: object) -> str:
    """A value as text on one line: numbers in full, None as nothing."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float() if math.isfinite(value) and value.is_integer() and abs(value) < 2**53:
            return str(int(value))
        case list() | dict():
            return plain(orjson.dumps(value, default=str).decode())
        case _:
            return plain(str(value))
