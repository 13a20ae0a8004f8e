"""Traces that events keep: bounded, safe to show, and whole in what matters."""

from __future__ import annotations

import pytest

from tidemill.agents.worker.traces import TRACE_LENGTH_MAX, place_of, trace_text
from tidemill.schemas.safe_text import safe_line, safe_text


def caught(function: object) -> BaseException:
    try:
        function()  # type: ignore[operator]
    except BaseException as error:  # noqa: BLE001  # with its trace
        return error
    raise AssertionError("it did not raise")


def chained() -> None:
    try:
        raise KeyError("the first cause")
    except KeyError as error:
        raise ValueError("what came of it") from error


def grouped() -> None:
    raise ExceptionGroup("two", [ValueError("one of them"), chained_error()])


def chained_error() -> Exception:
    error = caught(chained)
    assert isinstance(error, Exception)
    return error


def endless(depth: int = 0) -> None:
    endless(depth + 1)


def wordy() -> None:
    raise ValueError("begin" + "x" * 100_000 + "end")


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def odd() -> None:
    raise Odd


def test_causes_and_groups_are_in_it() -> None:
    text = trace_text(caught(chained))
    assert text.index("the first cause") < text.index("what came of it")
    assert "chained()" in text or "in chained" in text
    group = trace_text(caught(grouped))
    assert "one of them" in group
    assert "the first cause" in group


@pytest.mark.parametrize("function", [endless, wordy, grouped, odd], ids=lambda f: f.__name__)
def test_it_is_bounded_whatever_was_raised(function: object) -> None:
    text = trace_text(caught(function))
    assert 0 < len(text) <= TRACE_LENGTH_MAX
    text.encode()


def test_a_long_one_keeps_both_ends() -> None:
    text = trace_text(caught(wordy))
    assert text.startswith("Traceback")
    assert "left out" in text
    assert text.endswith("end")


def test_the_place_is_where_it_was_raised() -> None:
    assert "test_traces.py:" in place_of(caught(chained))
    assert place_of(ValueError("never raised")) == "an unknown place"


@pytest.mark.parametrize(
    "text",
    ["\x1b[2J", "\x1b]0;title\x07", "a\rb", "\x9b31m", "a\x00b", "x\u202etxt", "\u2066x", "\x7f",
     "half \ud800"],
    ids=ascii,
)
def test_nothing_that_steers_a_terminal_is_left(text: str) -> None:
    def fail() -> None:
        raise ValueError(text)

    for safe in (trace_text(caught(fail)), safe_text(text), safe_line(text)):
        for character in safe.replace("\n", "").replace("\t", ""):
            assert character.isprintable(), ascii(safe)


def test_lines_are_kept_in_text_and_not_in_a_line() -> None:
    assert safe_text("a\r\n\tb") == "a\n\tb"
    assert safe_line("a\r\n\tb") == "a   b"
    assert safe_line("x" * 300, 10) == "x" * 9 + "…"
