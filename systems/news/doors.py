"""HTTP to strangers' addresses: a connection goes to the address that was checked, and no other.

Owns the check of each connection, after redirects too, and a name's resolution: what is checked is
what is connected to, so a name that changes its address meanwhile gains nothing. Refuses to know
what is read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpcore
import httpx


class AddressRefused(Exception):
    """The host is, or leads to, an address that is not public."""


def is_public(address: str) -> bool:
    """Whether anyone on the Internet may be there; IPv4 inside IPv6 is looked into."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if inner is not None:
            return is_public(str(inner))
        if found in ipaddress.ip_network("64:ff9b::/96"):
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
    return found.is_global and not found.is_multicast


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name once, checks each of its addresses, and connects to the first."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolved(host, port)
        if not self._allow_private:
            for address in addresses:
                if not is_public(address):
                    raise AddressRefused(
                        f"{host} is at {address}, which is no public address; set "
                        "NEWS_ALLOW_PRIVATE=1 to read feeds there"
                    )
        return await self._inner.connect_tcp(
            addresses[0], port, timeout, local_address, socket_options
        )

    async def _resolved(self, host: str, port: int) -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host}: {error}") from error
        return [str(entry[4][0]) for entry in found]

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise AddressRefused("feeds are not read from sockets of this machine")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class _Body(httpx.AsyncByteStream):
    """The bytes of a response as they come, not decoded."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._response.aiter_stream():
            yield part

    async def aclose(self) -> None:
        await self._response.aclose()


class CheckedTransport(httpx.AsyncBaseTransport):
    """httpx over `CheckedBackend`. No proxy is asked: it would connect in our place."""

    def __init__(self, *, allow_private: bool) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            network_backend=CheckedBackend(allow_private=allow_private),
            max_connections=None,  # all feeds at once: a slow one holds up no other
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port,
            target=request.url.raw_path,
        )
        asked = httpcore.Request(
            request.method, url, headers=request.headers.raw,
            content=b"", extensions=request.extensions,
        )
        response = await self._pool.handle_async_request(asked)
        extensions: dict[str, Any] = dict(response.extensions)
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(response),
            extensions=extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


def checked_client(*, allow_private: bool, seconds: float) -> httpx.AsyncClient:
    """A client for feeds. It follows no redirect by itself."""
    return httpx.AsyncClient(
        transport=CheckedTransport(allow_private=allow_private), timeout=seconds,
        headers={"User-Agent": "tidemill-news", "Accept-Encoding": "gzip, deflate"},
    )
