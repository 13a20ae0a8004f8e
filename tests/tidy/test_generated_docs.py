"""Generated documents are fresh, valid against official schemas, and true of real records."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final

import orjson
import pytest
import yaml
from jsonschema import Draft7Validator, Draft202012Validator

from tests.tidy.sources import ROOT
from tidemill.agents import exit_codes
from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.codec import Refusal, decode_request
from tidemill.schemas.dead import dead_headers
from tidemill.schemas.event_writer import Event, EventWriter
from tidemill.schemas.events import JobEvent
from tidemill.schemas.instants import InstantCache
from tidemill.schemas.topics import Topics
from tidemill.schemas.words import ErrorCode, EventKind, Reason, State
from tidemill.streams.lifecycle import TRANSITIONS
from tools.generate import json_schemas, render_all, stale, words
from tools.generate.grafana import COLUMNS, DASHBOARDS, dashboard

DATA: Final = ROOT / "tests" / "data"
REFERENCE: Final = ROOT / "docs" / "REFERENCE.md"


def read(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def schema(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = read(f"docs/schemas/{name}.json")
    return loaded


def test_all_generated_files_are_fresh() -> None:
    assert stale() == [], "run `make docs`"


def test_vendored_schemas_are_what_their_table_says() -> None:
    text = (DATA / "SOURCES.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| (\S+\.json) \|.*\| ([0-9a-f]{64}) \|$", text, re.MULTILINE))
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in DATA.glob("*.json")}
    assert told.items() <= found.items()
    assert len(told) == 2


# --- AsyncAPI -------------------------------------------------------------------------------------


def asyncapi_validator() -> Draft7Validator:
    return Draft7Validator(json.loads((DATA / "asyncapi-3.0.0.json").read_text(encoding="utf-8")))


def load_asyncapi() -> dict[str, Any]:
    text = (ROOT / "docs" / "asyncapi.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def test_asyncapi_is_valid() -> None:
    errors = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for error in asyncapi_validator().iter_errors(load_asyncapi())
    ]
    assert errors == []


def test_the_asyncapi_schema_refuses_what_is_wrong() -> None:
    document = load_asyncapi()
    document["channels"]["requested"]["adress"] = "jobs.requested"
    assert not asyncapi_validator().is_valid(document)


def test_asyncapi_references_resolve() -> None:
    document = load_asyncapi()
    text = json.dumps(document)
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', text)):
        node: Any = document
        for part in reference.split("/"):
            node = node[part]
    public = {spec.name for spec in Topics().fixed() if spec.is_public}
    assert {channel["address"] for channel in document["channels"].values()} == public


# --- JSON Schemas against real records ------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(json_schemas.all_schemas()))
def test_json_schemas_are_valid(name: str) -> None:
    found = schema(name)
    assert found["$schema"] == json_schemas.DIALECT
    assert found["$id"] == f"urn:tidemill:schema:{name}:{SCHEMA_VERSION}"
    Draft202012Validator.check_schema(found)


@pytest.mark.parametrize(
    ("request_", "is_valid"),
    [
        ({"type": "t", "user_id": "u"}, True),
        ({"type": "t", "user_id": "u", "run_at": "2026-01-31T09:00:00Z", "priority": "low"}, True),
        ({"type": "t", "user_id": "u", "run_at": 1_764_000_000_123, "tags": ["a"]}, True),
        ({"type": "t", "user_id": "u", "job_id": None, "payload": {"x": [1, None]}}, True),
        ({"type": "t"}, False),
        ({"type": "t", "user_id": "u", "colour": 1}, False),
        ({"type": "t t", "user_id": "u"}, False),
        ({"type": "t", "user_id": ""}, False),
        ({"type": "t", "user_id": "u", "max_attempts": 0}, False),
        ({"type": "t", "user_id": "u", "priority": "urgent"}, False),
    ],
)
def test_the_request_schema_agrees_with_the_codec(
    request_: dict[str, Any], is_valid: bool
) -> None:
    assert Draft202012Validator(schema("job-request")).is_valid(request_) == is_valid
    decoded = decode_request(orjson.dumps(request_), [])
    assert isinstance(decoded, Refusal) != is_valid


def test_the_event_schema_takes_real_events() -> None:
    event = Event(
        EventKind.ATTEMPT_FAILED, "u", "j", "t", "default", "medium", 1, 1, 4, 1, 1,
        1_764_000_000_123, State.DISPATCHED, State.RUNNING,
        error={"code": "TIMEOUT", "message": "m", "retryable": True},
        cause=("jobs.outcomes", 0, 7), wait_ms=5, run_ms=6,
    )
    wire = orjson.loads(EventWriter(InstantCache()).write(event))
    assert list(Draft202012Validator(schema("job-event")).iter_errors(wire)) == []
    JobEvent.model_validate(wire, extra="forbid")
    wire["surprise"] = 1  # of a later version: whoever reads events now goes on
    assert Draft202012Validator(schema("job-event")).is_valid(wire)


def test_the_dead_letter_schema_takes_real_headers() -> None:
    headers = dead_headers(
        [("theirs", b"x")], topic="t", partition=0, offset=1, timestamp=2, stage="request",
        code="UNDECODABLE", message="m",
    )
    found = {name: (value or b"").decode() for name, value in headers}
    assert Draft202012Validator(schema("dead-letter-headers")).is_valid(found)
    del found["tidemill.dead.offset"]
    assert not Draft202012Validator(schema("dead-letter-headers")).is_valid(found)


# --- the documents --------------------------------------------------------------------------------


def test_every_word_has_a_meaning_and_every_error_a_way_out() -> None:
    assert set(words.STATE_MEANINGS) == set(State)
    assert set(words.EVENT_MEANINGS) == set(EventKind)
    assert set(words.REASON_MEANINGS) == set(Reason)
    assert set(words.ERROR_FIXES) == set(ErrorCode)
    assert all(wrong and fix for wrong, fix in words.ERROR_FIXES.values())


def test_the_reference_lists_every_name() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    names = [spec.name for spec in Topics().fixed()]
    names += [code.value for code in ErrorCode]
    names += ["job_events", "job_minutes", "tidemill.dead.error.code", "ce_id", "TIDEMILL_TOKEN"]
    assert [name for name in names if f"`{name}`" not in text and f"### {name}" not in text] == []
    for code in exit_codes.MEANINGS:
        assert f"| {code} |" in text


def test_the_diagram_has_every_transition() -> None:
    text = (ROOT / "docs" / "STATE_MACHINE.md").read_text(encoding="utf-8")
    diagram = text.split("```mermaid")[1].split("```")[0]
    drawn = {
        (begin, kind)
        for begin, kinds in re.findall(r"^    (\S+) --> \S+: (.+)$", diagram, re.MULTILINE)
        for kind in kinds.split(", ")
    }
    wanted = {
        ("[*]" if state is None else state.value, kind.value) for state, kind in TRANSITIONS
    }
    assert drawn == wanted


def test_nothing_generated_depends_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = render_all()
    monkeypatch.setenv("TIDEMILL_KAFKA", "elsewhere:1")
    monkeypatch.setenv("TIDEMILL_WORKER_ID", "someone")
    assert render_all() == before


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_of_a_dashboard_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    panels = dashboard(name)["panels"]
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        cells = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
