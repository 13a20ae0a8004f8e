"""The settings of the news system, all from variables that begin with NEWS_.

Owns names, defaults and their reasons. Refuses to know what is done with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from systems.models import LOCAL_MODEL

FEED_SECONDS: Final = 15.0  # of one feed, redirects included; a slow feed must not hold the others
DOWNLOAD_BYTES_MAX: Final = 5 * 1024 * 1024  # as sent; feeds of a minute are far smaller
FEED_BYTES_MAX: Final = 20 * 1024 * 1024  # after decompression; a bomb is cut there
REDIRECTS_MAX: Final = 5
ARTICLES_AT_ONCE: Final = 25
SUMMARIES_PER_CALL: Final = 5
EMBEDDINGS_PER_CALL: Final = 100
CHUNK_WORDS: Final = 600
CHUNK_OVERLAP_WORDS: Final = 100
BACKOFF_SECONDS: Final = 60.0  # after a feed's first failure; doubled with each further one
BACKOFF_SECONDS_MAX: Final = 3_600.0
SUMMARY_SECONDS_MAX: Final = 60.0  # of a run: a slow model must not keep articles from readers
RUN_SECONDS_MAX: Final = 300.0  # of one ingestion; an older claim is of a worker that died
FAILURES_CRITICAL: Final = 3
ASK_WAIT_SECONDS: Final = 30.0  # for the ingestion that a question started


class Settings(BaseSettings):
    """Read anew by each process, at its start."""

    model_config = SettingsConfigDict(env_prefix="NEWS_", extra="ignore")

    feeds: str = Field("", description="Addresses of RSS and Atom feeds, separated by commas.")
    database: str = Field("sqlite:///.tidemill/news/news.db", description="SQLAlchemy's address.")
    clickhouse: str = Field(
        "chdb://" + str(Path(".tidemill/news/clickhouse").absolute()),
        description="Where the vectors are: chdb:///folder, which one process may hold, or "
        "http://user:password@host:8123/database.",
    )
    allow_private: bool = Field(
        False, description="Read feeds at loopback, private and link-local addresses, too."
    )
    feed_seconds: float = Field(FEED_SECONDS, gt=0)
    download_bytes_max: int = Field(DOWNLOAD_BYTES_MAX, gt=0)
    feed_bytes_max: int = Field(FEED_BYTES_MAX, gt=0)
    backoff_seconds: float = Field(BACKOFF_SECONDS, ge=0)
    every: str = Field("1min", description="Interval between two scheduled ingestions.")
    provider: Literal["local", "openai", "openrouter", "none"] = Field(
        "local", description="Who answers: the model of this machine, or an address with a key "
        "(systems/models names the variables). none: no model is asked."
    )
    model: str = Field(LOCAL_MODEL, description="The model's name there.")
    input_usd: float | None = Field(
        None, ge=0, description="Dollars for a million tokens that are asked, where the provider "
        "states no cost of a call. Unset, or without the other: not known."
    )
    output_usd: float | None = Field(None, ge=0, description="The same for tokens of answers.")

    def feed_urls(self) -> list[str]:
        """The feeds, each once, in their order."""
        return list(dict.fromkeys(url.strip() for url in self.feeds.split(",") if url.strip()))
