"""The language model: an interface of two calls, and the client of systems/models behind it.

Owns the prompts of summaries and answers, and the way out when no model answers. Refuses to know
which model it is.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Final, Protocol

from pydantic import BaseModel

from systems.models import Call, Message, Model, Price, provider
from systems.news.index import Found
from systems.news.settings import Settings
from tidemill.errors import NonRetryable, Retry

EXCERPT_CHARACTERS: Final = 1_500  # of an article, for its summary or an answer
ANSWER_TOKENS_MAX: Final = 200
LOCAL_AT_ONCE: Final = 2  # calls of the model of this machine; it makes no more at once
HOSTED_AT_ONCE: Final = 5  # calls of summaries: of all articles that are worked on at once
STOP: Final = ("\nQuestion:",)  # small models go on with questions of their own
SUMMARY_TOKENS_MAX: Final = 80  # of one article
LEAD_CHARACTERS_MAX: Final = 300
_SENTENCE: Final = re.compile(r".+?[.!?](?=\s|$)", re.DOTALL)


class ModelError(Exception):
    """The model did not answer, or not in the asked form; the text says what came."""


class LanguageModel(Protocol):
    """What the news system asks of a model. Summaries and answers raise ModelError."""

    name: str

    def take_calls(self) -> list[Call]:
        """The calls that have ended since the last look, failed ones too."""

    async def summaries(self, texts: Sequence[str]) -> list[str]:
        """One sentence for each text."""

    def answer(self, question: str, sources: Sequence[Found]) -> AsyncGenerator[str, None]:
        """The answer from these sources, piece by piece."""


class Summaries(BaseModel):
    """What a call of summaries must give."""

    summaries: list[str]


class ChatModel:
    """A model behind the OpenAI protocol. `calls` is the list that the model tells its calls."""

    def __init__(self, model: Model, calls: list[Call]) -> None:
        self.name = model.name
        self._model = model
        self._calls = calls

    async def close(self) -> None:
        await self._model.close()

    def take_calls(self) -> list[Call]:
        taken = self._calls[:]
        del self._calls[: len(taken)]
        return taken

    async def summaries(self, texts: Sequence[str]) -> list[str]:
        told = "\n\n".join(
            f"Article {number}: {text[:EXCERPT_CHARACTERS]}"
            for number, text in enumerate(texts, 1)
        )
        prompt = (
            f"Summarise each of these {len(texts)} articles in one sentence, in their order.\n\n"
            f"{told}"
        )
        with self._faults():
            done = await self._model.complete(
                _messages(prompt), Summaries, max_tokens=SUMMARY_TOKENS_MAX * len(texts)
            )
        found = [each.strip() for each in done.value.summaries]
        if len(found) != len(texts) or not all(found):
            raise ModelError(f"{self.name}: {len(found)} summaries for {len(texts)} articles")
        return found

    async def answer(self, question: str, sources: Sequence[Found]) -> AsyncGenerator[str, None]:
        told = "\n\n".join(f"{each.title}\n{each.text[:EXCERPT_CHARACTERS]}" for each in sources)
        prompt = (
            f"Answer the question in two sentences, from these articles alone.\n\n{told}\n\n"
            f"Question: {question}"
        )
        with self._faults():
            pieces = self._model.stream(
                _messages(prompt), max_tokens=ANSWER_TOKENS_MAX, stop=STOP
            )
            async with aclosing(pieces):
                async for piece in pieces:
                    yield piece

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (Retry, NonRetryable, OSError, ImportError, RuntimeError) as error:
            raise ModelError(f"{self.name}: {type(error).__name__}: {error}") from error


def _messages(prompt: str) -> list[Message]:
    return [{"role": "user", "content": prompt}]


def model_of(settings: Settings) -> ChatModel | None:
    """The model of the settings; None when they say that none is asked."""
    if settings.provider == "none":
        return None
    calls: list[Call] = []
    price = None
    if settings.input_usd is not None and settings.output_usd is not None:
        price = Price(settings.input_usd, settings.output_usd)
    at_once = LOCAL_AT_ONCE if settings.provider == "local" else HOSTED_AT_ONCE
    asked = provider(settings.provider)
    return ChatModel(
        Model(asked, settings.model, price=price, on_call=calls.append, at_once=at_once), calls
    )


def lead(text: str) -> str:
    """An article's own first sentence: its summary when no model gave one."""
    found = _SENTENCE.match(text)
    return (found.group() if found else text)[:LEAD_CHARACTERS_MAX]
