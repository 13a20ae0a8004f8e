"""`tidemill sql`: a question to ClickHouse, and its answer without a loss.

Owns the options and the way from ClickHouse's text to cells. Refuses to know who answers. Values
are never made numbers of Python on the way: the text is ClickHouse's own.
"""

from __future__ import annotations

import re
import sys
from typing import Annotated, Final

import orjson
import typer

from tidemill.agents import exit_codes
from tidemill.agents.plain_text import LINES, plain, plain_json
from tidemill.cli import options as o
from tidemill.cli.output import CliError, print_lines
from tidemill.cli.table import Column

app = typer.Typer()

TABLE_FORMAT: Final = "TabSeparatedWithNamesAndTypes"
ROWS_FORMAT: Final = "JSONEachRow"
NULL: Final = "\\N"  # as this format writes it; the text \N has its backslash doubled
EXACT: Final = {
    # As text: JSON has no NaN, and ClickHouse would write null, which is something else.
    "output_format_json_quote_denormals": "1",
}
_NUMBER: Final = re.compile(
    r"^(?:Nullable\(|LowCardinality\()*(?:U?Int\d+|B?Float\d+|BFloat16|Decimal)"
)
_WHOLE: Final = re.compile(r"^(?:Nullable\(|LowCardinality\()*(?:Date|Time|UUID|IPv|Enum|Bool)")
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "0": "\0"}


@app.command(rich_help_panel="Jobs")
def sql(
    query: Annotated[str, typer.Argument(metavar="SQL", help="A SELECT; - reads stdin.")],
    clickhouse: o.ClickHouse = None,
    as_json: o.AsJson = False,
    output_format: Annotated[
        str | None,
        typer.Option("--format", help="A format of ClickHouse: CSV, TSV, Parquet, Vertical, …"),
    ] = None,
) -> None:
    """Ask ClickHouse, read-only. Values are shown in full, as ClickHouse writes them."""
    from tidemill.cli.jobs import clickhouse_address
    from tidemill.sql import ask

    text = sys.stdin.read() if query == "-" else query
    if not text.strip():
        raise CliError("the query is empty: write a SELECT", exit_codes.USAGE)
    asked = output_format or (ROWS_FORMAT if as_json else TABLE_FORMAT)
    answer = ask(
        clickhouse_address(clickhouse), text, fmt=asked, is_read_only=True,
        settings=EXACT if as_json else {},
    )
    if output_format is not None or answer.fmt != asked:
        # A FORMAT in the query wins.
        _write_as_it_is(answer.data)
    elif as_json:
        _write_rows(answer.data)
    else:
        print_lines(*table_of(answer.data))


def _write_as_it_is(data: bytes) -> None:
    if sys.stdout.isatty():
        sys.stdout.write(plain(data.decode("utf-8", "backslashreplace"), LINES))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def _write_rows(data: bytes) -> None:
    """One document of all rows, each as ClickHouse wrote it."""
    lines = [line for line in data.split(b"\n") if line]
    for line in lines:
        _refuse_no_row(line)
    body = b",\n  ".join(lines).decode("utf-8", "backslashreplace")
    sys.stdout.write(plain_json(f"[\n  {body}\n]\n") if lines else "[]\n")


def _refuse_no_row(line: bytes) -> None:
    from tidemill.sql import SqlError

    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        # An answer that began well may end with the text of an error.
        text = line.decode("utf-8", "replace")
        raise SqlError(f"the answer ends in the middle: {text}", is_reachable=True) from None


def table_of(data: bytes) -> tuple[list[Column], list[list[str]]]:
    """Columns and cells of an answer in TABLE_FORMAT."""
    lines = data.decode("utf-8", "backslashreplace").split("\n")
    if lines[-1] == "":
        lines.pop()
    if len(lines) < 2:
        return [], []
    names, types = (line.split("\t") for line in lines[:2])
    columns = [
        Column(
            plain(_unescaped(name)), is_number=bool(_NUMBER.match(kind)),
            is_whole=bool(_WHOLE.match(kind)) or name.endswith("_id"),
        )
        for name, kind in zip(names, types, strict=True)
    ]
    rows = [line.split("\t") for line in lines[2:]]
    if any(len(row) != len(columns) for row in rows):
        from tidemill.sql import SqlError

        raise SqlError(f"the answer ends in the middle: {lines[-1]}", is_reachable=True)
    return columns, [[_cell(text) for text in row] for row in rows]


def _cell(text: str) -> str:
    """NULL, no text, and the text NULL are three things."""
    if text == NULL:
        return "NULL"
    value = _unescaped(text)
    return f"'{value}'" if value in ("", "NULL") else plain(value)


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), text)
