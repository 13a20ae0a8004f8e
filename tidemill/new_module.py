"""`tidemill new NAME`: a module with a job, its test and its settings, which run as they are.

Owns the three texts and the check of the name. Refuses to overwrite anything.
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
"""Jobs of {name}. `tidemill dev {name}` runs them."""

from __future__ import annotations

from pydantic import BaseModel

from tidemill import Backoff, Client, Context, NonRetryable, job


class Greeting(BaseModel):
    """What is asked for."""

    name: str


class Greeted(BaseModel):
    """What comes of it."""

    text: str
    attempt: int


async def compose(name: str) -> str:
    """The work itself: a model, a mail server, a database would be asked here."""
    return f"Hello, {{name}}!"


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
    return Greeted(text=await compose(payload.name), attempt=ctx.attempt)


if __name__ == "__main__":
    # Ask for a job and wait for its end; `tidemill dev {name}` runs it. Without that, Kafka is
    # waited for so many seconds; a program that may wait longer needs no client of its own.
    with Client(timeout_seconds=10) as client:
        handle = greet.enqueue_sync(Greeting(name="Ada"), user_id="ada", client=client)
        done = handle.result_sync(timeout=30)
        print(done.status, done.result)
'''

TEST: Final = '''\
"""The jobs of {name}, run by the engine itself: no Kafka, and a clock that tests move."""

from __future__ import annotations

import pytest
from {name} import Greeting, greet

from tidemill import InvalidRequest
from tidemill.testing import Engine


def test_somebody_is_greeted(tidemill_engine: Engine) -> None:
    job = tidemill_engine.enqueue(greet, Greeting(name="Ada"))
    tidemill_engine.run()
    assert job.status == "succeeded"
    assert job.result == {{"text": "Hello, Ada!", "attempt": 1}}


def test_an_error_is_tried_again(
    tidemill_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_down(name: str) -> str:
        raise ConnectionError("the server is down")

    with monkeypatch.context() as patch:
        patch.setattr("{name}.compose", is_down)
        job = tidemill_engine.enqueue(greet, Greeting(name="Ada"))
        tidemill_engine.run()
        assert (job.status, job.attempts) == ("retrying", 1)
    tidemill_engine.advance("3s")  # of virtual time
    assert (job.status, job.attempts) == ("succeeded", 2)


def test_nobody_is_not_greeted(tidemill_engine: Engine) -> None:
    job = tidemill_engine.enqueue(greet, Greeting(name=" "))
    tidemill_engine.run()
    assert (job.status, job.attempts) == ("failed", 1)
    assert job.error is not None
    assert job.error.code == "NO_NAME"


def test_a_wrong_payload_is_refused_before_it_is_sent(tidemill_engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        tidemill_engine.enqueue(greet, {{"nmae": "Ada"}})
'''

SETTINGS: Final = '''\
# Settings of {name} as variables. A shell takes them by `set -a; . ./{name}.env; set +a`;
# systemd (EnvironmentFile) and containers (--env-file) read the same file.
# `tidemill config` shows all settings, and where each is from.
# As they stand here they fit `tidemill dev` on this machine.
TIDEMILL_KAFKA=127.0.0.1:9092
TIDEMILL_CLICKHOUSE=http://127.0.0.1:8123
# In front of every topic: several installations on one Kafka.
TIDEMILL_TOPIC_PREFIX=
# json for machines.
TIDEMILL_LOG_FORMAT=console
# Handlers of a worker at once: `async def`, `def`.
TIDEMILL_CONCURRENCY=100
TIDEMILL_THREADS=32
# Seconds that running jobs have to finish when a worker is stopped.
TIDEMILL_STOP_GRACE_SECONDS=25
'''


class CannotWrite(Exception):
    """Nothing was written. The text says why, and the way out."""


def write_new(name: str, folder: Path) -> Sequence[Path]:
    """Module, test and settings in this folder. Raises CannotWrite."""
    _check_name(name)
    texts = {
        folder / f"{name}.py": MODULE.format(name=name),
        folder / f"test_{name}.py": TEST.format(name=name),
        folder / f"{name}.env": SETTINGS.format(name=name),
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
