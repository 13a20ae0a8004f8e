"""`@job`: what it takes from a signature, and what it refuses in clear words."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from tidemill import jobs
from tidemill.agents.worker import handlers
from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.agents.worker.handlers import Registry
from tidemill.context import Context
from tidemill.jobs import job
from tidemill.policies import Backoff, RateLimit

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForCheckers


class Greeting(BaseModel):
    name: str


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry of the test's own."""
    fresh = Registry()
    monkeypatch.setattr(handlers, "REGISTRY", fresh)
    monkeypatch.setattr(jobs, "REGISTRY", fresh)
    return fresh


def top_level(payload: dict[str, Any]) -> None:
    """A function that a child process could import."""


def test_a_full_definition_with_text_annotations(registry: Registry) -> None:
    @job(
        "analysis.profile", queue="ai", max_attempts=5, timeout_seconds="5min",
        backoff=Backoff.exponential("2s", factor=2, jitter=0.2, cap="5min"),
        limits=[RateLimit("1/h", by="user", over="skip")], unique_by="user",
    )
    async def analyse(payload: Greeting, ctx: Context) -> dict[str, str]:
        return {"hello": payload.name}

    handler = registry.get("analysis.profile")
    assert handler is not None
    assert (handler.model, handler.takes_context, handler.runs_as) == (Greeting, True, "async")
    definition = handler.definition()
    assert definition.timeout_ms == 300_000
    assert definition.unique_by == "user"
    assert definition.limits[0].window_ms == 3_600_000
    assert definition.payload_schema is not None
    assert definition.payload_schema["required"] == ["name"]
    # The function stays a function.
    assert analyse.__name__ == "analyse"


def test_local_models_and_names_only_checkers_know(registry: Registry) -> None:
    class Local(BaseModel):
        x: int

    @job("local")
    def local(payload: Local, context: Context, other: OnlyForCheckers | None = None) -> None:
        """The return and the third parameter do not matter."""

    @job("mapping")
    def mapping(payload: Mapping[str, Any]) -> OnlyForCheckers | None:
        return None

    @job("bare")
    def bare(payload, ctx):  # type: ignore[no-untyped-def]  # users may leave annotations out
        return payload

    assert [h.model for h in registry] == [Local, None, None]
    assert [h.takes_context for h in registry] == [True, False, True]
    assert [h.runs_as for h in registry] == ["thread"] * 3


def test_process_is_for_functions_that_can_be_imported(registry: Registry) -> None:
    job("p", process=True)(top_level)
    assert next(iter(registry)).runs_as == "process"

    def inner(payload: dict[str, Any]) -> None: ...

    with pytest.raises(JobDefinitionError, match="top of its module"):
        job("q", process=True)(inner)


def test_two_functions_for_one_type_are_refused_by_name(registry: Registry) -> None:
    @job("twice")
    async def first(payload: dict[str, Any]) -> None: ...

    with pytest.raises(JobDefinitionError, match=r"(?s)first.*second.*another type"):

        @job("twice")
        async def second(payload: dict[str, Any]) -> None: ...


def test_the_same_place_may_register_again(registry: Registry) -> None:
    for _ in range(2):

        @job("again")
        async def again(payload: dict[str, Any]) -> None: ...

    assert len(registry) == 1


def no_payload() -> None: ...
def context_first(ctx: Context) -> None: ...
def integer(payload: int) -> None: ...
def second_is_odd(payload: dict[str, Any], database: str) -> None: ...
def three(payload: dict[str, Any], ctx: Context, more: int) -> None: ...
def keyword(payload: dict[str, Any], *, more: int) -> None: ...
def unknown_name(payload: OnlyForCheckers) -> None: ...
def generator(payload: dict[str, Any]) -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (no_payload, "takes no payload"), (context_first, "takes no payload"),
        (integer, "neither a pydantic model nor a dict"), (second_is_odd, "'database'"),
        (three, "'more'"), (keyword, "'more'"), (unknown_name, "TYPE_CHECKING"),
        (generator, "generator"), (Greeting, "must decorate a function"),
    ],
)
def test_bad_signatures(function: Any, words: str) -> None:
    with pytest.raises(JobDefinitionError, match=words):
        job("bad")(function)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type": ""}, "type"), ({"type": "a b"}, "type"), ({"type": "x" * 129}, "type"),
        ({"type": 5}, "type"), ({"type": "mail\n"}, "type"), ({"queue": "mail\n"}, "queue"),
        ({"queue": "a/b"}, "queue"), ({"queue": ""}, "queue"),
        ({"max_attempts": 0}, "max_attempts"), ({"max_attempts": 2.5}, "max_attempts"),
        ({"max_attempts": True}, "max_attempts"), ({"max_attempts": 101}, "max_attempts"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"timeout_seconds": "2 days"}, "timeout_seconds"),
        ({"timeout_seconds": "soon"}, "timeout_seconds"), ({"unique_by": "queue"}, "unique_by"),
        ({"backoff": "2s"}, "Backoff.exponential"), ({"limits": ["1/h"]}, "RateLimit"),
    ],
    ids=repr,
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"type": "fine", **options}
    with pytest.raises(JobDefinitionError, match=words):
        job(given.pop("type"), **given)(top_level)


def test_a_forgotten_type_is_explained() -> None:
    with pytest.raises(JobDefinitionError, match=r"write @job\('mail.send'\)"):
        job(top_level)  # type: ignore[arg-type]  # the mistake under test


def test_payloads_are_read_as_json_also_by_strict_models(registry: Registry) -> None:
    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)

        on: datetime.date

    @job("strict")
    def strict(payload: Strict) -> None: ...

    handler = registry.get("strict")
    assert handler is not None
    assert handler.read_payload({"on": "2026-01-31"}).on == datetime.date(2026, 1, 31)
    with pytest.raises(ValidationError):
        handler.read_payload({"on": 5})
