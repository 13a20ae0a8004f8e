"""Free ports of loopback.

Owns which ports are offered. Refuses to know who listens there later.

A port is free when it is chosen and is taken a moment later, so two things must not happen between:
- A connection of any process takes it as its own end. The system gives connections the ports from
  32768 (Linux) or 49152 (macOS) on: this module offers lower ones.
- Another process chooses the same. Each process walks on from a place of its own and never offers a
  port twice before the walk is over.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

from tidemill.agents.embedded.errors import StartError
from tidemill.agents.embedded.kafka_settings import LOOPBACK

FIRST: Final = 20_000  # above the usual ports of servers
COUNT: Final = 12_000  # below those of connections
APART: Final = 97  # ports between the places of two processes that were started together

_offered: dict[int, int] = {}  # by process: how far its walk has come; a fork has another number


def free_port() -> int:
    """A port of loopback that nobody listened on a moment ago.

    Raises StartError when there is none.
    """
    process = os.getpid()
    for step in range(_offered.get(process, 0), _offered.get(process, 0) + COUNT):
        port = FIRST + (process * APART + step) % COUNT
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((LOOPBACK, port))
            _offered[process] = step + 1
            return port
    raise StartError(f"no port of {LOOPBACK} from {FIRST} to {FIRST + COUNT - 1} is free")
