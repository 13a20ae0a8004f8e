"""What goes wrong between an outbox and Kafka.

Owns the exceptions: those that end a relay, and those after which it tries again.
"""

from __future__ import annotations

from tidemill.agents import exit_codes
from tidemill.requests import ClientError


class RelayError(ClientError):
    """The relay cannot go on. The text says why and the way out; `exit_code` is the command's."""

    def __init__(self, message: str, exit_code: int = exit_codes.CONFIG) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NotAcknowledged(ClientError):
    """Kafka did not take some rows now. They stay, and are sent again."""
