"""Whole numbers as decimal text, for what is written many times a job.

Owns the text. Refuses to know what is counted.
"""

from __future__ import annotations

from typing import Final

from librt.strings import BytesWriter
from mypy_extensions import i64

_SMALL: Final = [str(number).encode() for number in range(1_000)]
_THREE_DIGITS: Final = [b"%03d" % number for number in range(1_000)]


def number_text(number: int) -> bytes:
    """Decimal; most numbers of an event are small."""
    return _SMALL[number] if 0 <= number < 1_000 else str(number).encode()


def put_decimal(out: BytesWriter, number: i64) -> None:
    """A number that 64 bits hold, in decimal."""
    if number < 0:
        out.write(str(number).encode())
    elif number < 1_000:
        out.write(_SMALL[number])
    else:
        put_decimal(out, number // 1_000)
        out.write(_THREE_DIGITS[number % 1_000])


def put_decimal_or_null(out: BytesWriter, number: int | None) -> None:
    """The same as JSON; None is null."""
    if number is None:
        out.write(b"null")
    else:
        put_decimal(out, number)
