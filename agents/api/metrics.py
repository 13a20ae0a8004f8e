"""What the API tells Prometheus about itself; each metric has its meaning beside it.

Owns names and labels, none of them unbounded. Refuses to count jobs: the ledger and the sink do.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """One registry an app, so that several apps may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tidemill_api_requests_total",
            "HTTP requests answered, by route, method and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "tidemill_api_request_seconds",
            "Seconds from a request to its answer, by route.",
            ["route"],
            registry=self.registry,
        )
        self.query_seconds = Histogram(
            "tidemill_api_query_seconds",
            "Seconds that ClickHouse took for a panel.",
            ["query"],
            registry=self.registry,
        )
        self.clickhouse_up = Gauge(
            "tidemill_api_clickhouse_up",
            "1 when the last question to ClickHouse was answered.",
            registry=self.registry,
        )
        self.kafka_up = Gauge(
            "tidemill_api_kafka_up",
            "1 when Kafka answered the last look and has leaders for what the API sends.",
            registry=self.registry,
        )
        self.gap_offsets = Gauge(
            "tidemill_log_gap_offsets",
            "Offsets that were deleted from the log before the sink had read them.",
            registry=self.registry,
        )
        self.enqueued = Counter(
            "tidemill_api_enqueued_total",
            "Requests taken over HTTP and acknowledged by Kafka.",
            registry=self.registry,
        )

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
