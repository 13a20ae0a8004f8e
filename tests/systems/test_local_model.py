"""The real language model of this machine: started on demand, shared, restarted, ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil
import pytest
from pydantic import BaseModel, ConfigDict, Field

from systems.models import LOCAL_MODEL, Call, Message, Model, ModelUnavailable, Provider
from systems.models.calls import FREE
from systems.models.local import leave, local_address
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(240)

SHOWN = (
    "Text: I love Ethereum but Kraken is slow.\n"
    'JSON: {"mentions":[{"name":"Ethereum","sentiment":"positive"},'
    '{"name":"Kraken","sentiment":"negative"}]}\n'
)


class Mention(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=40)
    sentiment: Literal["positive", "negative", "neutral"]


class Mentions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    mentions: list[Mention] = Field(max_length=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("model")
    yield folder
    leave(folder)
    if (folder / "server.json").exists():
        pid = pid_of(folder)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(pid), 10, "nobody takes the server's end")


def pid_of(folder: Path) -> int:
    return int(json.loads((folder / "server.json").read_text())["pid"])


def local(folder: Path, calls: list[Call]) -> Model:
    provider = Provider("local", lambda: local_address(folder), price=FREE)
    return Model(provider, LOCAL_MODEL, on_call=calls.append)


async def test_the_real_model_answers_by_the_schema_and_in_a_stream(folder: Path) -> None:
    calls: list[Call] = []
    asked: list[Message] = [
        {"role": "user", "content": f"{SHOWN}Text: Bitcoin is great, Binance failed me.\nJSON:"}
    ]
    async with local(folder, calls) as model:
        answer = await model.complete(asked, Mentions, max_tokens=120)
        pieces = [p async for p in model.stream(asked, max_tokens=20)]
    assert answer.value.mentions
    assert (answer.usage.input_tokens > 20, answer.usage.output_tokens > 5) == (True, True)
    assert len(pieces) > 1
    assert [(call.outcome, call.cost_usd) for call in calls] == [("ok", 0.0), ("ok", 0.0)]
    assert calls[1].output_tokens > 0


async def test_a_killed_server_is_a_retry_and_the_next_call_starts_another(folder: Path) -> None:
    asked: list[Message] = [{"role": "user", "content": "The capital of France is"}]
    async with local(folder, []) as model:
        assert (await model.complete(asked, max_tokens=4)).value
        first = pid_of(folder)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(first), 10, "the server lives on")
        with pytest.raises(ModelUnavailable):
            await model.complete(asked, max_tokens=4)
        assert (await model.complete(asked, max_tokens=4)).value
    assert pid_of(folder) != first


def test_processes_share_one_server(folder: Path) -> None:
    address = local_address(folder)
    ask = "import sys; from pathlib import Path; from systems.models.local import local_address; "
    ask += "print(local_address(Path(sys.argv[1])))"
    told = subprocess.run(
        [sys.executable, "-c", ask, str(folder)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).resolve().parents[2], timeout=60,
    )
    assert told.stdout.strip() == address


def test_the_server_ends_when_nobody_uses_it(tmp_path: Path) -> None:
    ask = "import sys; from pathlib import Path; from systems.models import local, server; "
    ask += "print(local.local_address(Path(sys.argv[1])))"
    subprocess.run(
        [sys.executable, "-c", ask, str(tmp_path)], capture_output=True, check=True,
        cwd=Path(__file__).resolve().parents[2], timeout=120,
        env={**os.environ, "LOCAL_MODEL_IDLE_SECONDS": "1"},
    )
    pid = pid_of(tmp_path)
    wait_until(lambda: not (tmp_path / "server.json").exists(), 60, f"{pid} still serves")
