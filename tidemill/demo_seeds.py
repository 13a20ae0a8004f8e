"""`tidemill dev --demo`: asks for the demo's jobs, once a folder.

Owns the note in the data folder that says when they were asked for. Refuses to know the jobs
(`tidemill.demo_jobs`) and how the stack runs.

The ids are always the same, and with the instant of the note the requests are too: a start that
was cut off in the middle asks again for the same jobs, which changes nothing. A note that says that
all were asked for ends it: a finished id is free again after a day.
"""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

MODULE: Final = "tidemill.demo_jobs"
NOTE: Final = "demo.json"
SEND_SECONDS: Final = 30.0  # a broker that was just ready takes some thirty records well within it


def begin(kafka: str, topic_prefix: str, data: Path, say: Callable[[str], None]) -> None:
    """Ask in a thread of its own: the stack is looked after meanwhile."""
    threading.Thread(
        target=_run, args=(kafka, topic_prefix, data, say), name="demo-seeds", daemon=True
    ).start()


def _run(kafka: str, topic_prefix: str, data: Path, say: Callable[[str], None]) -> None:
    from tidemill.requests import ClientError

    try:
        say(seed(kafka, topic_prefix, data))
        say(f"one waits for your approval: {approval(kafka, topic_prefix)}")
    except (ClientError, OSError) as error:
        say(f"the jobs could not be asked for: {error}; start again with --demo")


def approval(kafka: str, topic_prefix: str) -> str:
    """The command that gives it."""
    from tidemill.agents.settings import DEFAULT_HOST, DEFAULT_KAFKA_PORT
    from tidemill.demo_jobs import AWAITS_APPROVAL

    words = ["tidemill", "signal", *AWAITS_APPROVAL, "approval", '{"ok": true}']
    if kafka != f"{DEFAULT_HOST}:{DEFAULT_KAFKA_PORT}":
        words += ["--kafka", kafka]
    if topic_prefix:
        words += ["--topic-prefix", topic_prefix]
    return shlex.join(words)


def seed(kafka: str, topic_prefix: str, data: Path) -> str:
    """Ask for what was not asked for yet; what was done, in words.

    Raises ClientError, and OSError for a note that cannot be written.
    """
    from tidemill.client import Client
    from tidemill.demo_jobs import CANCELLED, seeds

    note = _read(data / NOTE, topic_prefix)
    at = str(note["at"])
    if note["is_done"]:
        return f"the jobs were asked for at {at}; none is asked for twice"
    _write(data / NOTE, note)
    with Client(kafka, topic_prefix=topic_prefix, timeout_seconds=SEND_SECONDS) as client:
        handles = client.enqueue_many(seeds(datetime.fromisoformat(at)))
        client.cancel(*CANCELLED, actor="demo", reason="so that one is cancelled")
    _write(data / NOTE, {**note, "is_done": True})
    return f"{len(handles)} jobs of every fate were asked for"


def _read(path: Path, topic_prefix: str) -> dict[str, Any]:
    """The note; a new one where there is none for these topics, or none that can be read."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        datetime.fromisoformat(note["at"])
        if note["topic_prefix"] == topic_prefix and isinstance(note["is_done"], bool):
            return dict(note)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # a first start, or a file of another's: the ids keep jobs from being doubled
    now = datetime.now(UTC).replace(microsecond=0)
    return {"at": now.isoformat(), "topic_prefix": topic_prefix, "is_done": False}


def _write(path: Path, note: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(note), encoding="utf-8")
    part.chmod(0o600)
    part.replace(path)
