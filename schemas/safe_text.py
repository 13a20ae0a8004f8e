"""Text from strangers, made safe for a terminal, a log line and a page.

Owns which characters may reach a reader as they are, and what is stored in place of the others.
Refuses to know where the text is shown (`tidemill.agents.plain_text` shows the others by their
numbers). An escape sequence in an error's text could clear a screen or write what was never said,
and an override of direction lets a text read as another one.
"""

from __future__ import annotations

import unicodedata
from typing import Final

REPLACEMENT: Final = "\ufffd"
# Joiners that emoji and some scripts are written with: they change no line and no order.
_KEPT: Final = frozenset("\u200c\u200d")
# Categories that are shown as they are although Python does not count them as printable: spaces,
# private letters, and letters that are younger than Python's tables.
_HARMLESS: Final = frozenset({"Zs", "Co", "Cn"})


def is_harmless(letter: str) -> bool:
    """Whether a letter steers nothing: no control character, change of writing direction, end of a
    line, invisible letter or half of a surrogate pair."""
    return (
        letter.isprintable() or letter in _KEPT or unicodedata.category(letter) in _HARMLESS
    )


class _Replaced(dict[int, str]):
    """Code point -> what stands for it, of each that has been seen: at most those of Unicode."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        self[code] = found = letter if is_harmless(letter) else REPLACEMENT
        return found


_LINES: Final = _Replaced({ord("\n"): "\n", ord("\t"): "\t"})
_ONE_LINE: Final = _Replaced({ord("\n"): " ", ord("\r"): " ", ord("\t"): " "})


def safe_text(text: str) -> str:
    """Lines and tabs stay; other control characters and half pairs of UTF-16 are replaced."""
    if text.isprintable():
        return text
    return _encodable(text.replace("\r\n", "\n").translate(_LINES))


def safe_line(text: str, length_max: int = 200) -> str:
    """The same on one line; an ellipsis stands for what is beyond `length_max` characters."""
    line = text if text.isprintable() else _encodable(text.translate(_ONE_LINE))
    return line if len(line) <= length_max else line[: length_max - 1] + "…"


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
