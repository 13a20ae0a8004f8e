"""Who can work and what: the newest heartbeat of each worker, and the definitions they publish.

Owns the reading of jobs.heartbeats and jobs.definitions, and the rule when a worker counts as
missing. Refuses to decide anything: partitions take what is here in their next group.

A worker is missing after 10 s of silence, but silence counts only while this process could hear:
a broker outage, a stopped process and a fresh start give everyone the full time again. Only our own
monotonic clock counts; the clocks of other machines may be wrong by more than that silence.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from pydantic import ValidationError

from tidemill.agents.ledger.announcements import ScheduleSets
from tidemill.agents.ledger.clock import LedgerClock
from tidemill.agents.runtime.clients import client_settings, take_arrived
from tidemill.schemas.schedules import ScheduleSet
from tidemill.schemas.topics import Topics
from tidemill.schemas.wire import (
    DEFINITION_BYTES_MAX,
    HEARTBEAT_MISSING_SECONDS,
    HEARTBEAT_SECONDS,
    Definition,
    Heartbeat,
)
from tidemill.streams.dispatch.slot_pool import Groups, SlotPoolName
from tidemill.streams.partition import Capacity
from tidemill.streams.schedules.announced import Announced
from tidemill.streams.stalls import NO_STALLS, Stall

logger = logging.getLogger("tidemill.ledger")

POLL_SECONDS: Final = 0.2  # the longest wait for a record; also how soon a stop is noticed
BATCH_RECORDS_MAX: Final = 1_000  # records taken from the client at once
DEAF_AFTER_SECONDS: Final = 2.0  # a longer pause between two polls means that we were stopped
METADATA_SECONDS: Final = 10.0  # one question to the broker at the start
# Without any beat for this long the broker is asked for the log's end: an answer proves that the
# silence is real. The client tells of a lost broker once and then keeps quiet for half a minute.
PROBE_AFTER_SECONDS: Final = 1.0
PROBE_SECONDS: Final = 1.0  # one such question
# Two beats of silence and a half: nothing more is sent to that worker, whose attempts still run. If
# it is gone, what was sent meanwhile waits until its partitions have another owner.
SUSPECT_SECONDS: Final = 2.5 * HEARTBEAT_SECONDS
# A record that is not understood comes with each beat: one line a minute for each of its writers.
UNREADABLE_TOLD_SECONDS: Final = 60.0
UNREADABLE_KEPT_MAX: Final = 1_000  # writers remembered for that
FORGET_SECONDS: Final = 600.0  # of silence, after which a worker's id is forgotten
_MICROSECONDS: Final = 1_000_000  # in a second


def reason_of(error: ValidationError) -> str:
    """Which fields of a record are wrong, in one line."""
    wrong = [
        f"{'.'.join(map(str, one['loc'])) or 'the record'}: {one['msg']}" for one in error.errors()
    ]
    return "; ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")


class WorkerBook:
    """What heartbeats and definitions say now. Read from the loop, written by one thread."""

    def __init__(self, clock: LedgerClock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._beats: dict[str, tuple[Heartbeat, float]] = {}
        self._hears_since = self._heard_until = time.monotonic()
        self.definitions: dict[str, Definition] = {}
        self.schedule_sets = ScheduleSets()
        #: Beats and definitions that were not understood.
        self.unreadable_total = 0
        self._unreadable_told: dict[tuple[str, bytes | None], float] = {}
        self._stalls: dict[str, Stall] = {}
        self._fleet: tuple[tuple[str, _Offer], ...] = ()
        self._groups: dict[str, Groups] = {}

    def note_deaf(self) -> None:
        """Nothing could be heard until now: silence is counted anew."""
        with self._lock:
            self._hears_since = self._heard_until = time.monotonic()

    def note_hearing(self) -> None:
        """What was written until now would have been heard. Silence counts up to here and not up
        to the reader's clock: a process that was stopped asks before its reader has run again."""
        with self._lock:
            self._heard_until = time.monotonic()

    def heard(self) -> tuple[int, int]:
        """Epoch ms: since when, and until when, all that was said has been heard."""
        with self._lock:
            since, until = self._hears_since, self._heard_until
        offset = self._clock.now() - time.monotonic()
        return int((since + offset) * 1000), int((until + offset) * 1000)

    def note_beat(self, beat: Heartbeat) -> None:
        """A heartbeat that was read now, whenever its writer's clock says that it was written."""
        now = time.monotonic()
        with self._lock:
            self._heard_until = now
            known = self._beats.get(beat.worker_id)
            if known is None:
                self._forget_silent(now)
            elif beat.incarnation < known[0].incarnation and not self._is_missing(known[1]):
                return  # a late word of the process that this one replaced
            self._beats[beat.worker_id] = (beat, now)
            self._note_stall(beat)

    def _note_stall(self, beat: Heartbeat) -> None:
        """The last stall of a worker is kept: what began in it may need a rescue later."""
        known, now_ms = self._stalls.get(beat.worker_id), self._clock.now_ms()
        if not beat.is_stalled:
            if known is not None and not known.is_over:
                self._stalls[beat.worker_id] = known._replace(is_over=True, last_ms=now_ms)
                logger.info("worker %s goes on after a stall", beat.worker_id)
            return
        if known is None or known.is_over or known.incarnation != beat.incarnation:
            logger.warning(
                "worker %s is stalled: it lives, gets no jobs and loses none (%d begun last)",
                beat.worker_id, len(beat.begun),
            )
            first_ms = now_ms
        else:
            first_ms = known.first_ms
        self._stalls[beat.worker_id] = Stall(
            beat.incarnation, frozenset(beat.begun), frozenset(beat.queues), first_ms, now_ms,
            is_over=False,
        )

    def stalls(self) -> Mapping[str, Stall]:
        """By worker, its last stall."""
        with self._lock:
            return dict(self._stalls) if self._stalls else NO_STALLS

    def note_unreadable(self, message: Message, error: ValidationError) -> None:
        """A beat or a definition that says nothing to this version; told now and then."""
        self.unreadable_total += 1
        now = time.monotonic()
        place = (message.topic() or "", message.key())
        if now - self._unreadable_told.get(place, -UNREADABLE_TOLD_SECONDS) < (
            UNREADABLE_TOLD_SECONDS
        ):
            return
        if len(self._unreadable_told) >= UNREADABLE_KEPT_MAX:
            self._unreadable_told.clear()
        self._unreadable_told[place] = now
        logger.warning(
            "a record of %r on %s is not understood and passed over (offset %s; %d so far): %s",
            (message.key() or b"").decode("utf-8", "replace"), message.topic(), message.offset(),
            self.unreadable_total, reason_of(error),
        )

    def note_definition(self, definition: Definition) -> None:
        with self._lock:
            self.definitions[definition.type] = definition

    def note_schedules(self, part: ScheduleSet) -> None:
        """A part of what workers announce."""
        with self._lock:
            self.schedule_sets.note(part)

    def announced(self) -> Announced:
        """The schedules of living workers. The same object as before while nothing has changed."""
        living = self._heard_within(HEARTBEAT_MISSING_SECONDS)
        with self._lock:
            return self.schedule_sets.of(living)

    def _silence(self, seen_at: float) -> float:
        return self._heard_until - max(seen_at, self._hears_since)

    def _is_missing(self, seen_at: float) -> bool:
        return self._silence(seen_at) >= HEARTBEAT_MISSING_SECONDS

    def _forget_silent(self, now: float) -> None:
        """Ids that are made from a process id would gather for ever."""
        for worker_id, (_, seen_at) in list(self._beats.items()):
            if now - seen_at > FORGET_SECONDS and self._is_missing(seen_at):
                del self._beats[worker_id]
                self._stalls.pop(worker_id, None)

    def _heard_within(self, seconds: float) -> list[Heartbeat]:
        return [beat for beat, _ in self._seen_within(seconds)]

    def _seen_within(self, seconds: float) -> list[tuple[Heartbeat, float]]:
        with self._lock:
            return [each for each in self._beats.values() if self._silence(each[1]) < seconds]

    def alive(self) -> dict[str, int]:
        """The incarnation of each living worker, by its id."""
        living = self._heard_within(HEARTBEAT_MISSING_SECONDS)
        return {beat.worker_id: beat.incarnation for beat in living}

    def groups(self) -> Mapping[str, Groups]:
        """By queue, what its living workers run: each type, and the group that it is in. All run
        what is in the group "". The same object as before while nothing has changed."""
        living = self._heard_within(HEARTBEAT_MISSING_SECONDS)
        fleet = tuple(
            sorted([(beat.worker_id, _offer_of(beat)) for beat in living if not beat.is_stopping])
        )
        if fleet != self._fleet:
            self._fleet = fleet
            queues = {queue for _, offer in fleet for queue in offer.queues}
            self._groups = {
                queue: groups_of(
                    [offer.types for _, offer in fleet if queue in offer.queues]
                )
                for queue in sorted(queues)
            }
        return self._groups

    def former_ends(self) -> dict[str, str]:
        """How the process before each worker's present one ended, as far as they know."""
        with self._lock:
            return {
                beat.worker_id: beat.former_end
                for beat, _ in self._beats.values() if beat.former_end is not None
            }

    def capacity(
        self, groups: Mapping[str, Groups] | None = None
    ) -> dict[SlotPoolName, Capacity]:
        """Slots and ready partitions by line. Workers that stop or have been silent for more than
        two beats, those that are stalled, and those without partitions of the queue, give none.

        `groups`: an answer of `groups`, whose names the lines have; None: that of now. Who uses
        both hands it over, since a beat may come between the two questions.
        """
        shares: dict[SlotPoolName, list[_Room]] = {}
        if groups is None:
            groups = self.groups()
        for beat, seen_at in self._seen_within(SUSPECT_SECONDS):
            if beat.is_stopping or beat.is_stalled:
                continue
            for queue, room in beat.queues.items():
                if not room.partitions:
                    continue
                known = groups.get(queue, {})
                names = {known[type_name] for type_name in beat.types if type_name in known}
                for runs_as, kind in room.kinds.items():
                    if not kind.slots:
                        continue
                    share = _Room(
                        kind.slots, kind.free, room.partitions, int(seen_at * _MICROSECONDS)
                    )
                    for group in names:
                        shares.setdefault(SlotPoolName(queue, runs_as, group), []).append(share)
        return {name: _capacity_of(rooms) for name, rooms in shares.items()}


