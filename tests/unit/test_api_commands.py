"""Cancel and redrive over HTTP: the ledger's answer in words for programs and people."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest
from fastapi import APIRouter, FastAPI

from tidemill.agents.answers import AnswerError, AnswerTimeout, CommandAnswer, CommandReceipt
from tidemill.agents.api import commands, problems
from tidemill.agents.api.commands import Commander, add_commands

ODD_IDS = ("j", "a/b", "..", "a b", "ü?#%", "x/cancel", "cancel")


class Kafka:
    """An enqueuer that keeps what it was given."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, dict[str, Any]]] = []

    async def send_to(
        self, topic: str, user_id: str, value: bytes, _headers: object
    ) -> tuple[int, int]:
        self.sent.append((topic, user_id, orjson.loads(value)))
        return 3, 17


class Rows:
    """A reader that knows some users of any job."""

    def __init__(self, *users: str) -> None:
        self.users = users

    async def rows(self, _name: str, **_params: object) -> list[dict[str, str]]:
        return [{"user_id": user} for user in self.users]


class Api:
    """The two routes over fakes; `answer` is what the ledger says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *users: str) -> None:
        self.answer: CommandAnswer | Exception = CommandAnswer("cancelled")
        self.kafka = Kafka()
        self.receipts: list[CommandReceipt] = []
        enqueuer: Any = self.kafka
        reader: Any = Rows(*users)
        commander = Commander("nowhere:1", "x.", enqueuer, reader)
        router = APIRouter(prefix="/api")
        add_commands(router, commander)
        app = FastAPI()
        problems.install(app, None)
        app.include_router(router)
        self._transport = httpx.ASGITransport(app=app)
        monkeypatch.setattr(commands, "wait", self._wait)

    def _wait(self, _kafka: str, _topics: object, receipt: CommandReceipt) -> CommandAnswer:
        self.receipts.append(receipt)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def post(self, path: str, json: Any = None, **params: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=self._transport, base_url="http://api") as client:
            return await client.post(path, params=params, json=json)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    return Api(monkeypatch, "ada")


async def test_the_answer_is_the_event_that_it_caused(api: Api) -> None:
    said = await api.post("/api/jobs/j/cancel", reason="no more")
    assert said.status_code == 200
    assert said.json()["event"] == "cancelled"
    assert said.json()["user_id"] == "ada"  # whom ClickHouse names
    assert api.kafka.sent == [
        ("x.jobs.commands", "ada", {
            "command": "cancel", "user_id": "ada", "job_id": "j", "actor": "api",
            "reason": "no more",
        })
    ]
    (receipt,) = api.receipts
    assert (receipt.partition, receipt.offset) == (3, 17)
    api.answer = CommandAnswer("redriven", "operator")
    assert (await api.post("/api/jobs/j/redrive", user_id="bob")).json()["event"] == "redriven"
    assert api.kafka.sent[-1][1] == "bob"


@pytest.mark.parametrize("job_id", ODD_IDS)
async def test_any_id_fits_the_query(api: Api, job_id: str) -> None:
    said = await api.post("/api/job/cancel", job_id=job_id, user_id="ada")
    assert said.json()["job_id"] == job_id
    assert api.kafka.sent[-1][2]["job_id"] == job_id


@pytest.mark.parametrize(
    ("answer", "status", "kind"),
    [
        (CommandAnswer("command_refused", "unknown_job"), 404, "unknown-job"),
        (CommandAnswer("cancel_kept", None, "2026-01-01T00:00:00.000Z"), 404, "unknown-job"),
        (CommandAnswer("command_refused", "already_ended"), 409, "command-refused"),
        (CommandAnswer("command_refused", "not_ended"), 409, "command-refused"),
        (AnswerTimeout("no answer"), 504, "no-answer"),
        (AnswerError("no Kafka"), 503, "kafka-unavailable"),
    ],
    ids=str,
)
async def test_what_was_not_done_is_a_problem(
    api: Api, answer: CommandAnswer | Exception, status: int, kind: str
) -> None:
    api.answer = answer
    said = await api.post("/api/jobs/j/cancel", user_id="ada")
    assert said.status_code == status
    assert said.headers["content-type"] == problems.MEDIA_TYPE
    assert said.json()["type"].endswith(kind)
    if isinstance(answer, CommandAnswer) and answer.until:
        assert answer.until in said.json()["detail"]


async def test_whose_job_it_is_must_be_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = await Api(monkeypatch).post("/api/jobs/j/cancel")
    assert nobody.status_code == 404
    two = await Api(monkeypatch, "ada", "bob").post("/api/jobs/j/redrive")
    assert (two.status_code, two.json()["field"]) == (422, "user_id")


@pytest.mark.parametrize("params", [{"user_id": "x" * 1_000}, {"reason": "x" * 1_000}], ids=str)
async def test_what_is_too_long_is_refused(api: Api, params: dict[str, str]) -> None:
    assert (await api.post("/api/jobs/j/cancel", **params)).status_code == 422
    assert not api.kafka.sent


async def test_a_signal_has_its_name_and_value_in_the_body(api: Api) -> None:
    api.answer = CommandAnswer("resumed", "signal_came")
    body = {"name": "go", "value": {"ok": True}, "actor": "bob"}
    said = await api.post("/api/jobs/a/b/signal", json=body)
    assert (said.status_code, said.json()["event"]) == (200, "resumed")
    assert api.kafka.sent == [
        ("x.jobs.commands", "ada", {
            "command": "signal", "user_id": "ada", "job_id": "a/b", "name": "go",
            "value": {"ok": True}, "actor": "bob",
        })
    ]
    api.answer = CommandAnswer("signal_kept", None, "2026-01-01T00:00:00.000Z")
    said = await api.post("/api/job/signal", json={"name": "go"}, job_id="..", user_id="eve")
    assert (said.json()["event"], said.json()["until"]) == ("signal_kept", api.answer.until)
    assert api.kafka.sent[-1][2] == {
        "command": "signal", "user_id": "eve", "job_id": "..", "name": "go", "actor": "api"
    }


async def test_a_refused_signal_is_a_problem(api: Api) -> None:
    api.answer = CommandAnswer("command_refused", "already_signalled")
    said = await api.post("/api/jobs/j/signal", json={"name": "go"})
    assert (said.status_code, said.json()["reason"]) == (409, "already_signalled")
    assert "already signalled" in said.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 422, "name"), ({"name": ""}, 422, "name"), ({"name": 7}, 422, "name"),
        ({"name": "x" * 129}, 422, "name"), ({"name": "a\nb"}, 422, "name"),
        ({"name": "go", "value": "x" * 65_536}, 422, "value"),
        ({"name": "go", "actor": "x" * 129}, 422, "actor"),
        ({"name": "go", "job_id": "other"}, 422, "job_id"), ([1], 400, None),
    ],
    ids=str,
)
async def test_a_signal_that_is_wrong_names_its_field(
    api: Api, body: Any, status: int, field: str | None
) -> None:
    said = await api.post("/api/jobs/j/signal", json=body)
    assert (said.status_code, said.json().get("field")) == (status, field)
    assert not api.kafka.sent
