"""What takes the place of the default client for a while, as an engine under test does.

Owns the list of replacements, the last one first. Refuses to know clients: a test without Kafka's
client library uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tidemill.client import Client

_replacements: Final[list[Callable[[], Client]]] = []


def replace(maker: Callable[[], Client]) -> Callable[[], None]:
    """Typed calls use the client that `maker` gives, until what is returned is called."""
    _replacements.append(maker)
    return lambda: _replacements.remove(maker)


def replacement() -> Client | None:
    """The client in place of the default one; None without any."""
    return _replacements[-1]() if _replacements else None
