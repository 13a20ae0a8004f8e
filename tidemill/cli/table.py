"""Tables as lines of text: columns that fit, nothing cut without a word.

Owns the layout. Refuses to know where the lines go and what the cells mean. Widths are those of a
terminal, where a character of Chinese or an emoji takes two places. No bound on the width (a pipe)
means that every row is one line.

Where a table is too wide, columns that the caller can spare are left out, and a line names them;
then text is wrapped; then each row is shown as a list of its fields. Ids, numbers and instants are
never wrapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

GAP: Final = "  "
WRAPPED_MIN: Final = 12  # places that wrapped text needs to be read
LISTED_MIN: Final = 20  # the same, beside the name of its field


@dataclass(frozen=True, slots=True)
class Column:
    """One column: how it is headed, and what may be done to it."""

    name: str
    is_number: bool = False
    is_whole: bool = False
    """Never wrapped: it is copied, or read as one figure."""


def lines_of(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None,
    spare: Sequence[str] = (),
) -> Iterator[str]:
    """The table's lines; the first one is the head. `spare`: columns to leave out, first to last.

    Cells are plain text without line ends. `width` None: no bound.
    """
    left_out: list[str] = []
    shown = list(range(len(columns)))
    if width is not None and not _fits([columns[i] for i in shown], rows, shown, width):
        shown, left_out = _without_spare(columns, rows, width, spare)
    chosen = [columns[i] for i in shown]
    cells = [[row[i] for i in shown] for row in rows]
    widths = _widths(chosen, cells, width)
    if widths is not None:
        yield from _table(chosen, cells, widths)
        if left_out:
            note = f"(not shown: {', '.join(left_out)}; a wider terminal, a pipe or --json has all)"
            yield from wrapped(note, width or places(note))
        return
    assert width is not None
    yield from _records(columns, rows, width)


def _without_spare(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int, spare: Sequence[str]
) -> tuple[list[int], list[str]]:
    shown = list(range(len(columns)))
    left_out: list[str] = []
    for name in spare:
        found = next((i for i in shown if columns[i].name == name), None)
        if found is None:
            continue
        shown.remove(found)
        left_out.insert(0, name)
        if _fits([columns[i] for i in shown], rows, shown, width):
            return shown, left_out
    return list(range(len(columns))), []


def _fits(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], shown: Sequence[int], width: int
) -> bool:
    return _widths(columns, [[row[i] for i in shown] for row in rows], width) is not None


def _widths(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None
) -> list[int] | None:
    """Places of each column; None when no wrapping makes them fit."""
    natural = [
        max([places(column.name), *(places(row[i]) for row in rows)])
        for i, column in enumerate(columns)
    ]
    if width is None:
        return natural
    least = [
        natural[i] if column.is_whole or column.is_number
        else min(natural[i], max(WRAPPED_MIN, places(column.name)))
        for i, column in enumerate(columns)
    ]
    room = width - len(GAP) * (len(columns) - 1)
    if sum(least) > room:
        return None
    while (over := sum(natural) - room) > 0:
        # The widest gives way first, down to the next one's width.
        widest = max(
            (i for i in range(len(natural)) if natural[i] > least[i]), key=lambda i: natural[i]
        )
        rest = [n for i, n in enumerate(natural) if i != widest and n < natural[widest]]
        goal = max([least[widest], natural[widest] - over, *(rest and [max(rest)])])
        natural[widest] = min(goal, natural[widest] - 1)
    return natural


def _table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], widths: Sequence[int]
) -> Iterator[str]:
    yield _line(columns, [column.name for column in columns], widths)
    for row in rows:
        parts = [
            [cell] if places(cell) <= widths[i] else list(wrapped(cell, widths[i]))
            for i, cell in enumerate(row)
        ]
        for number in range(max(map(len, parts), default=1)):
            pieces = [part[number] if number < len(part) else "" for part in parts]
            yield _line(columns, pieces, widths)


def _line(columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = []
    for i, column in enumerate(columns):
        room = " " * max(0, widths[i] - places(cells[i]))
        padded.append(room + cells[i] if column.is_number else cells[i] + room)
    return GAP.join(padded).rstrip()


def _records(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int
) -> Iterator[str]:
    """Each row as a list of its fields: what no width holds goes on below its own beginning."""
    head = max((places(column.name) for column in columns), default=0)
    head = min(head, max(0, width - LISTED_MIN - len(GAP)))
    for number, row in enumerate(rows, 1):
        yield f"--- {number} ---"
        for column, cell in zip(columns, row, strict=True):
            label = column.name + " " * max(0, head - places(column.name))
            room = max(LISTED_MIN, width - head - len(GAP))
            is_whole = column.is_whole or column.is_number
            parts = [cell] if is_whole or places(cell) <= room else list(wrapped(cell, room))
            yield (label + GAP + parts[0]).rstrip()
            yield from (" " * head + GAP + part for part in parts[1:])


def wrapped(text: str, room: int) -> Iterator[str]:
    """The text in pieces of at most `room` places, at spaces where there are some."""
    rest = text
    while places(rest) > room:
        cut, used = 0, 0
        for letter in rest:
            used += places(letter)
            if used > room and cut:
                break
            cut += 1
        space = rest.rfind(" ", 1, cut + 1)
        if space > cut // 2:
            yield rest[:space]
            rest = rest[space + 1:]
        else:
            yield rest[:cut]
            rest = rest[cut:]
    yield rest


def places(text: str) -> int:
    """How many places of a terminal the text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