class _Offer(NamedTuple):
    """What one worker says that it runs."""

    queues: tuple[str, ...]
    types: tuple[str, ...]


def _offer_of(beat: Heartbeat) -> _Offer:
    return _Offer(tuple(beat.queues), beat.types)


def groups_of(workers: Sequence[Sequence[str]]) -> Groups:
    """The types of all workers of a queue. What the same of them run is one group, named by the
    first of its types; what all of them run is the group ""."""
    runners: dict[str, list[int]] = {}
    for number, types in enumerate(workers):
        for type_name in sorted(set(types)):
            runners.setdefault(type_name, []).append(number)
    names: dict[tuple[int, ...], str] = {tuple(range(len(workers))): ""}
    return {
        type_name: names.setdefault(tuple(runners[type_name]), type_name)
        for type_name in sorted(runners)
    }


class _Room(NamedTuple):
    """What one worker says of a line."""

    slots: int
    free: int
    partitions: tuple[int, ...]
    # When its beat was heard: another instant with each, whatever the worker's clock does.
    seen_at: int


def _capacity_of(rooms: list[_Room]) -> Capacity:
    has_room = [room.partitions for room in rooms if room.free > 0]
    use = has_room or [room.partitions for room in rooms]
    return Capacity(
        slots=sum(room.slots for room in rooms),
        free=sum(room.free for room in rooms),
        workers=len(rooms),
        heartbeat_version=sum(room.seen_at for room in rooms),
        partitions=tuple(sorted({number for numbers in use for number in numbers})),
    )


