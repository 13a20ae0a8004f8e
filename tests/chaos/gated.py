"""A handler that suspends, and goes on from step to step when its test says so.

Owns the gates: files in the folder that the payload names.
"""

from __future__ import annotations

import time
from pathlib import Path
from uuid import uuid4

from tidemill import Context, job

NAP_SECONDS = 0.6  # long enough to see it asleep
LOOK_SECONDS = 0.01


def token() -> str:
    return uuid4().hex


def pass_gate(folder: str, name: str) -> None:
    """Returns once the file is there. The test is what this waits for."""
    while not Path(folder, name).exists():
        time.sleep(LOOK_SECONDS)


@job("gated.nap")
def nap(payload: dict[str, str], ctx: Context) -> dict[str, dict[str, str]]:
    pass_gate(payload["folder"], "step")
    first = ctx.step("first", token)
    pass_gate(payload["folder"], "sleep")
    ctx.sleep("nap", NAP_SECONDS)
    pass_gate(payload["folder"], "step again")
    second = ctx.step("second", token)
    pass_gate(payload["folder"], "end")
    return {"steps": {"first": first, "second": second}}
