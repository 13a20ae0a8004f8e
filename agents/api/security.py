"""Who may call: host names, origins, the token, and the headers that bind a browser.

Owns the middleware before every route and the login. Refuses to know routes beyond the few that are
open to all. On loopback there is no token; then names of other hosts are refused (DNS rebinding),
and changes from pages of other origins too (request forgery).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidemill.agents.api.problems import Problem
from tidemill.agents.callers import LOOPBACK_NAMES, is_from_another_page, is_loopback, name_called

COOKIE: Final = "tidemill_session"
COOKIE_SECONDS: Final = 12 * 3600  # seconds; a working day
LOGIN_BYTES_MAX: Final = 4_096  # bytes of a login form
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/login"})
SHOWN_MAX: Final = 100  # characters of a stranger's name in an error
STATIC_PREFIX: Final = "/static/"

CSP: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With "no-referrer" a form of our own page would name no origin, and be refused for it.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Gate:
    """The checks, apart from how they are called. `token` None: loopback, no token.

    `allowed_hosts`: names beside loopback's and `host` by which callers may call. Without any, and
    with a token, every name will do: another site's page has no cookie for it.
    """

    def __init__(
        self, host: str, token: str | None, allowed_hosts: Collection[str] = ()
    ) -> None:
        self._names = LOOPBACK_NAMES | {host.strip("[]").lower()} | set(allowed_hosts)
        self._takes_any_name = token is not None and not allowed_hosts
        self._token = token
        key = (token or "").encode()
        # The cookie proves the token without holding it.
        self._session = hmac.new(key, b"tidemill page session", hashlib.sha256).hexdigest()

    @property
    def needs_token(self) -> bool:
        """Whether callers must show the token."""
        return self._token is not None

    def check_host(self, headers: Headers) -> Problem | None:
        """Whether we are called by a name of ours; what is no host's name is refused always."""
        name = name_called(headers)
        if name and (self._takes_any_name or name in self._names or is_loopback(name)):
            return None
        given = headers.get("host", "")[:SHOWN_MAX]
        return Problem(
            421, "unknown-host", f"host {given!r} is not this server's; call it as 127.0.0.1 or "
            "localhost, or name it in TIDEMILL_ALLOWED_HOSTS", field="Host",
        )

    def check_origin(self, method: str, headers: Headers) -> Problem | None:
        """A change must not come from a page of another origin."""
        if method in SAFE_METHODS or not is_from_another_page(headers):
            return None
        site = headers.get("origin", "another site")[:SHOWN_MAX]
        return Problem(
            403, "cross-origin", f"a page of {site} may not change anything "
            "here; call the API from a program, without an Origin header", field="Origin",
        )

    def check_token(self, headers: Headers, cookies: Mapping[str, str]) -> Problem | None:
        """Bearer token, or the cookie of the login; compared in constant time."""
        if self._token is None or self.is_session(cookies.get(COOKIE, "")):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return None
        return Problem(
            401, "token-required", "send the header `Authorization: Bearer <TIDEMILL_TOKEN>`, or "
            "log in at /login", field="Authorization", headers={"WWW-Authenticate": "Bearer"},
        )

    def is_token(self, given: str) -> bool:
        """Whether this is the token."""
        return self._token is not None and hmac.compare_digest(
            given.encode(), self._token.encode()
        )

    def is_session(self, given: str) -> bool:
        """Whether this is the cookie of someone who logged in."""
        return self.needs_token and hmac.compare_digest(given.encode(), self._session.encode())

    def let_in(self, response: Response, *, is_https: bool) -> None:
        """Give the cookie. No script reads it, and no other site's page sends it."""
        response.set_cookie(
            COOKIE, self._session, max_age=COOKIE_SECONDS, httponly=True, samesite="strict",
            secure=is_https, path="/",
        )


class GateMiddleware:
    """Runs the checks before every route and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_static = scope["path"].startswith(STATIC_PREFIX)

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers.setdefault("Cache-Control", "no-cache" if is_static else "no-store")
            await send(message)

        refusal = self._refusal(Request(scope), is_static=is_static)
        await (refusal or self._app)(scope, receive, guarded_send)

    def _refusal(self, request: Request, *, is_static: bool) -> Response | None:
        path, headers = request.scope["path"], request.headers
        problem = self._gate.check_host(headers) or self._gate.check_origin(
            request.method, headers
        )
        if problem is None and path not in OPEN_PATHS and not is_static:
            problem = self._gate.check_token(headers, request.cookies)
            is_page = request.method == "GET" and "text/html" in headers.get("accept", "")
            if problem is not None and is_page and not path.startswith("/api/"):
                return RedirectResponse(f"/login?next={quote(_target(request), safe='')}", 303)
        return None if problem is None else problem.response(path)


def _target(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def safe_next(target: str) -> str:
    """An address of this server, or the first page: a login must not lead elsewhere."""
    parts = urlsplit(target)
    is_local = target.startswith("/") and not target.startswith(("//", "/\\"))
    has_control = any(ord(letter) < 32 for letter in target)
    return target if is_local and not has_control and not parts.netloc else "/"


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a small urlencoded form; Problem when it is too large."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LOGIN_BYTES_MAX:
            raise Problem(413, "form-too-large", f"send at most {LOGIN_BYTES_MAX} bytes")
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[-1] for name, values in fields.items()}
