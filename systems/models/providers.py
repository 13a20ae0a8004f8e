"""Where models are asked: the one on this machine, OpenAI, OpenRouter, or another address.

Owns the addresses and keys, from the environment. Refuses to know the protocol.

| provider     | address                                            | key                |
|--------------|----------------------------------------------------|--------------------|
| `local`      | a server started on demand; or `LOCAL_MODEL_URL`   | none               |
| `openai`     | `OPENAI_BASE_URL`, else OpenAI's                    | `OPENAI_API_KEY`   |
| `openrouter` | `OPENROUTER_BASE_URL`, else OpenRouter's            | `OPENROUTER_API_KEY` |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from systems.models.calls import FREE, Price

LOCAL_MODEL: Final = "gemma-3-270m"
LOCAL_URL_VARIABLE: Final = "LOCAL_MODEL_URL"
# Name, the variables of address and key, and the address without a setting.
_HOSTED: Final = {
    "openai": ("OPENAI_BASE_URL", "OPENAI_API_KEY", "https://api.openai.com/v1"),
    "openrouter": ("OPENROUTER_BASE_URL", "OPENROUTER_API_KEY", "https://openrouter.ai/api/v1"),
}


@dataclass(frozen=True, slots=True)
class Provider:
    """One address that speaks the protocol.

    `address` gives the base, such as http://127.0.0.1:8000/v1; it may start a server, so it is
    called off the event loop, and again after a connection failed. `price` None: a model's price is
    not known here.
    """

    name: str
    address: Callable[[], str]
    api_key: str | None = field(default=None, repr=False)
    price: Price | None = None


def provider(name: str, environ: Mapping[str, str] = os.environ) -> Provider:
    """One of the providers by name. Raises ValueError that says which setting is missing."""
    if name == "local":
        return _local(environ)
    if name not in _HOSTED:
        known = ", ".join(["local", *_HOSTED])
        raise ValueError(f"there is no provider {name!r}; the providers are {known}")
    url_variable, key_variable, default = _HOSTED[name]
    url = environ.get(url_variable) or default
    key = environ.get(key_variable)
    if not key:
        raise ValueError(f"provider {name!r} needs a key: set {key_variable}")
    return Provider(name, lambda: url, api_key=key)


def _local(environ: Mapping[str, str]) -> Provider:
    if url := environ.get(LOCAL_URL_VARIABLE):
        return Provider("local", lambda: url, price=FREE)
    # Its packages are an extra: only a process that starts it needs them.
    from systems.models.local import local_address

    return Provider("local", local_address, price=FREE)
