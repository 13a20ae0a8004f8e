"""`tidemill new NAME`: a module with a job, and its test, that run as they are.

Owns the two texts and the check of the name. Refuses to overwrite anything.
"""

from __future__ import annotations

import keyword
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)

MODULE: Final = '''\
"""Jobs of {name}. Run them with `tidemill dev {name}`."""

from __future__ import annotations

from pydantic import BaseModel

from tidemill import Backoff, Context, NonRetryable, job


class Greeting(BaseModel):
    """What is asked for."""

    name: str


class Greeted(BaseModel):
    """What comes of it."""

    text: str
    attempt: int


@job(
    "{name}.greet",
    max_attempts=5,
    # 2 s, 4 s, 8 s ... at most 5 min, each up to a fifth longer or shorter.
    backoff=Backoff.exponential("2s", factor=2, jitter=0.2, cap="5min"),
    timeout_seconds=30,
)
async def greet(payload: Greeting, ctx: Context) -> Greeted:
    """An exception is a failed attempt, and is tried again; NonRetryable fails at once."""
    if not payload.name.strip():
        raise NonRetryable("nobody to greet", code="NO_NAME")
    ctx.log.info("greeting", name=payload.name)
    return Greeted(text=f"Hello, {{payload.name}}!", attempt=ctx.attempt)


if __name__ == "__main__":
    # Ask for a job and wait for its end; `tidemill dev {name}` runs it.
    handle = greet.enqueue_sync(Greeting(name="Ada"), user_id="ada")
    done = handle.result_sync(timeout=30)
    print(done.status, done.result)
'''

TEST: Final = '''\
"""A handler is a function: a test calls it. `pytest` runs this without Kafka."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
from {name} import Greeting, greet

from tidemill import Context, InvalidRequest, NonRetryable


def context() -> Context:
    """As much of a context as the handler asks for."""

    def note(event: str, **fields: Any) -> None:
        logging.getLogger("{name}").info("%s %s", event, fields)

    return cast(Context, SimpleNamespace(attempt=1, log=SimpleNamespace(info=note)))


def test_somebody_is_greeted() -> None:
    done = asyncio.run(greet(Greeting(name="Ada"), context()))
    assert (done.text, done.attempt) == ("Hello, Ada!", 1)


def test_nobody_is_not_greeted() -> None:
    with pytest.raises(NonRetryable):
        asyncio.run(greet(Greeting(name=" "), context()))


def test_a_wrong_payload_is_refused_before_it_is_sent() -> None:
    with pytest.raises(InvalidRequest, match="name"):
        greet.request(cast(Greeting, {{"nmae": "Ada"}}), user_id="ada")
'''


class CannotWrite(Exception):
    """Nothing was written. The text says why, and the way out."""


def write_new(name: str, folder: Path) -> Sequence[Path]:
    """The module and its test in this folder. Raises CannotWrite."""
    _check_name(name)
    texts = {
        folder / f"{name}.py": MODULE.format(name=name),
        folder / f"test_{name}.py": TEST.format(name=name),
    }
    taken = [path for path in (*texts, folder / name) if os.path.lexists(path)]
    if taken:
        raise CannotWrite(
            f"{taken[0].name} is there already and is left as it is: choose another name, or move "
            "it away"
        )
    if find_spec(name) is not None:
        raise CannotWrite(
            f"the name {name!r} belongs to a module that Python finds already: choose another, "
            f"such as {name}_jobs"
        )
    for path, text in texts.items():
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise CannotWrite(
                f"{path.name} cannot be written: {error.strerror}: choose another folder, or mend "
                "that"
            ) from error
    return tuple(texts)


def _check_name(name: str) -> None:
    if NAME.fullmatch(name) and not keyword.iskeyword(name) and not keyword.issoftkeyword(name):
        return
    word = re.sub(r"[^a-z0-9]+", "_", name.lower(), flags=re.ASCII).strip("_")[:40]
    better = word if NAME.fullmatch(word) and not keyword.iskeyword(word) else "my_jobs"
    raise CannotWrite(
        f"{name!r} cannot be a module: write small letters, digits and _, a letter first, 64 at "
        f"most, and no word of Python's own; for example {better}"
    )
