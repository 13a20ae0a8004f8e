"""How answers look: tables for people, JSON for programs.

Owns the console, tables and the JSON form. Refuses to know what is shown. Colours go away by
themselves with NO_COLOR and when the output is no terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson


class CliError(Exception):
    """A command cannot go on. The text says why and the way out."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE, default=str)
    sys.stdout.write(text.decode())


def print_table(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, title: str | None = None
) -> None:
    """Rows as a table on stdout; a pipe gets full width."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=False)
    if not console.is_terminal:
        # Nothing may be cut when a program or a file reads it.
        console = Console(width=max(console.width, 400), soft_wrap=False)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    shown = list(rows)
    for column in columns:
        is_number = any(isinstance(row.get(column), int | float) for row in shown)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in shown:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    console.print(table)


def _cell(value: object) -> str:
    from rich.markup import escape

    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return escape(str(value))
