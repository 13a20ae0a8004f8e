"""Ports that are chosen now and taken a moment later."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tidemill.agents.embedded import ports
from tidemill.agents.embedded.errors import StartError
from tidemill.agents.embedded.ports import COUNT, FIRST, free_port

CONNECTIONS_FROM = 32_768  # Linux gives the ends of connections ports from here on
OFFERS = """
from tidemill.agents.embedded.ports import free_port
print(*(free_port() for _ in range(4)))
"""


def test_no_connection_and_no_other_choice_can_have_it() -> None:
    offered = [free_port() for _ in range(50)]

    assert len(set(offered)) == 50
    assert all(1024 < port < CONNECTIONS_FROM for port in offered)


def test_processes_that_start_together_are_offered_different_ports() -> None:
    # All of them choose before any of them listens.
    begun = [
        subprocess.Popen([sys.executable, "-c", OFFERS], stdout=subprocess.PIPE) for _ in range(4)
    ]
    offered = [port for one in begun for port in one.communicate()[0].split()]

    assert len(set(offered)) == 4 * len(begun) == 16


def test_a_port_where_somebody_listens_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_offered", {})
    first = free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", first))
        monkeypatch.setattr(ports, "_offered", {})
        assert free_port() != first


def test_when_none_is_free_the_range_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("in use")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(StartError, match=rf"from {FIRST} to {FIRST + COUNT - 1} is free"):
        free_port()
