"""Problem details (RFC 9457): the one shape of every error of the API.

Owns the body, its media type and the translation of exceptions. Refuses to know routes. Every
detail names the field, the reason and the way out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tidemill.agents.answers import AnswerError, AnswerTimeout
from tidemill.schemas.first_problem import first_problem

logger = logging.getLogger("tidemill.api")

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:tidemill:problem:"
RETRY_AFTER_SECONDS: Final = 5  # seconds; an outage of ClickHouse or Kafka rarely ends sooner


class Problem(Exception):
    """An error on its way to the caller.

    `kind` is a short name for programs; `field` is the input at fault, None when there is none;
    `extra` are further members of the body.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        field: str | None = None,
        headers: dict[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.field = field
        self.headers = headers or {}
        self.extra = extra

    def body(self, instance: str) -> dict[str, Any]:
        """The members of the problem document."""
        body: dict[str, Any] = {
            "type": TYPE_PREFIX + self.kind,
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
        }
        if self.field is not None:
            body["field"] = self.field
        return body | self.extra

    def response(self, instance: str) -> JSONResponse:
        """The whole answer."""
        headers = dict(self.headers)
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
        return JSONResponse(
            self.body(instance), self.status, headers=headers, media_type=MEDIA_TYPE
        )


def invalid_parameter(error: ValidationError) -> Problem:
    """What a model of ours refused of a caller's words."""
    field, message, _ = first_problem(error)
    return Problem(
        422, "invalid-parameter", f"parameter {field!r}: {message}; mend it", field=field
    )


@contextmanager
def answer_problems() -> Iterator[None]:
    """The ledger's answer to a command that does not come, or cannot be asked for."""
    try:
        yield
    except AnswerTimeout as error:
        raise Problem(504, "no-answer", str(error)) from None
    except AnswerError as error:
        raise Problem(503, "kafka-unavailable", str(error)) from None


def of_validation(error: RequestValidationError) -> Problem:
    """FastAPI's complaint about a parameter."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part not in ("query", "path", "body"))
    return Problem(
        422, "invalid-parameter", f"parameter {field!r}: {first['msg']}; mend it", field=field
    )


def of_http(error: HTTPException) -> Problem:
    """Starlette's own errors: no such route, method not allowed."""
    detail = {
        404: "there is nothing at this address; /openapi.json lists what there is",
        405: "this address does not take this method; the Allow header lists those that it does",
    }.get(error.status_code, str(error.detail))
    kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    return Problem(error.status_code, kind, detail, headers=dict(error.headers or {}))


def of_bug(error: Exception) -> Problem:
    """Anything else is a bug: it is logged with its trace, and the caller learns no internals."""
    logger.error("request failed: %s", error, exc_info=error)
    return Problem(
        500, "internal-error", "a bug of ours, not of the request; the log of the API has its trace"
    )


def to_problem(error: Exception) -> Problem:
    """The problem that an exception of a route stands for."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return of_validation(error)
        case HTTPException():
            return of_http(error)
        case _:
            return of_bug(error)


def install(app: FastAPI, render_page: Any) -> None:
    """Answer every exception: problem details to programs, `render_page` to browsers."""

    async def answer(request: Request, error: Exception) -> Response:
        problem = to_problem(error)
        wants_page = "text/html" in request.headers.get("accept", "")
        if wants_page and not request.url.path.startswith("/api/"):
            page: Response = render_page(request, problem)
            return page
        return problem.response(request.url.path)

    for kind in (Problem, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)
