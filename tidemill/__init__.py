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
        WaitTimeout,
    )
    from tidemill.context import Context
    from tidemill.errors import NonRetryable, Retry, Skip
    from tidemill.jobs import job
    from tidemill.policies import Backoff, RateLimit

__version__ = "0.1.0"

_HOMES: Final = {
    "AsyncClient": "tidemill.client",
    "Backoff": "tidemill.policies",
    "Client": "tidemill.client",
    "ClientError": "tidemill.client",
    "CommandReceipt": "tidemill.client",
    "CompletedJob": "tidemill.client",
    "Context": "tidemill.context",
    "EnqueueFailed": "tidemill.client",
    "InvalidRequest": "tidemill.client",
    "JobHandle": "tidemill.client",
    "NonRetryable": "tidemill.errors",
    "RateLimit": "tidemill.policies",
    "Request": "tidemill.client",
    "Retry": "tidemill.errors",
    "Skip": "tidemill.errors",
    "WaitTimeout": "tidemill.client",
    "job": "tidemill.jobs",
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
    "Context",
    "EnqueueFailed",
    "InvalidRequest",
    "JobHandle",
    "NonRetryable",
    "RateLimit",
    "Request",
    "Retry",
    "Skip",
    "WaitTimeout",
    "job",
]
