"""The workers: who beats, with which types, by which clock.

Owns the checks of heartbeats. Refuses to know a worker that says nothing.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Final

import orjson
from confluent_kafka import Consumer, TopicPartition

from agents.runtime.clients import client_settings
from agents.settings import CommonSettings
from schemas.topics import Topics
from schemas.wire import HEARTBEAT_MISSING_SECONDS, HEARTBEAT_SECONDS
from tidemill.doctor.finding import ANSWER_SECONDS, Check, Finding

SKEW_SECONDS_MAX: Final = 5.0  # heartbeats are read against other clocks


def beating(settings: CommonSettings) -> Finding:
    heartbeats = Topics(settings.topic_prefix).heartbeats
    now_ms = time.time() * 1000
    alive = {
        worker: beat
        for worker, beat in _latest_beats(settings.kafka, heartbeats).items()
        if now_ms - beat["at"] < HEARTBEAT_MISSING_SECONDS * 1000 and not beat["is_stopping"]
    }
    if not alive:
        return Finding(
            "workers", "failed", "none has beaten in the last "
            f"{HEARTBEAT_MISSING_SECONDS:g} s", "start `tidemill worker MODULE` (or `tidemill dev "
            "MODULE`); if one runs, compare the clocks of both machines",
        )
    types = sorted({type_name for beat in alive.values() for type_name in beat["types"]})
    ahead = [worker for worker, beat in alive.items()
             if beat["at"] - now_ms > SKEW_SECONDS_MAX * 1000]
    found = f"{len(alive)} alive ({', '.join(sorted(alive))}); types: {', '.join(types) or 'none'}"
    if ahead:
        return Finding(
            "workers", "warning", f"{found}; the clock of {', '.join(ahead)} is ahead",
            "synchronise the clocks (NTP)",
        )
    return Finding("workers", "ok", found)


def _latest_beats(kafka: str, topic: str) -> dict[str, dict[str, Any]]:
    """Worker -> its last beat of the last few seconds; waits for one beat when there is none."""
    consumer = Consumer(
        client_settings(
            kafka, "tidemill-doctor",
            {"group.id": f"tidemill-doctor-{uuid.uuid4()}", "enable.auto.commit": False,
             "auto.offset.reset": "latest"},
        )
    )
    beats: dict[str, dict[str, Any]] = {}
    try:
        since = int((time.time() - HEARTBEAT_MISSING_SECONDS) * 1000)
        starts = consumer.offsets_for_times(
            [TopicPartition(topic, 0, since)], timeout=ANSWER_SECONDS
        )
        consumer.assign(starts)
        deadline = time.monotonic() + HEARTBEAT_SECONDS * 1.5
        while time.monotonic() < deadline:
            message = consumer.poll(HEARTBEAT_SECONDS / 10)
            if message is not None and message.error() is None:
                beat = orjson.loads(message.value() or b"{}")
                beats[beat["worker_id"]] = beat
    finally:
        consumer.close()
    return beats


CHECKS: Final = (Check("workers", beating, needs="kafka"),)
