"""Asking a model: one answer, an answer by a schema, or a stream of text.

Owns the protocol (chat completions, `response_format`, server-sent events, `usage`), deadlines, and
which error a bad answer is. Refuses to know what is asked for and to try again: that is the job's
retry.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypedDict, TypeVar, overload

import httpx
from pydantic import BaseModel, ValidationError

from systems.models.calls import Call, Price, Usage, cost_of, usage_of
from systems.models.errors import (
    ModelOutputInvalid,
    ModelRateLimited,
    ModelRefused,
    ModelTimeout,
    ModelUnavailable,
)
from systems.models.providers import Provider

DEADLINE_SECONDS: Final = 60.0  # of one call, connecting and the last token included
CONNECT_SECONDS: Final = 5.0  # a server that is there answers a connection at once
CONNECTIONS_MAX: Final = 100  # of one client
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024  # far above what a model says; beyond it nothing is read
TOLD_CHARACTERS: Final = 200  # of a provider's error that ours repeats

T = TypeVar("T")
S = TypeVar("S", bound=BaseModel)


class Message(TypedDict):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Completion(Generic[T]):
    """An answer. `value` is the text, or what the schema made of it; `text` is as it came."""

    value: T
    text: str
    model: str
    usage: Usage
    cost_usd: float | None


@dataclass(slots=True)
class _Watch:
    """What is known of a call while it runs."""

    asked_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.monotonic)
    usage: Usage = field(default_factory=Usage)
    first_token_ms: int | None = None

    def elapsed_ms(self) -> int:
        return round((time.monotonic() - self.began) * 1000)


class Model:
    """One model of one provider. For one event loop; close it there, or use it with `async with`.

    `on_call` is told each call, failed ones too. `price` is for providers that state no cost. Of
    more than `at_once` calls the others wait for their turn; a call's deadline begins with its
    turn.
    """

    def __init__(
        self,
        provider: Provider,
        name: str,
        *,
        price: Price | None = None,
        on_call: Callable[[Call], None] | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
        at_once: int = CONNECTIONS_MAX,
    ) -> None:
        self.provider = provider
        self.name = name
        self._price = price if price is not None else provider.price
        self._on_call = on_call
        self._deadline_seconds = deadline_seconds
        self._turns = asyncio.Semaphore(at_once)
        self._http: httpx.AsyncClient | None = None
        self._address: str | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections. A later call opens new ones."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    @overload
    async def complete(
        self, messages: Sequence[Message], schema: None = None, *, max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Completion[str]: ...

    @overload
    async def complete(
        self, messages: Sequence[Message], schema: type[S], *, max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Completion[S]: ...

    async def complete(
        self,
        messages: Sequence[Message],
        schema: type[BaseModel] | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Completion[Any]:
        """One answer. With `schema` (a pydantic model) the output is constrained and checked by it.

        Raises ModelRateLimited, ModelUnavailable, ModelTimeout, ModelRefused, ModelOutputInvalid.
        """
        body = self._body(messages, schema, max_tokens, stop)
        async with (
            self._turns, self._call() as watch, asyncio.timeout(self._deadline_seconds),
        ):
            answer = await self._post(body)
            watch.usage = usage_of(answer) or Usage()
            text = _text_of(answer)
            value = text if schema is None else _checked(text, schema)
        cost = cost_of(watch.usage, self._price)
        return Completion(value, text, self.name, watch.usage, cost)

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> AsyncGenerator[str, None]:
        """The answer's text, piece by piece, as it is made.

        Raises as `complete` does, also in the middle: a stream that ends without its end mark is
        ModelUnavailable.
        """
        body = self._body(messages, None, max_tokens, stop)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        async with self._turns, self._call() as watch:
            async for piece in self._pieces(body, watch):
                if watch.first_token_ms is None:
                    watch.first_token_ms = watch.elapsed_ms()
                yield piece

    # -- one call ----------------------------------------------------------------------------------

    def _body(
        self,
        messages: Sequence[Message],
        schema: type[BaseModel] | None,
        max_tokens: int | None,
        stop: Sequence[str],
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.name, "messages": list(messages), "temperature": 0}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        if stop:
            body["stop"] = list(stop)
        if schema is not None:
            described = {"name": schema.__name__, "strict": True}
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {**described, "schema": schema.model_json_schema()},
            }
        return body

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[_Watch]:
        """Turns what a call raises into our errors, and tells the call, whatever became of it."""
        watch, outcome = _Watch(), "abandoned"
        try:
            yield watch
            outcome = "ok"
        except (ModelRateLimited, ModelUnavailable, ModelRefused, ModelOutputInvalid) as error:
            outcome = error.code
            raise
        except (TimeoutError, httpx.TimeoutException) as error:
            late = ModelTimeout(f"{self.name}: no answer within {self._deadline_seconds:g} s")
            outcome = late.code
            raise late from error
        except (httpx.TransportError, OSError) as error:
            self._address = None  # a local server that ended is started again by the next call
            away = ModelUnavailable(f"{self.name}: {type(error).__name__}: {error}")
            outcome = away.code
            raise away from error
        finally:
            self._tell(watch, outcome)

    def _tell(self, watch: _Watch, outcome: str) -> None:
        if self._on_call is None:
            return
        usage = watch.usage
        self._on_call(
            Call(
                provider=self.provider.name,
                model=self.name,
                asked_at=watch.asked_at,
                duration_ms=watch.elapsed_ms(),
                outcome=outcome,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cost_usd=cost_of(usage, self._price),
                first_token_ms=watch.first_token_ms,
            )
        )

    async def _connect(self) -> tuple[httpx.AsyncClient, str]:
        if self._http is None:
            self._http = httpx.AsyncClient(
                timeout=httpx.Timeout(self._deadline_seconds, connect=CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=CONNECTIONS_MAX),
                trust_env=False,
            )
        if self._address is None:
            self._address = await asyncio.to_thread(self.provider.address)
        return self._http, f"{self._address.rstrip('/')}/chat/completions"

    def _headers(self) -> dict[str, str]:
        key = self.provider.api_key
        return {} if key is None else {"Authorization": f"Bearer {key}"}

    async def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        http, url = await self._connect()
        async with http.stream("POST", url, json=body, headers=self._headers()) as response:
            data = await _read(response)
            if response.is_error:
                raise self._fault(response, data)
        answer = _json(data)
        if answer is None:
            raise ModelUnavailable(f"{self.name}: the answer is no JSON object: {_told(data)}")
        return answer

    async def _pieces(self, body: dict[str, Any], watch: _Watch) -> AsyncIterator[str]:
        http, url = await self._connect()
        async with http.stream("POST", url, json=body, headers=self._headers()) as response:
            if response.is_error:
                raise self._fault(response, await _read(response))
            async for line in response.aiter_lines():
                if time.monotonic() - watch.began > self._deadline_seconds:
                    raise TimeoutError
                if not line.startswith("data:"):
                    continue
                data = line[5:].strip()
                if data == "[DONE]":
                    return
                chunk = _json(data.encode())
                if chunk is None or "error" in chunk:
                    raise ModelUnavailable(f"{self.name}: in the stream: {_told(data.encode())}")
                watch.usage = usage_of(chunk) or watch.usage
                if piece := _delta_of(chunk):
                    yield piece
        raise ModelUnavailable(f"{self.name}: the stream was cut before its end")

    def _fault(self, response: httpx.Response, data: bytes) -> Exception:
        said = f"{self.name}: HTTP {response.status_code}: {_told(data)}"
        after = retry_after_seconds(response.headers.get("Retry-After"), datetime.now(UTC))
        match response.status_code:
            case 429:
                return ModelRateLimited(said, after_seconds=after)
            case 408:
                return ModelUnavailable(said, after_seconds=after)
            case status if status >= 500:
                return ModelUnavailable(said, after_seconds=after)
            case _:
                return ModelRefused(said)


# -- reading an answer -----------------------------------------------------------------------------


def retry_after_seconds(header: str | None, now: datetime) -> float | None:
    """RFC 9110, 10.2.3: seconds, or a date; never below 0. None without the header or with junk."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - now).total_seconds())


async def _read(response: httpx.Response) -> bytes:
    data = bytearray()
    async for part in response.aiter_bytes():
        data += part
        if len(data) > ANSWER_BYTES_MAX:
            raise ModelUnavailable(f"the answer has more than {ANSWER_BYTES_MAX} bytes")
    return bytes(data)


def _json(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _told(data: bytes) -> str:
    answer = _json(data)
    error = None if answer is None else answer.get("error")
    if isinstance(error, dict):
        error = error.get("message")
    return str(error or data.decode(errors="replace"))[:TOLD_CHARACTERS]


def _text_of(answer: dict[str, Any]) -> str:
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ModelUnavailable(f"the answer has no choices[0].message.content: {error!r}") from None
    if not isinstance(text, str):
        raise ModelUnavailable("choices[0].message.content is no text")
    return text


def _delta_of(chunk: dict[str, Any]) -> str:
    try:
        text = chunk["choices"][0]["delta"].get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        return ""  # the chunk with `usage` has no choices
    return text if isinstance(text, str) else ""


def _checked(text: str, schema: type[S]) -> S:
    try:
        return schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise ModelOutputInvalid(
            f"the answer does not fit {schema.__name__}: {place}: {first['msg']}", text=text
        ) from None
