"""docs/GLOSSARY.md: each word has one meaning, is used, and none of those that it replaced is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from typing import Final

import pytest

from tests.tidy.sources import ROOT, sources

GLOSSARY: Final = ROOT / "docs" / "GLOSSARY.md"
ROW: Final = re.compile(r"^\| (.+?) \| (.+?) \|$", re.MULTILINE)
HEADINGS: Final = {"word", "not"}
# "Of a job: … Of a worker: …" is two meanings.
OF_SOMETHING: Final = re.compile(r"(?:^|[.;] )Of (?:the |a |an )?[\w' ]+: ")
CODE: Final = ("schemas", "streams", "agents", "tidemill")


def rows(part: str) -> list[tuple[str, str]]:
    """The table below a heading, `words` or `not used`."""
    first, _, second = GLOSSARY.read_text().partition("## Words that are not used")
    text = first if part == "words" else second
    found = [row for row in ROW.findall(text) if row[0] not in HEADINGS]
    return [row for row in found if not row[0].startswith("-")]


WORDS: Final = rows("words")
BANNED: Final = [word for words, _ in rows("not used") for word in re.findall(r"`(\w+)`", words)]


@cache
def corpus() -> str:
    """Code and documents, the glossary left out."""
    texts = [source.text for source in sources() if source.package in CODE]
    texts += [
        path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")) if path != GLOSSARY
    ]
    return plain("\n".join(texts))


def plain(text: str) -> str:
    """`InsertIntent`, `insert_intent` and `insert-intent` as two words."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return re.sub(r"[\s_\-]+", " ", apart).lower()


def is_used(word: str, text: str) -> bool:
    ending = r"(?:s|es)?"
    pattern = " ".join(rf"{re.escape(part)}{ending}" for part in plain(word).split())
    return re.search(rf"\b{pattern}\b", text) is not None


def names_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What the code calls its things: classes, functions, arguments, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def banned_in(tree: ast.AST, banned: list[str]) -> list[str]:
    unwanted = set(banned)
    return [f"{line}: {name}" for line, name in names_of(tree) if name.lstrip("_") in unwanted]


def test_each_word_has_one_row_and_one_meaning() -> None:
    words = [word.lower() for word, _ in WORDS]
    assert len(words) > 50
    assert sorted(set(words)) == sorted(words)
    assert [word for word, meaning in WORDS if len(OF_SOMETHING.findall(meaning)) > 1] == []


@pytest.mark.parametrize("word", [word for word, _ in WORDS])
def test_each_word_is_used(word: str) -> None:
    found = is_used(word, corpus())
    assert found, word


def test_a_word_that_is_not_used_is_caught() -> None:
    text = plain("the WaitList of a job, groups of types")
    assert is_used("group of types", text)
    assert is_used("wait list", text)
    assert not is_used("gate", text)
    assert not is_used("ait", text)


def test_no_word_is_used_that_was_replaced() -> None:
    assert len(BANNED) > 5
    found = [
        f"{source.path}:{at}" for source in sources() for at in banned_in(source.tree, BANNED)
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    ["class Homes: ...", "def f(Homes): ...", "x = Homes()", "x.Homes", "class _Homes: ..."],
)
def test_a_replaced_word_is_caught(code: str) -> None:
    assert banned_in(ast.parse(code), ["Homes"])
    assert not banned_in(ast.parse("class MyHomes: ...\nx = 'Homes'"), ["Homes"])


def test_what_replaced_a_word_is_used() -> None:
    named = {name for source in sources() for _, name in names_of(source.tree)}
    new = [word for _, meaning in rows("not used") for word in re.findall(r"`(\w+)`", meaning)]
    assert len(new) > 5
    assert [word for word in new if word not in named] == []
