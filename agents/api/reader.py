"""Reading panels from ClickHouse without holding up the event loop, and surviving its absence.

Owns the threads, a short memory of answers, and the words for an outage. Refuses to know SQL.

Many open pages cost one query: equal questions within a moment share an answer, and a question that
was expensive is asked less often.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from tidemill.agents import queries
from tidemill.agents.api.metrics import Metrics
from tidemill.agents.clickhouse.engine import Engine, EngineError

THREADS: Final = 4  # queries at once: they share the engine's threads with the sink's inserts
FRESH_SECONDS_MIN: Final = 0.9  # seconds an answer may be reused: pages ask every two
FRESH_FACTOR: Final = 10  # an answer is reused for this many times what it cost: 10 % of a thread
FRESH_SECONDS_MAX: Final = 60.0
ANSWERS_MAX: Final = 256  # answers kept, oldest dropped first
UNKNOWN_TABLE: Final = 60  # ClickHouse's code
UNKNOWN_DATABASE: Final = 81

Rows = list[dict[str, Any]]
_Key = tuple[str, int | None, int, tuple[tuple[str, object], ...]]


class ReadFailed(Exception):
    """ClickHouse gave no answer. The text says why and what to do."""

    def __init__(self, detail: str, *, is_outage: bool) -> None:
        super().__init__(detail)
        self.detail = detail
        self.is_outage = is_outage


@dataclass(slots=True)
class _Answer:
    task: asyncio.Task[Rows]
    fresh_until: float


class Reader:
    """`rows(name, ...)` for routes. `engine` may be a way to open one, tried at each question."""

    def __init__(self, engine: Engine | Callable[[], Engine], metrics: Metrics) -> None:
        self._engine: Engine | None = None if callable(engine) else engine
        self._open = engine if callable(engine) else None
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tidemill-read")
        self._answers: dict[_Key, _Answer] = {}

    async def rows(
        self,
        name: str,
        minutes: int | None = None,
        *,
        points_max: int = queries.POINTS_MAX,
        **params: object,
    ) -> Rows:
        """Rows of a panel over the last `minutes`; ReadFailed when ClickHouse gives none."""
        key: _Key = (name, minutes, points_max, tuple(sorted(params.items())))
        answer = self._answers.get(key)
        if answer is None or (answer.task.done() and time.monotonic() >= answer.fresh_until):
            answer = self._ask(key, params)
        return await asyncio.shield(answer.task)

    async def ping(self) -> None:
        """ReadFailed when the tables cannot be read."""
        await self.rows("types", limit=1)

    def close(self) -> None:
        """Let the threads go; the engine belongs to whoever gave it."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._open is not None and self._engine is not None:
            self._engine.close()

    def _ask(self, key: _Key, params: dict[str, object]) -> _Answer:
        answer = _Answer(asyncio.ensure_future(self._run(key, params)), 0.0)
        started = time.monotonic()

        def ended(task: asyncio.Task[Rows]) -> None:
            if task.cancelled() or task.exception() is not None:
                if self._answers.get(key) is answer:
                    del self._answers[key]
                return
            now = time.monotonic()
            cost = FRESH_FACTOR * (now - started)
            answer.fresh_until = now + min(max(cost, FRESH_SECONDS_MIN), FRESH_SECONDS_MAX)

        answer.task.add_done_callback(ended)
        self._answers.pop(key, None)
        while len(self._answers) >= ANSWERS_MAX:
            del self._answers[next(iter(self._answers))]
        self._answers[key] = answer
        return answer

    async def _run(self, key: _Key, params: dict[str, object]) -> Rows:
        name, minutes, points_max, _ = key
        window = None
        if minutes is not None:
            window = queries.Window.last(minutes, datetime.now(UTC), points_max)
        loop = asyncio.get_running_loop()
        with self._metrics.query_seconds.labels(query=name).time():
            try:
                rows = await loop.run_in_executor(
                    self._threads, lambda: queries.run(self._opened(), name, window, **params)
                )
            except EngineError as error:
                self._metrics.clickhouse_up.set(0)
                raise _failure(error) from error
        self._metrics.clickhouse_up.set(1)
        return rows

    def _opened(self) -> Engine:
        if self._engine is None:
            assert self._open is not None
            self._engine = self._open()
        return self._engine


def _failure(error: EngineError) -> ReadFailed:
    if error.code in (UNKNOWN_TABLE, UNKNOWN_DATABASE):
        return ReadFailed(
            "ClickHouse answers, but its tables are not there yet: start `tidemill sink`, which "
            "makes them",
            is_outage=True,
        )
    if error.is_retryable:
        return ReadFailed(
            f"ClickHouse does not answer: {error.message}. Jobs go on without it; what happens "
            "meanwhile shows up here when it is back",
            is_outage=True,
        )
    return ReadFailed(f"ClickHouse refused the query: {error}", is_outage=False)
