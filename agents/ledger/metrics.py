"""What a ledger tells Prometheus: what it could not take, what failed for good, what it owns.

Owns the counts of this process since its start, their names, and the small door that serves them
where a setting asks for one. Refuses to count what went well: ClickHouse has that, job by job.
Labels are words of ours alone, so their number is bounded; no user, job or type is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from tidemill.streams.output import DeadLetter

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from tidemill.agents.api.main import ApiServer

PREFIX: Final = "tidemill_ledger_"
_FAILED: Final = "attempt"


class LedgerCounts:
    """Counts of this process; written on the loop after each commit, read by the door's thread."""

    def __init__(self) -> None:
        #: Jobs that failed for good.
        self.failed_jobs = 0
        #: Records that were refused, by what they were and why; lost ones are RECORDS_LOST.
        self.refused: Counter[tuple[str, str]] = Counter()
        #: Kept cancels that went before their day was over, because there were too many.
        self.forgotten_cancels = 0

    def add(self, dead_letters: Iterable[DeadLetter], forgotten_cancels: int) -> None:
        """What a committed group has put on jobs.dead, and cancels that it has forgotten early."""
        for letter in dead_letters:
            if letter.stage == _FAILED:
                self.failed_jobs += 1
            else:
                self.refused[letter.stage, letter.code] += 1
        self.forgotten_cancels += forgotten_cancels


COUNTS: Final = LedgerCounts()
"""Those of this process."""


class LedgerMetrics:
    """A collector of `prometheus_client`: asks for the numbers when it is asked."""

    def __init__(self, counts: LedgerCounts = COUNTS) -> None:
        self._counts = counts
        self.partitions: Callable[[], int] = lambda: 0
        self.waiting: Callable[[], int] = lambda: 0
        self.unreadable: Callable[[], int] = lambda: 0

    def collect(self) -> Iterator[Metric]:
        """Each metric with its meaning."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        counts = self._counts
        yield CounterMetricFamily(
            f"{PREFIX}failed_jobs", "Jobs that failed for good (dead letters).",
            value=counts.failed_jobs,
        )
        refused = CounterMetricFamily(
            f"{PREFIX}refused_records",
            "Records that were refused, by kind and code; RECORDS_LOST is a gap of an input.",
            labels=["stage", "code"],
        )
        for (stage, code), count in sorted(counts.refused.items()):
            refused.add_metric([stage, code], count)
        yield refused
        yield CounterMetricFamily(
            f"{PREFIX}forgotten_cancels",
            "Kept cancels that were forgotten within a day, because there were too many.",
            value=counts.forgotten_cancels,
        )
        yield CounterMetricFamily(
            f"{PREFIX}unreadable_worker_records",
            "Heartbeats and definitions that this version does not understand.",
            value=self.unreadable(),
        )
        yield GaugeMetricFamily(
            f"{PREFIX}partitions", "Partitions that this process owns.", value=self.partitions()
        )
        yield GaugeMetricFamily(
            f"{PREFIX}waiting_records", "Records that have arrived and are not decided yet.",
            value=self.waiting(),
        )


def open_door(metrics: LedgerMetrics, host: str, port: int) -> ApiServer:
    """Serve `/metrics` from a thread of its own. Raises SettingsError when the address is taken."""
    # Late: a ledger without a door needs no web framework.
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from tidemill.agents.api.main import ApiServer

    registry = CollectorRegistry()
    registry.register(metrics)

    async def exposition(_request: Request) -> Response:
        return Response(
            generate_latest(registry), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4}
        )

    app = Starlette(routes=[Route("/metrics", exposition)])
    server = ApiServer(app, host, port, setting="METRICS_PORT")
    server.start()
    return server
