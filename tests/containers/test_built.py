"""What the containers of `make test-containers` are told, without a Docker daemon.

The servers themselves run only where a daemon answers. Here a stand-in for the daemon keeps what it
is asked for: it proves our side, that the right containers are asked for and removed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest
import yaml

from tests.containers import parts
from tests.containers.__main__ import SUITES, main
from tests.containers.daemon import no_daemon


@pytest.fixture
def compose() -> dict[str, Any]:
    text = (parts.ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)["services"]
    return loaded


def test_the_images_are_those_of_the_compose_file(compose: dict[str, Any]) -> None:
    assert parts.kafka_part().image == compose["kafka"]["image"]
    assert parts.clickhouse_part().image == compose["clickhouse"]["image"]


def test_the_broker_advertises_the_port_that_clients_use(compose: dict[str, Any]) -> None:
    part = parts.kafka_part(port=45_678)
    assert part.port == 45_678
    advertised = part.environment["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert advertised[0] == "HOST://127.0.0.1:45678"
    # All else is as in the compose file, and the broker finds itself by that file's name for it.
    changed = {
        name for name, value in compose["kafka"]["environment"].items()
        if part.environment.get(name) != value
    }
    assert changed == {"KAFKA_ADVERTISED_LISTENERS"}
    assert part.hostname in part.environment["KAFKA_CONTROLLER_QUORUM_VOTERS"]
    assert f"HOST://:{part.inside_port}," in part.environment["KAFKA_LISTENERS"]


def test_the_server_has_a_user_and_the_files_of_the_compose_file() -> None:
    part = parts.clickhouse_part()
    assert part.environment["CLICKHOUSE_USER"] == "tidemill"
    assert not [value for value in part.environment.values() if "$" in value]
    assert [(parts.ROOT / path).is_file() for path in part.files] == [True]
    assert part.ulimits == {"nofile": 262_144}


def test_each_part_has_a_port_of_its_own() -> None:
    assert parts.kafka_part().port != parts.clickhouse_part().port


@pytest.mark.parametrize("suite", SUITES)
def test_the_suites_are_those_of_the_other_tiers(suite: str) -> None:
    assert (parts.ROOT / suite).exists()


def test_without_a_daemon_the_run_says_why_it_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    no_daemon.cache_clear()
    try:
        assert main([]) == 0
        assert main(["--required"]) == 1
    finally:
        no_daemon.cache_clear()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("skipped: tests over containers: no Docker daemon answers" in line for line in lines)


class Daemon(ThreadingHTTPServer):
    """Answers like a Docker daemon as far as one container's life goes, and keeps the questions."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.created: list[dict[str, Any]] = []
        self.removed: list[str] = []


class Answers(BaseHTTPRequestHandler):
    """One connection to it."""

    protocol_version = "HTTP/1.1"
    server: Daemon

    def log_message(self, format: str, *args: object) -> None:
        """The test's output is not for them."""

    def _answer(self, body: Any, status: int = 200) -> None:
        data = orjson.dumps(body)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path.endswith("/version"):
            self._answer({"ApiVersion": "1.44", "MinAPIVersion": "1.24", "Version": "0"})
        else:
            self._answer({"Id": "c1", "Config": {}, "State": {"Running": True}, "Image": "i1"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if "/containers/create" in self.path:
            self.server.created.append(orjson.loads(body))
            self._answer({"Id": "c1", "Warnings": []}, 201)
        else:
            self._answer({}, 200)

    def do_DELETE(self) -> None:
        self.server.removed.append(self.path)
        self._answer({})


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    from testcontainers.core.config import testcontainers_config

    server = Daemon()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_port}")
    # The helper that removes what a killed test run left is a second container.
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("part", [parts.kafka_part(), parts.clickhouse_part()], ids=["k", "c"])
def test_a_container_is_asked_for_on_loopback_and_removed(
    daemon: Daemon, part: parts.Part
) -> None:
    with parts.running(part, lambda: True):
        (asked,) = daemon.created
        assert not daemon.removed
    assert asked["Image"] == part.image
    assert asked["Hostname"] == part.hostname
    told = dict(line.split("=", 1) for line in asked["Env"])
    assert told == part.environment
    host = asked["HostConfig"]
    assert host["PortBindings"] == {
        f"{part.inside_port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(part.port)}]
    }
    assert len(host.get("Binds") or []) == len(part.files)
    assert len(host.get("Ulimits") or []) == len(part.ulimits)
    assert len(daemon.removed) == 1


def test_a_container_whose_server_never_answers_is_removed(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "READY_SECONDS", 0.0)
    monkeypatch.setattr(parts, "_log_of", lambda container: "its last words")
    with (
        pytest.raises(AssertionError, match=r"did not answer in 0 s:\nits last words"),
        parts.running(parts.kafka_part(), lambda: False),
    ):
        raise RuntimeError("never reached")
    assert len(daemon.removed) == 1
