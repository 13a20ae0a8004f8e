"""The workers: who beats, with which types, by which clock.

Owns the checks of heartbeats. Refuses to know a worker that says nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from confluent_kafka import Consumer, TopicPartition
from pydantic import ValidationError

from tidemill.agents import topics as topics_
from tidemill.agents.runtime.clients import client_settings
from tidemill.agents.settings import CommonSettings
from tidemill.doctor.finding import ANSWER_SECONDS, Check, Finding
from tidemill.schemas.topics import Topics
from tidemill.schemas.wire import HEARTBEAT_MISSING_SECONDS, HEARTBEAT_SECONDS, Heartbeat

SKEW_SECONDS_MAX: Final = 5.0  # heartbeats are read against other clocks


def beating(settings: CommonSettings) -> Finding:
    """Who is alive, and whether the clocks agree."""
    now_ms = time.time() * 1000
    alive = _alive(_latest_beats(settings).beats, now_ms)
    if not alive:
        return Finding(
            "workers", "failed", "none has beaten in the last "
            f"{HEARTBEAT_MISSING_SECONDS:g} s", "start `tidemill worker MODULE` (or `tidemill dev "
            "MODULE`); if one runs, compare the clocks of both machines",
        )
    types = sorted({type_name for beat in alive for type_name in beat.types})
    ahead = [beat.worker_id for beat in alive if beat.at - now_ms > SKEW_SECONDS_MAX * 1000]
    names = ", ".join(sorted(beat.worker_id for beat in alive))
    found = f"{len(alive)} alive ({names}); types: {', '.join(types) or 'none'}"
    if ahead:
        return Finding(
            "workers", "warning", f"{found}; the clock of {', '.join(ahead)} is ahead",
            "synchronise the clocks (NTP)",
        )
    return Finding("workers", "ok", found)


def types_alive(settings: CommonSettings) -> frozenset[str] | None:
    """The types that living workers run; None: no worker is alive."""
    alive = _alive(_latest_beats(settings).beats, time.time() * 1000)
    return frozenset(name for beat in alive for name in beat.types) if alive else None


def heard(settings: CommonSettings) -> Finding:
    """Whether what workers say is understood here, and each of their queues has its way in."""
    check = "ways in"
    said = _latest_beats(settings)
    if said.unreadable:
        named = "; ".join(f"{worker}: {why}" for worker, why in sorted(said.unreadable.items()))
        return Finding(
            check, "failed", f"no ledger of this version hears {named}",
            "upgrade the ledgers (and this command) first, then the workers",
        )
    alive = _alive(said.beats, time.time() * 1000)
    owned: dict[str, set[int]] = {}
    for beat in alive:
        for queue, room in beat.queues.items():
            owned.setdefault(queue, set()).update(room.partitions)
    counts = topics_.counts(settings.kafka)
    topics = Topics(settings.topic_prefix)
    closed = [
        f"{queue}: nobody reads {len(missing)} of its partitions"
        for queue, mine in sorted(owned.items())
        if (missing := set(range(counts.get(topics.ready(queue), 0))) - mine)
        or not counts.get(topics.ready(queue))
    ]
    if closed:
        return Finding(
            check, "failed", "; ".join(closed),
            "when it stays so for half a minute: see the workers' logs, and start them again",
        )
    if not owned:
        return Finding(check, "unknown", "no worker is alive")
    return Finding(check, "ok", f"queues {', '.join(sorted(owned))} are read in full")


@dataclass(frozen=True, slots=True)
class _Said:
    """What was on jobs.heartbeats in the last few seconds."""

    beats: dict[str, Heartbeat]  # the last of each worker
    unreadable: dict[str, str]  # worker, by the record's key -> why


def _alive(beats: Mapping[str, Heartbeat], now_ms: float) -> list[Heartbeat]:
    oldest = now_ms - HEARTBEAT_MISSING_SECONDS * 1000
    return [beat for beat in beats.values() if beat.at > oldest and not beat.is_stopping]


def _latest_beats(settings: CommonSettings) -> _Said:
    """The beats of the last few seconds, and of one beat's time from now on."""
    topic = Topics(settings.topic_prefix).heartbeats
    consumer = Consumer(
        client_settings(
            settings.kafka, "tidemill-doctor",
            {"group.id": f"tidemill-doctor-{uuid.uuid4()}", "enable.auto.commit": False,
             "auto.offset.reset": "latest"},
        )
    )
    said = _Said({}, {})
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
                _note(said, message.key(), message.value() or b"")
    finally:
        consumer.close()
    return said


def _note(said: _Said, key: bytes | None, value: bytes) -> None:
    try:
        beat = Heartbeat.model_validate_json(value)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"])) or "the record"
        said.unreadable[(key or b"?").decode("utf-8", "replace")] = f"{where}: {wrong['msg']}"
    else:
        said.beats[beat.worker_id] = beat


CHECKS: Final = (
    Check("workers", beating, needs="kafka"),
    Check("ways in", heard, needs="kafka"),
)
