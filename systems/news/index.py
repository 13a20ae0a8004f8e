"""Vectors in ClickHouse: a table of the application's own, made from the chunks in SQL.

Owns that table, what of SQL is not in it yet, and the search by cosine distance. Refuses to be the
truth: when the table is gone, it is made again from SQL. A chunk that was sent twice counts once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import clickhouse_connect
import numpy as np
import sqlalchemy as sa

from systems.news.embedding import DIMENSIONS, Vectors
from systems.news.tables import Article, Chunk, News

ROWS_PER_INSERT: Final = 5_000  # 8 MB of vectors
FOUND_MAX: Final = 5
SPARE: Final = 20  # candidates for one that is there twice

TABLE: Final = f"""
CREATE TABLE IF NOT EXISTS news_vectors (
    chunk_id UInt64,
    vector Array(Float32) CODEC(NONE),
    CONSTRAINT dimensions CHECK length(vector) = {DIMENSIONS}
) ENGINE = ReplacingMergeTree ORDER BY chunk_id
"""
NEAREST: Final = """
SELECT chunk_id, cosineDistance(vector, {question:Array(Float32)}) AS distance
FROM news_vectors ORDER BY distance, chunk_id LIMIT {count:UInt32}
"""


@dataclass(frozen=True, slots=True)
class Found:
    """A chunk that is near to a question. `distance`: 0 is the same direction, 2 the opposite."""

    chunk_id: int
    distance: float
    url: str
    title: str
    text: str


class Index:
    """One connection; calls take turns. A folder (chdb://) belongs to one process."""

    def __init__(self, dsn: str) -> None:
        if dsn.startswith("chdb://"):
            Path(urlsplit(dsn).path).mkdir(parents=True, exist_ok=True)
        self._client: Any = clickhouse_connect.get_client(dsn=dsn)
        self._lock = threading.Lock()
        self._client.command(TABLE)

    def close(self) -> None:
        self._client.close()

    def add(self, ids: Sequence[int], vectors: Vectors) -> None:
        with self._lock:
            self._client.insert(
                "news_vectors", [list(ids), list(vectors.tolist())],
                column_names=["chunk_id", "vector"], column_oriented=True,
            )

    def count(self) -> int:
        with self._lock:
            return int(self._client.command("SELECT count() FROM news_vectors"))

    def catch_up(self, news: News) -> int:
        """Takes in what SQL has and ClickHouse has not; how many chunks that were."""
        if self.count() == 0:
            with news.session.begin() as session:
                session.execute(sa.update(Chunk).values(is_indexed=False))
        taken = 0
        while True:
            with news.reads() as session:
                rows = session.execute(
                    sa.select(Chunk.id, Chunk.vector).where(Chunk.is_indexed.is_(False))
                    .order_by(Chunk.id).limit(ROWS_PER_INSERT)
                ).all()
            if not rows:
                return taken
            joined = b"".join(row.vector for row in rows)
            self.add(
                [row.id for row in rows], np.frombuffer(joined, "<f4").reshape(-1, DIMENSIONS)
            )
            with news.session.begin() as session:  # afterwards: a crash sends them twice
                session.execute(
                    sa.update(Chunk).where(Chunk.id.in_([row.id for row in rows]))
                    .values(is_indexed=True)
                )
            taken += len(rows)

    def nearest(self, question: Vectors, count: int) -> list[tuple[int, float]]:
        """Ids and distances of the nearest chunks, the nearest first."""
        with self._lock:
            rows = self._client.query(
                NEAREST, parameters={"question": question.tolist(), "count": count + SPARE}
            ).result_rows
        found: dict[int, float] = {}
        for chunk_id, distance in rows:
            found.setdefault(int(chunk_id), float(distance))
        return list(found.items())[:count]

    def search(self, news: News, question: Vectors, count: int = FOUND_MAX) -> list[Found]:
        """The nearest chunks with their articles."""
        near = dict(self.nearest(question, count))
        with news.reads() as session:
            rows = session.execute(
                sa.select(Chunk.id, Chunk.text, Article.url, Article.title)
                .join(Article, Article.id == Chunk.article_id).where(Chunk.id.in_(near))
            ).all()
        found = [Found(row.id, near[row.id], row.url, row.title, row.text) for row in rows]
        return sorted(found, key=lambda each: each.distance)
