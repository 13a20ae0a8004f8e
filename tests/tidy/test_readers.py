"""No reader of Kafka waits for a full batch: `consume(n, timeout)` does, however early a record is.

`tidemill.agents.runtime.clients.take_arrived` hands on what has come as soon as anything has.
"""

from __future__ import annotations

import ast

from tests.tidy.sources import sources_of

READERS = ("agents", "tidemill", "benchmarks")


def _waits(call: ast.Call) -> bool:
    """Whether a call of `consume` may wait; without a time-out it does so for ever."""
    named = [keyword.value for keyword in call.keywords if keyword.arg == "timeout"]
    timeout = [*call.args[1:2], *named]
    return not (timeout and isinstance(timeout[0], ast.Constant) and timeout[0].value == 0)


def test_no_reader_waits_for_a_full_batch() -> None:
    waiting = [
        source.at(node)
        for source in sources_of(*READERS)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "consume"
        and _waits(node)
    ]
    assert not waiting, f"use take_arrived of tidemill.agents.runtime.clients instead: {waiting}"
