"""Instants as text: RFC 3339 in UTC, with milliseconds.

Owns the text and the memory of the last ones. Refuses to know clocks: epoch milliseconds come in.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final


def instant_text(epoch_ms: int) -> str:
    """1764000000123 -> "2025-11-24T16:00:00.123Z"."""
    seconds, ms = divmod(epoch_ms, 1000)
    moment = datetime.fromtimestamp(seconds, tz=UTC)
    return f"{moment.strftime('%Y-%m-%dT%H:%M:%S')}.{ms:03d}Z"


class InstantCache:
    """The text of the last few instants: nearly all events of a group share theirs."""

    __slots__ = ("_digits", "_digits_of", "_json", "_json_of", "_jsons", "_texts")
    _SIZE_MAX: Final = 4096  # entries, then it starts anew

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}
        self._jsons: dict[int, bytes] = {}
        self._json_of = self._digits_of = -1  # the last ones asked for, and their texts
        self._json = self._digits = b""

    def text(self, epoch_ms: int | None) -> str | None:
        """RFC 3339 text of `epoch_ms`; None stays None."""
        if epoch_ms is None:
            return None
        found = self._texts.get(epoch_ms)
        if found is None:
            if len(self._texts) >= self._SIZE_MAX:
                self._texts.clear()
            found = self._texts[epoch_ms] = instant_text(epoch_ms)
        return found

    def json(self, epoch_ms: int | None) -> bytes:
        """The same as JSON text; None is null."""
        if epoch_ms is None:
            return b"null"
        if epoch_ms == self._json_of:
            return self._json
        found = self._jsons.get(epoch_ms)
        if found is None:
            if len(self._jsons) >= self._SIZE_MAX:
                self._jsons.clear()
            found = self._jsons[epoch_ms] = f'"{instant_text(epoch_ms)}"'.encode()
        self._json_of, self._json = epoch_ms, found
        return found

    def utf8(self, epoch_ms: int) -> bytes:
        """`text` as bytes."""
        return self.json(epoch_ms)[1:-1]

    def digits(self, epoch_ms: int) -> bytes:
        """`epoch_ms` as a decimal number."""
        if epoch_ms != self._digits_of:
            self._digits_of, self._digits = epoch_ms, str(epoch_ms).encode()
        return self._digits
