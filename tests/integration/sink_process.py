"""A sink in a process of its own, with faults that can be asked for: what the sink's tests start.

Arguments: role (sink, stack) and its settings as JSON. `SINK_FAULT` puts a fault around the engine:
`away:N:SECONDS` makes it unreachable for so long from the N-th insert on, `ambiguous:N` makes the
N-th insert succeed and report that it was not.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import tidemill.agents.sink.main as sink
from tidemill.agents.clickhouse.engine import Engine, EngineUnavailable, open_engine
from tidemill.agents.settings import SinkSettings, StackSettings

FAULT = "SINK_FAULT"


class FaultyEngine:
    """An engine whose inserts fail as they do when a server or the way to it goes away."""

    def __init__(self, engine: Engine, fault: str) -> None:
        self._engine = engine
        self._kind, number, *seconds = fault.split(":")
        self._number = int(number)
        self._seconds = float(seconds[0]) if seconds else 0.0
        self._inserts = 0
        self._away_until: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def insert_bytes(self, *args: Any, **kwargs: Any) -> int:
        self._inserts += 1
        now = time.monotonic()
        if self._kind == "away" and self._inserts >= self._number:
            if self._away_until is None:
                print("fault: away", flush=True)
                self._away_until = now + self._seconds
            if now < self._away_until:
                raise EngineUnavailable("connection refused")
        written = self._engine.insert_bytes(*args, **kwargs)
        if self._kind == "ambiguous" and self._inserts == self._number:
            print("fault: ambiguous", flush=True)
            raise EngineUnavailable("read timed out")
        return written


def main() -> int:
    role, text = sys.argv[1:]
    fault = os.environ.get(FAULT)
    if fault:

        def open_faulty(dsn: str) -> Any:
            return FaultyEngine(open_engine(dsn), fault)

        setattr(sink, "open_engine", open_faulty)  # noqa: B010  # the name is not for others
    settings = json.loads(text)
    if role == "stack":
        return sink.run_stack(StackSettings(**settings))
    return sink.run_sink(SinkSettings(**settings))


if __name__ == "__main__":
    sys.exit(main())
