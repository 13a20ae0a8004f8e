"""Who calls a port that only this machine can reach: what the headers of a request tell.

Owns the names of loopback and the reading of Host and Origin. Refuses to know what a refusal looks
like. A page in a browser may call any port of its machine, under a name that leads there (DNS
rebinding) or from another site (request forgery); a program sends none of these headers but Host.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_HOST: Final = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?))"
    r"(?::[0-9]{1,5})?"
)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def http_address(host: str, port: int) -> str:
    """The address of a server that is bound to `host`: IPv6 stands in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def family_of(host: str) -> socket.AddressFamily:
    """What kind of socket binds to `host`."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def name_called(headers: Mapping[str, str]) -> str:
    """The name that the Host header calls us by, in lower case without the port; "" for what is no
    host's name, such as `user@localhost` or `localhost/x`."""
    match = _HOST.fullmatch(headers.get("host", ""))
    return "" if match is None else (match["six"] or match["name"]).lower()


def is_from_another_page(headers: Mapping[str, str]) -> bool:
    """Whether a browser sent this for a page that is not ours."""
    origin = headers.get("origin")
    try:
        is_ours = origin is None or urlsplit(origin).netloc == headers.get("host", "")
    except ValueError:
        is_ours = False
    site = headers.get("sec-fetch-site", "same-origin")
    return not is_ours or site not in ("same-origin", "none")