class WorkerReader:
    """The thread that reads heartbeats and definitions into a book."""

    def __init__(
        self, kafka: str, topics: Topics, book: WorkerBook, on_change: Callable[[], None]
    ) -> None:
        self._kafka = kafka
        self._topics = topics
        self._book = book
        self._on_change = on_change
        self._stopping = threading.Event()
        self._was_behind = False  # at the last probe: one beat may be on its way
        self._definitions_end = 0  # as it was at the start
        self._old_definitions: dict[str, Definition] | None = {}  # None once those are known
        self._thread = threading.Thread(target=self._run, name="worker-book", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        consumer = Consumer(
            client_settings(
                self._kafka,
                "ledger-worker-book",
                {
                    # Never joined and never committed; the client insists on a name.
                    "group.id": "ledger-worker-book",
                    "enable.auto.commit": False,
                    "auto.offset.reset": "earliest",
                    "fetch.wait.max.ms": 100,
                    "error_cb": self._on_error,
                },
            )
        )
        try:
            consumer.assign(self._starts(consumer))
            self._poll(consumer)
        finally:
            consumer.close()

    def _starts(self, consumer: Consumer) -> list[TopicPartition]:
        """Definitions from their start, heartbeats from as long ago as they matter."""
        since_ms = int((time.time() - HEARTBEAT_MISSING_SECONDS) * 1000)  # their writers' clocks
        beats = TopicPartition(self._topics.heartbeats, 0, since_ms)
        definitions = TopicPartition(self._topics.definitions, 0, 0)
        while True:
            try:
                start = consumer.offsets_for_times([beats], timeout=METADATA_SECONDS)[0]
                _, self._definitions_end = consumer.get_watermark_offsets(
                    definitions, timeout=METADATA_SECONDS
                )
                break
            except KafkaException as error:
                logger.warning("heartbeats cannot be read yet: %s", error)
                if self._stopping.wait(POLL_SECONDS):
                    return []
        return [start, definitions]

    def _poll(self, consumer: Consumer) -> None:
        polled_at = told_at = time.monotonic()
        while not self._stopping.is_set():
            messages = take_arrived(consumer, BATCH_RECORDS_MAX, POLL_SECONDS)
            now = time.monotonic()
            if now - polled_at > DEAF_AFTER_SECONDS:
                self._book.note_deaf()
            changed = False
            for message in messages:
                changed |= self._note(message)
            if self._old_definitions is not None:
                changed |= self._note_old_definitions(consumer)
            if changed:
                told_at, self._was_behind = now, False
                self._on_change()
            elif now - told_at > PROBE_AFTER_SECONDS:
                self._probe(consumer)
                told_at = now = time.monotonic()
            polled_at = now

    def _probe(self, consumer: Consumer) -> None:
        """Nobody speaks: find out whether nobody does, or whether we cannot hear."""
        beats = TopicPartition(self._topics.heartbeats, 0)
        try:
            end = consumer.get_watermark_offsets(beats, timeout=PROBE_SECONDS, cached=False)[1]
            is_behind = consumer.position([beats])[0].offset < end
        except KafkaException:
            self._book.note_deaf()
            return
        if not is_behind:
            self._book.note_hearing()
        elif self._was_behind:
            self._book.note_deaf()  # a beat is there and does not come
        self._was_behind = is_behind

    def _note(self, message: Message) -> bool:
        if message.error() is not None or message.value() is None:
            return False
        try:
            self._note_value(message)
        except ValidationError as error:
            self._book.note_unreadable(message, error)
            return False
        return True

    def _note_value(self, message: Message) -> None:
        value = message.value() or b""
        if message.topic() == self._topics.heartbeats:
            self._book.note_beat(Heartbeat.model_validate_json(value))
            return
        if len(value) > DEFINITION_BYTES_MAX:
            logger.warning(
                "a definition of %d bytes is passed over, at most %d are taken", len(value),
                DEFINITION_BYTES_MAX,
            )
            return
        if ScheduleSets.is_key(message.key()):
            self._book.note_schedules(ScheduleSet.model_validate_json(value))
            return
        definition = Definition.model_validate_json(value)
        if self._old_definitions is None:
            self._book.note_definition(definition)
        else:
            self._old_definitions[definition.type] = definition

    def _note_old_definitions(self, consumer: Consumer) -> bool:
        """At the start the topic tells of former definitions first: only the last ones count. True
        once they are known."""
        place = TopicPartition(self._topics.definitions, 0)
        if consumer.position([place])[0].offset < self._definitions_end:
            return False
        found, self._old_definitions = self._old_definitions or {}, None
        for definition in found.values():
            self._book.note_definition(definition)
        return True

    def _on_error(self, error: KafkaError) -> Any:
        # Any trouble with the broker may have kept beats from us.
        self._book.note_deaf()
