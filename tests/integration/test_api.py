"""The HTTP API over a real ClickHouse engine and a real Kafka: answers, refusals, who may call."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from fastapi import FastAPI
from pydantic import SecretStr

from tests.page.sample import Sample, engine_with, insert, make_sample, request
from tests.waiting import wait_until
from tidemill.agents.api.main import ApiServer, build_api
from tidemill.agents.api.problems import MEDIA_TYPE, Problem
from tidemill.agents.api.producer import Enqueuer
from tidemill.agents.api.routes import job_path
from tidemill.agents.api.security import safe_next
from tidemill.agents.clickhouse.engine import Engine, EngineUnavailable, open_engine
from tidemill.agents.embedded.broker import Broker
from tidemill.agents.settings import ApiSettings, SettingsError
from tidemill.schemas.topics import Topics

NOW = datetime.now(UTC)
TOKEN = "a token of nobody"
SCRIPT = "<script>window.stolen=1</script>"
PAGE = {"accept": "text/html"}


@contextmanager
def serving(app: FastAPI) -> Iterator[httpx.Client]:
    server = ApiServer(app, "127.0.0.1", 0)
    server.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
            yield client
    finally:
        server.stop()


@pytest.fixture(scope="module")
def sample() -> Sample:
    made = make_sample(NOW, jobs=400)
    hostile = request(
        made, NOW, f"user{SCRIPT}", f"job/{SCRIPT}", f"type{SCRIPT}", "default", {"text": SCRIPT}
    )
    error: dict[str, Any] = {"error_code": f"CODE{SCRIPT}", "error_message": f"message{SCRIPT}"}
    hostile.tell("failed", "failed", reason=f"reason{SCRIPT}", **error)
    return made


@pytest.fixture(scope="module")
def engine(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_with(tmp_path_factory.mktemp("clickhouse"), sample) as opened:
        yield opened


@pytest.fixture(scope="module")
def topics(kafka: str) -> Topics:
    topics = Topics(f"t{uuid.uuid4().hex[:10]}.")
    admin = AdminClient({"bootstrap.servers": kafka})
    names = (topics.requested, topics.commands, topics.events)
    for made in admin.create_topics([NewTopic(name, 4) for name in names]).values():
        made.result(30)
    return topics


@pytest.fixture(scope="module")
def api(engine: Engine, kafka: str, topics: Topics) -> Iterator[httpx.Client]:
    settings = ApiSettings(kafka=kafka, topic_prefix=topics.prefix)
    with serving(build_api(engine, settings)) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(engine: Engine) -> Iterator[httpx.Client]:
    with serving(build_api(engine, ApiSettings(token=SecretStr(TOKEN)))) as client:
        yield client


def problem_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == MEDIA_TYPE
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:tidemill:problem:")
    assert problem["title"]
    assert problem["detail"]
    return problem


# --- reading --------------------------------------------------------------------------------------


def test_every_listed_panel_answers_and_the_others_say_where_they_are(api: httpx.Client) -> None:
    panels = api.get("/api/stats").json()
    assert {"throughput", "latency", "dead_letters"} <= {panel["name"] for panel in panels}
    for panel in panels:
        answer = api.get(f"/api/stats/{panel['name']}", params={"minutes": 15})
        assert answer.json()["title"] == panel["title"]
    for name in ("job", "job_story", "jobs_list"):
        assert "/api/jobs" in problem_of(api.get(f"/api/stats/{name}"), 404)["detail"]


def test_totals_over_http_are_what_was_written(api: httpx.Client, sample: Sample) -> None:
    totals = api.get("/api/stats/totals", params={"minutes": 60}).json()["rows"][0]
    assert totals["succeeded"] == len(sample.ended("succeeded"))
    assert totals["failed"] == len(sample.ended("failed"))


def test_jobs_page_through_the_cursor(api: httpx.Client, sample: Sample) -> None:
    seen, cursor = [], ""
    while True:
        page = api.get("/api/jobs", params={"limit": 150, "cursor": cursor}).json()
        seen += [(job["user_id"], job["job_id"]) for job in page["jobs"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 401
    assert set(seen) == set(sample.last_states())


def test_a_job_has_its_story(api: httpx.Client, sample: Sample) -> None:
    failed = sample.ended("failed")[0]
    answer = api.get(job_path(failed["job_id"], failed["user_id"], prefix="/api")).json()
    assert answer["job"]["status"] == "failed"
    sequences = [event["sequence"] for event in answer["events"]]
    assert sequences == list(range(1, failed["sequence"] + 1))
    assert answer["events"][-1]["event"] == "failed"


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/api/jobs/nobody-asked", 404, "job_id"),
        ("/api/jobs?status=done", 422, "status"),
        ("/api/jobs?cursor=%21", 422, "cursor"),
        ("/api/jobs?limit=0", 422, "limit"),
        ("/api/stats/throughput?minutes=99999999", 422, "minutes"),
        ("/api/stats/nonsense", 404, "name"),
        ("/api/nothing", 404, None),
    ],
)
def test_bad_reads_name_the_field(
    api: httpx.Client, path: str, status: int, field: str | None
) -> None:
    assert problem_of(api.get(path), status).get("field") == field


def test_ids_that_look_like_paths_are_found(api: httpx.Client, engine: Engine) -> None:
    ids = ["..", "a/../b", "a/b c?d#e&f=g%41", "\\x", "ü/日本", "."]
    made = Sample()
    for job_id in ids:
        request(made, datetime.now(UTC), "odd", job_id, "odd", "default", {})
    insert(engine, made)
    for job_id in ids:
        answer = api.get(job_path(job_id, "odd", prefix="/api"))
        assert answer.json()["job"]["job_id"] == job_id
        assert api.get(job_path(job_id, "odd"), headers=PAGE).status_code == 200


def test_the_description_is_openapi_3_1(api: httpx.Client) -> None:
    description = api.get("/openapi.json").json()
    assert description["openapi"].startswith("3.1")
    assert {"/api/jobs", "/api/stats/{name}"} <= description["paths"].keys()
    assert not any(path.startswith("/fragments") for path in description["paths"])


# --- asking for a job -----------------------------------------------------------------------------


def read_requests(kafka: str, topic: str, wanted: int) -> list[Any]:
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    found: list[Any] = []

    def enough() -> bool:
        record = consumer.poll(0.2)
        if record is not None and record.error() is None:
            found.append(record)
        return len(found) >= wanted

    try:
        wait_until(enough, 30, lambda: f"{len(found)} of {wanted} records on {topic}")
    finally:
        consumer.close()
    return found


def test_a_request_reaches_kafka(api: httpx.Client, kafka: str, topics: Topics) -> None:
    body = {"type": "greet", "user_id": "ada", "payload": {"name": "Ada"}}
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"Idempotency-Key": "k 1", "traceparent": trace}
    keyed = api.post("/api/jobs", json=body, headers=headers)
    free = api.post("/api/jobs", json=body)
    assert keyed.status_code == free.status_code == 202
    assert keyed.json()["job_id"] == "k 1"
    assert keyed.headers["location"] == "/api/jobs/k%201?user_id=ada"
    assert free.json()["job_id"] != keyed.json()["job_id"]
    records = {
        json.loads(record.value())["job_id"]: record
        for record in read_requests(kafka, topics.requested, 2)
    }
    assert set(records) == {"k 1", free.json()["job_id"]}
    record = records["k 1"]
    assert record.key() == b"ada"
    assert json.loads(record.value()) == body | {"job_id": "k 1"}
    assert ("traceparent", trace.encode()) in (record.headers() or [])
    assert records["k 1"].partition() == records[free.json()["job_id"]].partition()


@pytest.mark.parametrize(
    ("content", "headers", "status", "field"),
    [
        (b"{}", {}, 422, "type"),
        (b'{"type":"t","user_id":"u","colour":1}', {}, 422, "colour"),
        (b'{"type":"t","user_id":"u","run_at":"soon"}', {}, 422, "run_at"),
        (b'{"type":"t","user_id":"u","job_id":"a"}', {"Idempotency-Key": "b"}, 422,
         "Idempotency-Key"),
        (b'{"type":"t","user_id":"u","job_id":0}', {}, 422, "job_id"),
        (b'{"type":"t","user_id":"u","job_id":""}', {}, 422, "job_id"),
        (b'{"type":"t","user_id":"u"}', {"Idempotency-Key": ""}, 422, "job_id"),
        (b"[1]", {}, 400, None),
        (b"{", {}, 400, None),
        (b"[" * 9_000, {}, 400, None),
        (b'{"type":"t","user_id":"u","payload":{"x":"' + b"x" * 1_100_000 + b'"}}', {}, 413, None),
        (b"{}", {"content-type": "text/plain"}, 415, "Content-Type"),
    ],
)
def test_bad_requests_name_the_field(
    api: httpx.Client, content: bytes, headers: dict[str, str], status: int, field: str | None
) -> None:
    sent = {"content-type": "application/json"} | headers
    answer = api.post("/api/jobs", content=content, headers=sent)
    assert problem_of(answer, status).get("field") == field


async def test_an_absent_kafka_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.agents.api.producer.DELIVERY_TIMEOUT_MS", 1_000)
    enqueuer = Enqueuer("127.0.0.1:1", "")
    try:
        with pytest.raises(Exception, match="not accepted") as caught:
            await enqueuer.send("ada", b"{}", [])
        assert isinstance(caught.value, Problem)
        assert caught.value.status == 503
    finally:
        enqueuer.close()


# --- who may call ---------------------------------------------------------------------------------


def test_another_host_name_is_refused(api: httpx.Client) -> None:
    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "[x", ""):
        assert problem_of(api.get("/", headers={"host": host}), 421)["field"] == "Host"
    for host in ("localhost", "localhost:1", "127.0.0.1:99", "[::1]:80"):
        assert api.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://[x"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_page_of_another_origin_changes_nothing(
    api: httpx.Client, headers: dict[str, str]
) -> None:
    answer = api.post("/api/jobs", json={"type": "t", "user_id": "u"}, headers=headers)
    assert problem_of(answer, 403)["field"] == "Origin"
    paths = ("/api/jobs/j/cancel", "/api/job/redrive?job_id=j", "/job/cancel?job_id=j&user_id=u")
    for path in paths:
        assert problem_of(api.post(path, headers=headers), 403)["field"] == "Origin"


@pytest.mark.parametrize(
    "path", ["/", "/jobs", "/api/jobs", "/nothing", "/healthz", "/static/app.js"]
)
def test_every_answer_binds_the_browser(api: httpx.Client, path: str) -> None:
    for headers in (PAGE, {}, {"host": "evil.example"}):
        answer = api.get(path, headers=headers)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers


@pytest.mark.parametrize("path", ["/api/jobs/x", "/jobs/x", "/job?job_id=x&"])
def test_an_offset_that_no_query_takes_is_named(api: httpx.Client, path: str) -> None:
    sign = "" if path.endswith("&") else "?"
    answer = api.get(f"{path}{sign}offset=4294967296")
    assert answer.status_code == 422
    assert "offset" in answer.text


def test_without_a_token_only_loopback() -> None:
    settings = ApiSettings.model_construct(
        http_host="0.0.0.0", token=None, kafka="127.0.0.1:1", topic_prefix=""
    )
    with pytest.raises(SettingsError, match="TIDEMILL_TOKEN"):
        build_api(lambda: pytest.fail("not reached"), settings)


def test_the_token_guards_everything(guarded: httpx.Client) -> None:
    for path in ("/api/jobs", "/api/stats", "/metrics", "/openapi.json", "/fragments/kpis"):
        answer = guarded.get(path)
        assert problem_of(answer, 401)["field"] == "Authorization"
        assert answer.headers["www-authenticate"] == "Bearer"
    for given in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"):
        problem_of(guarded.get("/api/jobs", headers={"authorization": given}), 401)
    answer = guarded.get("/api/jobs", headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    assert guarded.get("/healthz").status_code == 200
    assert guarded.post("/api/jobs", json={}).status_code == 401
    for path in ("/api/jobs/j/cancel", "/job/redrive?job_id=j&user_id=u"):
        assert guarded.post(path).status_code == 401


def test_the_page_logs_in_with_a_form(guarded: httpx.Client) -> None:
    with httpx.Client(base_url=guarded.base_url) as browser:
        sent_on = browser.get("/jobs?status=failed", headers=PAGE)
        assert sent_on.status_code == 303
        assert sent_on.headers["location"] == "/login?next=%2Fjobs%3Fstatus%3Dfailed"
        assert "TIDEMILL_TOKEN" in browser.get("/login", headers=PAGE).text
        wrong = browser.post("/login", data={"token": "wrong", "next": "/jobs"})
        assert wrong.status_code == 401
        assert "set-cookie" not in wrong.headers
        right = browser.post("/login", data={"token": TOKEN, "next": "/jobs?status=failed"})
        assert right.headers["location"] == "/jobs?status=failed"
        cookie = right.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert TOKEN not in right.headers["set-cookie"]
        assert browser.get("/jobs", headers=PAGE).status_code == 200


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/jobs?x=1", "/jobs?x=1"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example/", "/"),
        ("/a\r\nSet-Cookie: x", "/"),
        ("", "/"),
    ],
)
def test_a_login_leads_nowhere_else(target: str, expected: str) -> None:
    assert safe_next(target) == expected


# --- what may go wrong ----------------------------------------------------------------------------


def test_text_from_users_never_becomes_markup(api: httpx.Client) -> None:
    job = job_path(f"job/{SCRIPT}", f"user{SCRIPT}")
    paths = ["/?minutes=60", "/jobs", f"/jobs?type={SCRIPT}&user_id={SCRIPT}&job_id={SCRIPT}", job,
             f"/jobs/{SCRIPT}", f"/{SCRIPT}", "/fragments/tables?minutes=60"]
    for path in paths:
        answer = api.get(path, headers=PAGE)
        assert answer.status_code in (200, 404)
        assert SCRIPT not in answer.text, path
    page = api.get(job, headers=PAGE).text
    for part in ("job/", "user", "type", "CODE", "message", "reason"):
        assert f"{part}&lt;script&gt;" in page, part


def test_an_outage_of_clickhouse_is_a_banner() -> None:
    def away() -> Engine:
        raise EngineUnavailable("clickhouse at http://127.0.0.1:1: connection refused")

    with serving(build_api(away, ApiSettings())) as client:
        for path in ("/", "/jobs", "/jobs/some-job"):
            page = client.get(path, headers=PAGE)
            assert page.status_code == 200
            assert "ClickHouse does not answer" in page.text
        for path in ("/api/jobs", "/api/stats/totals", "/api/jobs/x"):
            answer = client.get(path)
            assert "ClickHouse does not answer" in problem_of(answer, 503)["detail"]
            assert int(answer.headers["retry-after"]) > 0
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        assert "tidemill_api_clickhouse_up 0.0" in client.get("/metrics").text


def test_it_recovers_when_clickhouse_is_back(
    engine: Engine, kafka: str, topics: Topics
) -> None:
    is_there = False

    def opener() -> Engine:
        if not is_there:
            raise EngineUnavailable("not yet")
        return open_engine(engine.dsn)

    settings = ApiSettings(kafka=kafka, topic_prefix=topics.prefix)
    with serving(build_api(opener, settings)) as client:
        await_kafka(client)
        assert "ClickHouse" in problem_of(client.get("/readyz"), 503)["detail"]
        is_there = True
        assert client.get("/readyz").status_code == 200
        assert client.get("/api/jobs").status_code == 200


def await_kafka(client: httpx.Client, value: int = 1) -> None:
    word = f"tidemill_api_kafka_up {value:.1f}"
    wait_until(lambda: word in client.get("/metrics").text, 30, word)


def test_ready_says_the_truth_while_kafka_goes_and_comes(
    engine: Engine, own_broker: Broker
) -> None:
    settings = ApiSettings(kafka=own_broker.bootstrap)
    topics = Topics("")
    with serving(build_api(engine, settings)) as client:
        assert "Kafka" in problem_of(client.get("/readyz"), 503)["detail"]
        own_broker.start()
        wait_until(
            lambda: f"no topic {topics.requested}" in client.get("/readyz").text, 30, "a look"
        )
        admin = AdminClient({"bootstrap.servers": own_broker.bootstrap})
        names = (topics.requested, topics.commands, topics.events)
        for made in admin.create_topics([NewTopic(name, 1) for name in names]).values():
            made.result(30)
        wait_until(lambda: client.get("/readyz").status_code == 200, 30, "ready")
        own_broker.kill()
        wait_until(lambda: client.get("/readyz").status_code == 503, 30, "not ready")
        begun = time.monotonic()
        for _ in range(20):
            assert "Kafka does not answer" in problem_of(client.get("/readyz"), 503)["detail"]
        assert time.monotonic() - begun < 5, "a probe must not wait for Kafka"
        assert client.get("/healthz").status_code == 200
        assert client.get("/api/jobs").status_code == 200  # what is stored can be read on
        own_broker.start()
        wait_until(lambda: client.get("/readyz").status_code == 200, 60, "ready again")


def test_many_viewers_cost_one_query(engine: Engine) -> None:
    asked: list[str] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

        def query(self, sql: str, *args: Any) -> list[dict[str, Any]]:
            asked.append(sql)
            return engine.query(sql, *args)

    counting: Any = Counting()
    with serving(build_api(counting, ApiSettings())) as client, ThreadPoolExecutor(16) as viewers:
        url = str(client.base_url) + "/api/stats/totals"
        assert {a.status_code for a in viewers.map(lambda _: httpx.get(url), range(32))} == {200}
    # Answers stay fresh for a moment; on a slow machine a second moment may begin.
    assert len(asked) <= 4


def test_metrics_have_bounded_labels(api: httpx.Client) -> None:
    api.get(f"/api/jobs/{uuid.uuid4()}")
    api.get(f"/{uuid.uuid4()}")
    text = api.get("/metrics").text
    assert 'route="/api/jobs/{job_id:path}"' in text
    assert 'route="other"' in text
    assert "tidemill_api_query_seconds_bucket" in text


def test_a_taken_port_is_told(api: httpx.Client) -> None:
    port = api.base_url.port
    assert port is not None
    with pytest.raises(SettingsError, match="TIDEMILL_HTTP_PORT"):
        ApiServer(FastAPI(), "127.0.0.1", port)
