"""What a handler may raise to steer its job, and what Tidemill raises at definition time.

Owns the public names. Refuses to hold logic: these are the worker's own classes.
"""

from __future__ import annotations

from tidemill.agents.worker.errors import (
    JobDefinitionError,
    MembersFailed,
    ModuleLoadError,
    NonRetryable,
    Retry,
    SignalTimeout,
    Skip,
    TidemillError,
)

__all__ = [
    "JobDefinitionError",
    "MembersFailed",
    "ModuleLoadError",
    "NonRetryable",
    "Retry",
    "SignalTimeout",
    "Skip",
    "TidemillError",
]
