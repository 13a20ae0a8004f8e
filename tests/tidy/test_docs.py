"""What the documents say about the repository is so: links, commands, examples."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from tests.tidy.sources import ROOT, sources_of, text_of, tracked_files
from tidemill.agents.worker.handlers import REGISTRY
from tidemill.cli.app import app

DOCUMENTS = tuple(path for path in tracked_files() if path.suffix == ".md")
LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
MAKE = re.compile(r"(?:^|`)make ([a-z-]+)", re.MULTILINE)
COMMAND = re.compile(r"^ *\.venv/bin/tidemill (.*)$", re.MULTILINE)


def documents_text() -> str:
    return "\n".join(text_of(path) or "" for path in DOCUMENTS)


def blocks(path: str, language: str) -> list[str]:
    found = BLOCK.findall((ROOT / path).read_text(encoding="utf-8"))
    return [text for name, text in found if name == language]


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_links_lead_to_files(path: Path) -> None:
    links = (link.partition("#")[0] for link in LINK.findall(text_of(path) or ""))
    missing = [
        link for link in links
        if link and "://" not in link and not (ROOT / path.parent / link).exists()
    ]
    assert missing == []


def test_tests_that_the_documents_name_exist() -> None:
    told = set(re.findall(r"\b(?:tests|benchmarks|tools)/[\w/]+\.py\b", documents_text()))
    assert told
    assert {name for name in told if not (ROOT / name).is_file()} == set()
    functions = set(re.findall(r"`(test_\w+)`", documents_text()))
    code = "\n".join(source.text for source in sources_of("tests"))
    assert {name for name in functions if f"def {name}(" not in code} == set()


def test_targets_of_make_exist() -> None:
    told = set(MAKE.findall(documents_text()))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert told
    assert told - set(re.findall(r"^([a-z-]+)(?: [a-z-]+)*:", makefile, re.MULTILINE)) == set()


def test_commands_take_the_words_and_options_of_the_documents() -> None:
    told = COMMAND.findall(documents_text())
    own = re.compile(r"^ *tidemill (.*)$", re.MULTILINE)
    first = [line for block in blocks("README.md", "sh") for line in own.findall(block)]
    assert {line.split()[0] for line in first} >= {"dev", "new", "enqueue", "sql"}
    told += first
    assert told
    root = typer.main.get_command(app)
    for line in told:
        words = [word for word in shlex.split(line, comments=True) if word != "..."]
        command, options = root, words
        while options and (inner := getattr(command, "commands", {}).get(options[0])):
            command, options = inner, options[1:]
        known = {name for parameter in command.params for name in parameter.opts}
        wrong = {word for word in options if word.startswith("--")} - known
        assert command is not root, line
        assert wrong == set(), line


def test_the_handler_of_the_readme_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *_ = blocks("README.md", "python")
    lines = first.splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    monkeypatch.setattr(REGISTRY, "_handlers", {})
    exec(compile("\n".join(line[indent:] for line in lines), "my_jobs", "exec"), {})
    handler = REGISTRY.get("greet")
    assert handler is not None
    assert handler.limits
