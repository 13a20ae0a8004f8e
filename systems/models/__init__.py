"""Language models behind one protocol: OpenAI's chat completions, local or anywhere.

Owns the public names. `Model` asks, `Completion` is what comes back, the errors say what a job
should do next. Refuses to know what is asked for, and where calls are kept.
"""

from __future__ import annotations

from systems.models.calls import Call, Price
from systems.models.client import Completion, Message, Model
from systems.models.errors import (
    ModelOutputInvalid,
    ModelRateLimited,
    ModelRefused,
    ModelTimeout,
    ModelUnavailable,
)
from systems.models.fallback import complete_with_fallback
from systems.models.providers import LOCAL_MODEL, Provider, provider

__all__ = [
    "LOCAL_MODEL",
    "Call",
    "Completion",
    "Message",
    "Model",
    "ModelOutputInvalid",
    "ModelRateLimited",
    "ModelRefused",
    "ModelTimeout",
    "ModelUnavailable",
    "Price",
    "Provider",
    "complete_with_fallback",
    "provider",
]
