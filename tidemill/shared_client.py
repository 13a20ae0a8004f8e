"""The default client: the one that typed calls use when no other is given.

Owns when it is made, that there is one a process, and its end. Refuses to know what a client does.
"""

from __future__ import annotations

import atexit
import threading
from typing import Final

from tidemill.agents.runtime.forks import never_free, tell_in_copies
from tidemill.client import Client
from tidemill.replaced_client import replacement

# At the end of a process nobody waits for an answer any more: all that was answered is durable.
EXIT_SECONDS: Final = 2.0


class _Default:
    """The client of this process, once somebody has asked for it."""

    def __init__(self) -> None:
        self._client: Client | None = None
        self._lock = threading.Lock()
        tell_in_copies(self)
        atexit.register(self.close)

    def start_anew(self) -> None:
        """In a copy of the process: the parent's client is the parent's."""
        # Its parts let go of their threads by themselves; freed, it would wait for them.
        never_free(self._client)
        self._client = None
        self._lock = threading.Lock()

    def get(self) -> Client:
        with self._lock:
            if self._client is None or self._client.is_closed:
                self._client = Client()
            return self._client

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client._core.close(EXIT_SECONDS)


_default: Final = _Default()


def default_client() -> Client:
    """The client of typed calls: made when first used, one a process, and closed at its end.

    Kafka and the topics' prefix come from `TIDEMILL_KAFKA` and `TIDEMILL_TOPIC_PREFIX`; inside a
    worker they are the worker's own. A copy of the process makes its own. After `close()` the next
    call makes a new one.
    """
    return replacement() or _default.get()
