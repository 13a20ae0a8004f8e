"""docker-compose.yml and Grafana's files: valid, on loopback, with the settings of the tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.tidy.sources import ROOT
from tidemill.agents import settings
from tidemill.agents.embedded.kafka_settings import server_properties
from tidemill.schemas.topics import DEV_PARTITIONS

COMPOSE: Final = ROOT / "docker-compose.yml"
GRAFANA: Final = ROOT / "deploy" / "grafana"
ROLES: Final[dict[str, type[settings.CommonSettings]]] = {
    "topics": settings.WorkerSettings,
    "ledger": settings.LedgerSettings,
    "worker": settings.WorkerSettings,
    "sink": settings.SinkSettings,
    "api": settings.ApiSettings,
}
# Of the embedded broker: where it listens and writes, which differs between machines.
PLACES: Final = {
    "controller.quorum.voters", "listeners", "advertised.listeners", "log.dirs",
}


def load_compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load_compose()


def specification() -> Draft202012Validator:
    text = (ROOT / "tests/data/compose-spec.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(text))


def filled(value: str) -> str:
    """What compose makes of variables, when those without a default are set to `secret`."""
    value = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
    return re.sub(r"\$\{\w+:\?[^}]*\}", "secret", value)


def test_it_fits_the_compose_specification(compose: dict[str, Any]) -> None:
    validator = specification()
    validator.check_schema(validator.schema)
    errors = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
        for error in validator.iter_errors(compose)
    ]
    assert errors == []


def test_the_specification_refuses_what_is_wrong(compose: dict[str, Any]) -> None:
    is_valid = specification().is_valid(compose | {"services": {"kafka": {"imagine": "x"}}})
    assert not is_valid


def test_all_roles_are_there(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {*ROLES, "kafka", "clickhouse", "grafana"}


def test_every_port_is_on_loopback(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 4
    assert all(re.match(r"^127\.0\.0\.1:\d+:\d+$", port) for port in ports)


@pytest.mark.parametrize("role", ROLES)
def test_the_settings_of_a_role_are_settings(
    compose: dict[str, Any], role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ROLES[role]
    for name, value in compose["services"][role]["environment"].items():
        assert name.startswith(settings.ENV_PREFIX)
        assert name.removeprefix(settings.ENV_PREFIX).lower() in model.model_fields, name
        monkeypatch.setenv(name, filled(value))
    loaded = settings.load(model)
    assert loaded.kafka == "kafka:29092"
    assert loaded.partitions == DEV_PARTITIONS
    if role in ("sink", "api"):
        assert loaded.clickhouse == "http://tidemill:tidemill@clickhouse:8123/default"


def test_the_api_needs_a_token(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = compose["services"]["api"]["environment"]
    assert environment["TIDEMILL_TOKEN"].startswith("${TIDEMILL_TOKEN:?")
    for name, value in environment.items():
        if name != "TIDEMILL_TOKEN":
            monkeypatch.setenv(name, filled(value))
    monkeypatch.delenv("TIDEMILL_TOKEN", raising=False)
    with pytest.raises(settings.SettingsError, match="token is required"):
        settings.load(settings.ApiSettings)


def test_the_commands_are_commands_of_tidemill(compose: dict[str, Any]) -> None:
    for role in ROLES:
        command = compose["services"][role]["command"]
        assert command[0] == role
    assert compose["services"]["worker"]["command"][1] == "tidemill.demo_jobs"
    assert (ROOT / "tidemill" / "demo_jobs.py").is_file()


def test_the_broker_is_set_as_the_embedded_one(compose: dict[str, Any]) -> None:
    lines = server_properties(port=1, controller_port=2).splitlines()
    embedded = dict(line.split("=", 1) for line in lines)
    environment = compose["services"]["kafka"]["environment"]
    for name, value in embedded.items():
        if name not in PLACES:
            variable = "KAFKA_" + name.replace(".", "_").upper()
            assert environment.get(variable) == value, variable


def test_what_is_mounted_exists(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
            else:
                assert source in compose["volumes"]


def test_the_image_copies_what_is_there_and_is_let_through() -> None:
    dockerfile = (ROOT / "deploy/images/Dockerfile").read_text(encoding="utf-8")
    let_through = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert "agents" in copied
    assert [source for source in copied if f"!{source}" not in let_through] == []
    assert "--require-hashes" in dockerfile


def test_grafana_finds_its_source_and_its_dashboards(compose: dict[str, Any]) -> None:
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/clickhouse.yaml").read_text())
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/tidemill.yaml").read_text())
    (told,) = source["datasources"]
    service = compose["services"]["grafana"]
    assert told["type"] == service["environment"]["GF_INSTALL_PLUGINS"]
    assert told["jsonData"]["host"] in compose["services"]
    folder = provider["providers"][0]["options"]["path"]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in service["volumes"]
    home = service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (GRAFANA / "dashboards" / Path(home).name).is_file()
    for path in (GRAFANA / "dashboards").glob("*.json"):
        panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
        assert {panel["datasource"]["uid"] for panel in panels} == {told["uid"]}
        assert {panel["targets"][0]["datasource"]["uid"] for panel in panels} == {told["uid"]}


def test_grafana_may_only_read() -> None:
    users = ElementTree.parse(GRAFANA / "clickhouse/reader.xml")
    assert users.findtext("profiles/grafana/readonly") == "1"
    changeable = "profiles/grafana/constraints/max_execution_time/changeable_in_readonly"
    assert users.find(changeable) is not None
    assert users.findtext("users/grafana/grants/query") == "GRANT SELECT ON default.*"
