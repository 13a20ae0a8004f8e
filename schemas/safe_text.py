"""Text from strangers, made safe for a terminal, a log line and a page.

Owns which characters may reach a reader as they are. Refuses to know where the text is shown.
An escape sequence in an error's text could clear a screen or write what was never said, and an
override of direction lets a text read as another one.
"""

from __future__ import annotations

from typing import Final

REPLACEMENT: Final = "\ufffd"
_CONTROLS: Final = (*range(0x20), *range(0x7F, 0xA0))
# Marks and overrides of direction, and the separators that end a line in some viewers.
_MISLEADING: Final = (
    0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF
)
_LINES: Final = dict.fromkeys((*_CONTROLS, *_MISLEADING), REPLACEMENT) | {
    ord("\n"): "\n", ord("\t"): "\t"
}
_ONE_LINE: Final = _LINES | {ord("\n"): " ", ord("\r"): " ", ord("\t"): " "}


def safe_text(text: str) -> str:
    """Lines and tabs stay; other control characters and half pairs of UTF-16 are replaced."""
    return _encodable(text.replace("\r\n", "\n").translate(_LINES))


def safe_line(text: str, length_max: int = 200) -> str:
    """The same on one line; an ellipsis stands for what is beyond `length_max` characters."""
    line = _encodable(text.translate(_ONE_LINE))
    return line if len(line) <= length_max else line[: length_max - 1] + "…"


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
