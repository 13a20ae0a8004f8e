"""Background jobs on an event log: `job` and `Context` for handlers, `Client` to ask for jobs.

Owns the public names. They are loaded when first used, so that a handler's module needs no Kafka
client and `tidemill --help` needs neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tidemill.client import (
        AsyncClient,
        Client,
        ClientError,
        CommandReceipt,
        CompletedJob,
        EnqueueFailed,
        InvalidRequest,
        JobHandle,
        Request,
        ResultMismatch,
        TypedHandle,
        WaitTimeout,
    )
    from tidemill.client_schedules import ScheduleInfo, ScheduleRefused, UnknownSchedule
    from tidemill.context import Context
    from tidemill.errors import NonRetryable, Retry, SignalTimeout, Skip
    from tidemill.job_types import Job
    from tidemill.jobs import job
    from tidemill.policies import Backoff, Concurrency, RateLimit
    from tidemill.schedules import Tick, schedule
    from tidemill.shared_client import default_client

__version__ = "0.1.0"

_HOMES: Final = {
    "AsyncClient": "tidemill.client",
    "Backoff": "tidemill.policies",
    "Client": "tidemill.client",
    "ClientError": "tidemill.requests",
    "CommandReceipt": "tidemill.client",
    "CompletedJob": "tidemill.completed",
    "Context": "tidemill.context",
    "EnqueueFailed": "tidemill.client",
    "InvalidRequest": "tidemill.requests",
    "Job": "tidemill.typed_jobs",
    "JobHandle": "tidemill.handles",
    "MembersFailed": "tidemill.errors",
    "NonRetryable": "tidemill.errors",
    "RateLimit": "tidemill.policies",
    "Concurrency": "tidemill.policies",
    "Request": "tidemill.requests",
    "ResultMismatch": "tidemill.completed",
    "Retry": "tidemill.errors",
    "SignalTimeout": "tidemill.errors",
    "Skip": "tidemill.errors",
    "ScheduleInfo": "tidemill.client_schedules",
    "ScheduleRefused": "tidemill.client_schedules",
    "Tick": "tidemill.schedules",
    "TypedHandle": "tidemill.handles",
    "UnknownSchedule": "tidemill.client_schedules",
    "WaitTimeout": "tidemill.client",
    "default_client": "tidemill.shared_client",
    "job": "tidemill.jobs",
    "schedule": "tidemill.schedules",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tidemill' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


__all__ = [
    "AsyncClient",
    "Backoff",
    "Client",
    "ClientError",
    "CommandReceipt",
    "CompletedJob",
    "Concurrency",
    "Context",
    "EnqueueFailed",
    "InvalidRequest",
    "Job",
    "JobHandle",
    "MembersFailed",
    "NonRetryable",
    "RateLimit",
    "Request",
    "ResultMismatch",
    "Retry",
    "ScheduleInfo",
    "ScheduleRefused",
    "SignalTimeout",
    "Skip",
    "Tick",
    "TypedHandle",
    "UnknownSchedule",
    "WaitTimeout",
    "default_client",
    "job",
    "schedule",
]
