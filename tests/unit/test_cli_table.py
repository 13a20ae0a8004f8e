"""Tables: nothing is cut without a word, ids stay whole, and widths are a terminal's."""

from __future__ import annotations

import pytest

from tidemill.cli.asking import table_of
from tidemill.cli.output import cell_of
from tidemill.cli.table import Column, lines_of, places, wrapped

ID = "0e6f0c5e-3c1f-4f57-9a76-3d9a7d0a2f11"
LONG = "the payload field 'name' is missing, and so is what was asked for in the second place"
COLUMNS = [
    Column("job_id", is_whole=True), Column("type"), Column("error_message"),
    Column("run_ms", is_number=True),
]
ROWS = [[ID, "greet", LONG, "12345678901234567890"], ["short", "t", "", "7"]]


def test_without_a_bound_each_row_is_a_line() -> None:
    lines = list(lines_of(COLUMNS, ROWS, width=None))
    assert len(lines) == 3
    assert ID in lines[1]
    assert LONG in lines[1]
    assert lines[1].endswith("12345678901234567890")
    assert lines[2].endswith("                   7")


@pytest.mark.parametrize("width", [200, 120, 100, 90, 80])
def test_what_fits_after_wrapping_is_wrapped(width: int) -> None:
    lines = list(lines_of(COLUMNS, ROWS, width=width))
    assert all(places(line) <= width for line in lines)
    assert any(ID in line for line in lines)
    assert any("12345678901234567890" in line for line in lines)
    assert not any("---" in line for line in lines)


@pytest.mark.parametrize("width", [60, 40, 20, 1])
def test_what_does_not_fit_is_told_row_by_row(width: int) -> None:
    lines = list(lines_of(COLUMNS, ROWS, width=width))
    assert lines[0] == "--- 1 ---"
    text = "".join(line.replace(" ", "") for line in lines)
    for cell in (ID, LONG, "12345678901234567890", "short"):
        assert cell.replace(" ", "") in text


def test_columns_that_can_be_spared_are_named() -> None:
    lines = list(lines_of(COLUMNS, ROWS, width=66, spare=("run_ms", "type")))
    assert lines[0].split() == ["job_id", "type", "error_message"]
    assert lines[-1].startswith("(not shown: run_ms;")
    whole = lines_of(COLUMNS, ROWS, width=99, spare=("type",))
    assert not any("not shown" in line for line in whole)


@pytest.mark.parametrize("text", ["\u6f22\u5b57" * 30, "\U0001f600" * 30, "a" * 61, "a b " * 20])
@pytest.mark.parametrize("room", [1, 7, 20])
def test_a_wrapped_text_loses_nothing(text: str, room: int) -> None:
    pieces = list(wrapped(text, room))
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    assert all(places(piece) <= max(room, 2) for piece in pieces)


def test_wide_letters_take_two_places() -> None:
    lines = list(
        lines_of([Column("a"), Column("b")], [["\u6f22\u5b57", "x"], ["abc", "y"]], width=80)
    )
    assert [places(line) for line in lines] == [7, 7, 7]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.042, "0.042"), (1e-9, "1e-09"), (0.1 + 0.2, "0.30000000000000004"), (5.0, "5"),
        (2**64 - 1, "18446744073709551615"), (float("nan"), "nan"), (None, ""), ("", ""),
        (True, "yes"), ("a\nb", "a\\nb"), ("\x1b[31m", "\\x1b[31m"), ("\u202eabc", "\\u202eabc"),
        ([1, "a"], '[1,"a"]'),
    ],
)
def test_values_as_text(value: object, shown: str) -> None:
    assert cell_of(value) == shown


def test_null_and_text_are_told_apart() -> None:
    columns, rows = table_of(
        b"a\tb\\tc\tn\nString\tNullable(String)\tLowCardinality(Nullable(UInt8))\n"
        b"\t\\N\t1\nNULL\t\\\\N\t\\N\n"
    )
    assert [column.name for column in columns] == ["a", "b\\tc", "n"]
    assert [column.is_number for column in columns] == [False, False, True]
    assert rows == [["''", "NULL", "1"], ["'NULL'", "\\N", "NULL"]]
