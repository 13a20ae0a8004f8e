"""What a request's head must look like before any parser sees it."""

from __future__ import annotations

import pytest

from tidemill.agents.http_door import DoorLimits, early_fault, head_fault, size_fault

LIMITS = DoorLimits(line_bytes_max=200, header_bytes_max=200, headers_max=5)
GOOD = "POST /api/jobs HTTP/1.1\r\nHost: localhost\r\n"


def fault(text: str) -> str | None:
    return head_fault(text.removesuffix("\r\n").encode("latin-1"), LIMITS)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD + "Content-Length: 0\r\n",
        GOOD + "Content-Length:\t12 \r\n",
        GOOD + "Transfer-Encoding: chunked\r\n",
        GOOD + "transfer-encoding: Chunked\r\nConnection: keep-alive\r\n",
        GOOD + "X-Name: M\xc3\xbcller\tand others\r\n",
        "GET /?query=SELECT%201 HTTP/1.1\r\nhost: [::1]:8123\r\n",
        "GET / HTTP/1.0\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: x\r\n",
    ],
)
def test_what_clients_send_passes(text: str) -> None:
    assert fault(text) is None


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", "not both"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", "not both"),
        ("content-length: 2\r\nTRANSFER-ENCODING: identity\r\n", "not both"),
        ("Content-Length: 2\r\nContent-Length: 3\r\n", "once"),
        ("Content-Length: 2\r\ncontent-length: 2\r\n", "once"),
        ("Content-Length: 2, 2\r\n", "number"),
        ("Content-Length: +2\r\n", "number"),
        ("Content-Length: -2\r\n", "number"),
        ("Content-Length: 0x2\r\n", "number"),
        ("Content-Length: 2_0\r\n", "number"),
        ("Content-Length:\r\n", "number"),
        ("Content-Length: 9999999999999999\r\n", "number"),
        ("Transfer-Encoding: gzip, chunked\r\n", "chunked"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "once"),
        ("Transfer-Encoding: xchunked\r\n", "chunked"),
        ("X: a\r\n b\r\n", "one line"),
        ("X: a\r\n\tContent-Length: 3\r\n", "one line"),
        ("X: a\nContent-Length: 3\r\n", "CR LF"),
        ("X: a\rContent-Length: 3\r\n", "CR LF"),
        ("X: a\x00b\r\n", "control"),
        ("X: \x1b[31m\r\n", "control"),
        ("Host: other\r\n", "Host"),
        ("A: 1\r\nB: 1\r\nC: 1\r\nD: 1\r\nE: 1\r\n", "5 headers"),
    ],
)
def test_two_readings_of_one_head_are_refused(more: str, word: str) -> None:
    assert word in (fault(GOOD + more) or "")


@pytest.mark.parametrize(
    "line",
    [
        "GET /", "GET / HTTP/0.9", "GET / HTTP/2.0", "PRI * HTTP/2.0", "GET  / HTTP/1.1",
        "GET http://evil.example/ HTTP/1.1", "GET evil HTTP/1.1", "GET * HTTP/1.1",
        "GET / HTTP/1.1 ", "", "CONNECT evil.example:443 HTTP/1.1", "GET /a b HTTP/1.1",
    ],
)
def test_other_first_lines_are_refused(line: str) -> None:
    assert fault(f"{line}\r\nHost: x\r\n") is not None


def test_a_host_is_needed_and_chunks_are_not_for_old_clients() -> None:
    assert fault("GET / HTTP/1.1\r\n") == "Host must stand once"
    assert fault("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n") is not None


@pytest.mark.parametrize(
    "head",
    [b"GET /" + b"a" * 200, b"GET / HTTP/1.1\r\nX: " + b"a" * 250, b"GET /\r\n" + b"a" * 250],
)
def test_heads_are_bounded_before_they_end(head: bytes) -> None:
    assert "longer" in (size_fault(head, LIMITS) or "")
    assert size_fault(head[:150], LIMITS) is None


@pytest.mark.parametrize("part", [b"\x16\x03\x01", b"\r\nGET", b" GET", b"GET / HTTP/1.1\nH"])
def test_what_cannot_become_a_request_is_refused_at_once(part: bytes) -> None:
    assert early_fault(part) is not None


@pytest.mark.parametrize("part", [b"", b"G", b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\r\nHo"])
def test_a_beginning_is_waited_for(part: bytes) -> None:
    if part:
        assert early_fault(part) is None
