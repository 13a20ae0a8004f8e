"""A handler that leaves a trace of each time it ran."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel

from tidemill import Context, job


class Note(BaseModel):
    """Where to write, and something to tell jobs apart."""

    folder: str
    n: int = 0


@job("stranger.note")
def note(payload: Note, ctx: Context) -> dict[str, int]:
    line = f"{ctx.user_id} {ctx.job_id} {ctx.attempt} {os.getpid()}\n"
    # One write in append mode: lines of several processes never mix.
    with Path(payload.folder, "ran.txt").open("a") as out:
        out.write(line)
    return {"n": payload.n}
