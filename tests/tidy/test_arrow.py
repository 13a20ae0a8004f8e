"""The arrow of imports, and what the pure core may not touch.

schemas <- streams <- agents <- tidemill <- systems. A systems module is written as a user would
write it, so it sees `tidemill` alone. The core may import two libraries, as they
are pure functions: cronsim (cron arithmetic) and orjson (bytes to values and back, which the
contracts use as well).
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.tidy.sources import Source, imported, sources_of

PACKAGES = ("schemas", "streams", "agents", "tidemill", "systems")
# Folders at the top that are imported as packages of `tidemill`.
BELOW = ("schemas", "streams", "agents")
MAY_IMPORT = {
    "schemas": {"schemas"},
    "streams": {"schemas", "streams"},
    "agents": {"schemas", "streams", "agents"},
    "tidemill": {"schemas", "streams", "agents", "tidemill"},
    "systems": {"tidemill", "systems"},
}
# What the core may import besides schemas and the standard library.
CORE_LIBRARIES = {"cronsim", "librt", "mypy_extensions", "orjson"}
CONTRACT_LIBRARIES = {
    "annotated_types", "librt", "mypy_extensions", "orjson", "pydantic", "pydantic_core", "yaml",
}

# Standard modules and names that would let the world into the core, with what to do instead.
BANNED_IN_CORE = {
    "asyncio": "the edge in agents/ waits; return an effect from react()",
    "concurrent": "the edge in agents/ runs things side by side",
    "datetime.datetime.now": "take `now` as an argument",
    "faust": "the edge in agents/ talks to Kafka",
    "io": "return an effect and let an edge do it",
    "logging": "return an event or a reason; the edge logs it",
    "multiprocessing": "the edge in agents/ runs things side by side",
    "os": "take the value as an argument or a policy's field",
    "pathlib": "take the value as an argument",
    "random": "jitter is a hash of job and attempt",
    "secrets": "jitter is a hash of job and attempt",
    "socket": "return an effect and let an edge do it",
    "subprocess": "return an effect and let an edge do it",
    "tempfile": "take the value as an argument",
    "threading": "the core is synchronous; the edge owns threads",
    "time": "take `now` as an argument",
    "urllib": "return an effect and let an edge do it",
    "uuid.uuid1": "derive the id from what it names",
    "uuid.uuid4": "derive the id from what it names",
}
BANNED_CALLS_IN_CORE = {
    "open": "return an effect and let an edge do it",
    "print": "return an event or a reason",
    "input": "take the value as an argument",
    "now": "take `now` as an argument",
    "utcnow": "take `now` as an argument",
    "today": "take `now` as an argument",
    "uuid4": "derive the id from what it names",
}


def package_of(name: str) -> str:
    """The folder of an imported module: `tidemill.streams.job` is in streams/."""
    top, _, rest = name.partition(".")
    below = rest.partition(".")[0]
    return below if top == "tidemill" and below in BELOW else top


def arrow_violations(source: Source) -> list[str]:
    allowed = MAY_IMPORT[source.package]
    return [
        f"{source.at(node)}: {source.package} must not import {name}"
        for node, name in imported(source.tree)
        if (package := package_of(name)) in PACKAGES and package not in allowed
    ]


def library_violations(source: Source, libraries: set[str]) -> list[str]:
    known = set(sys.stdlib_module_names) | MAY_IMPORT[source.package] | libraries
    return [
        f"{source.at(node)}: {source.package} must not import the library {name}"
        for node, name in imported(source.tree)
        if package_of(name) not in known
    ]


def core_violations(source: Source) -> list[str]:
    found = []
    for node, name in imported(source.tree):
        for banned, instead in BANNED_IN_CORE.items():
            if name == banned or name.startswith(f"{banned}."):
                found.append(f"{source.at(node)}: {name} is banned in streams/: {instead}")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            found.append(f"{source.at(node)}: streams/ is synchronous: return an effect")
        elif isinstance(node, ast.Call) and (name := _called(node)) in BANNED_CALLS_IN_CORE:
            instead = BANNED_CALLS_IN_CORE[name]
            found.append(f"{source.at(node)}: {name}() is banned in streams/: {instead}")
    return found


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def parsed(text: str, package: str) -> Source:
    return Source(Path(package) / "example.py", text, ast.parse(text))


def test_imports_point_one_way() -> None:
    checked = sources_of(*PACKAGES)
    assert checked, "no source was found to check"
    assert [line for source in checked for line in arrow_violations(source)] == []


def test_core_and_contracts_import_no_libraries_but_their_own() -> None:
    core = [v for s in sources_of("streams") for v in library_violations(s, CORE_LIBRARIES)]
    assert core == []
    contracts = sources_of("schemas")
    assert [v for s in contracts for v in library_violations(s, CONTRACT_LIBRARIES)] == []


def test_core_is_pure() -> None:
    assert [line for source in sources_of("streams") for line in core_violations(source)] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import time", "take `now` as an argument"),
        ("from uuid import uuid4", "derive the id"),
        ("import asyncio.locks", "return an effect"),
        ("import datetime\ndatetime.datetime.now()", "take `now` as an argument"),
        ("async def f() -> None: ...", "synchronous"),
        ("print(1)", "return an event or a reason"),
    ],
)
def test_impure_code_is_caught(text: str, expected: str) -> None:
    (violation,) = core_violations(parsed(text, "streams"))
    assert expected in violation


@pytest.mark.parametrize(
    ("package", "text"),
    [
        ("schemas", "from tidemill.streams import lifecycle"),
        ("streams", "def f() -> None:\n    import tidemill.agents.ledger"),
        ("agents", "import tidemill"),
        ("agents", "from tidemill import agents, job"),
        ("systems", "from tidemill.agents import worker"),
    ],
)
def test_import_against_the_arrow_is_caught(package: str, text: str) -> None:
    assert len(arrow_violations(parsed(text, package))) == 1
