"""Text from strangers, made safe to show: no character of it may steer a terminal.

Owns what stands for such a character. Refuses to know which they are (`tidemill.schemas.safe_text`)
and who shows the text. Names of users, types and jobs, error texts and payloads may hold anything;
an escape sequence in one of them could clear a screen, change a title, or make one line look like
another.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Final

from tidemill.schemas.safe_text import is_harmless

_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
LINES: Final = "\n\t"
"""What `plain` keeps of a text that may have several lines, such as a trace."""


def plain(text: str, keep: str = "") -> str:
    """`text` with everything that could steer a terminal as \\x1b, \\n, \\u202e; the rest as it is.

    That is: control characters, changes of writing direction, invisible ones, and halves of
    surrogate pairs. `keep` are characters that stay, such as `LINES`.
    """
    if text.isprintable():
        return text
    return "".join(_shown(letter, keep) for letter in text)


def _shown(letter: str, keep: str) -> str:
    if letter in keep or is_harmless(letter):
        return letter
    return _SHORT.get(letter) or escaped(letter)


def escaped(letter: str) -> str:
    """One letter as Python and JSON write it by its number."""
    number = ord(letter)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def plain_json(text: str) -> str:
    """A JSON document with the same meaning, in which such characters are \\u escapes."""
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(
        letter if _shown(letter, LINES) == letter else _json_escape(letter) for letter in text
    )


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start:start + 4]}" for start in range(0, len(units), 4))


def plain_event(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A step of structlog: all text of an event. A trace keeps its lines, set in, so that none of
    them can pass for a line of the log."""
    for name, value in event.items():
        if not isinstance(value, str):
            continue
        if name in ("exception", "stack"):
            event[name] = "  " + plain(value, LINES).replace("\n", "\n  ")
        else:
            event[name] = plain(value)
    return event
