"""Text from strangers never steers a terminal: in tables, errors, logs, and lines of `dev`."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from tidemill.agents.logging import configure_logging
from tidemill.agents.plain_text import LINES, plain, plain_json

HOSTILE = {
    "colour": "\x1b[31mred",
    "title": "\x1b]0;owned\x07",
    "one byte": "\x9b31m",
    "back": "abc\b\b\bxyz",
    "return": "real\rfake",
    "new line": "one\n2026-01-01 [error] a line of its own",
    "direction": "\u202egpj.exe",
    "isolate": "\u2067x\u2069",
    "invisible": "a\u200bb\u2060c\ufeff",
    "line separator": "a\u2028b\u0085c",
    "half a pair": "a\ud83db",
    "delete": "a\x7f",
    "tag": "a\U000e0041b",
    "nothing": "a\x00b",
}
USUAL = [
    "M\u00fcller", "\u6f22\u5b57", "\U0001f468\u200d\U0001f469", "a b\u00a0c",
    "\u0627\u0644", "'\\x1b'"
]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_steers_is_written_out(text: str) -> None:
    shown = plain(text)
    assert shown != text
    assert shown.isprintable()
    assert plain(shown) == shown


@pytest.mark.parametrize("text", USUAL)
def test_what_people_write_stays(text: str) -> None:
    assert plain(text) == text


def test_a_trace_keeps_its_lines() -> None:
    assert plain("a\n\tb\x1b\r", LINES) == "a\n\tb\\x1b\\r"


@pytest.mark.parametrize("text", [one for one in HOSTILE.values() if "\ud83d" not in one] + USUAL)
def test_json_means_the_same(text: str) -> None:
    written = plain_json(json.dumps({"a": text}, ensure_ascii=False, indent=1))
    assert json.loads(written) == {"a": text}
    assert plain(written, LINES) == written


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("form", ["console", "json"])
def test_log_lines_are_plain(
    text: str, form: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, handlers = logging.getLogger(), list(logging.getLogger().handlers)
    try:
        configure_logging("worker", "json" if form == "json" else "console", "info")
        structlog.get_logger("tidemill.test").warning(text, user=text, pair=(text,))
        logging.getLogger("tidemill.test").warning("job %s", text)
        try:
            raise ValueError(text)
        except ValueError:
            logging.getLogger("tidemill.test").warning("failed", exc_info=True)
        told = capsys.readouterr().err
    finally:
        root.handlers[:] = handlers
        structlog.reset_defaults()
    assert plain(told, LINES + "\x7f") == told
    assert not any(line.startswith("2026-01-01 [error]") for line in told.splitlines())
