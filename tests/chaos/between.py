"""What partitions told each other: each forward as it was and once, each message numbered once.

Owns a reader of its own for the envelope on `jobs.internal`, written from the documented headers
(docs/REFERENCE.md). Refuses to know any code of the engine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from tests.chaos.ledger_rows import Rows
from tests.chaos.rawlog import RawHeaders, RawRecord
from tests.chaos.report import Report

ORIGIN: Final = "tidemill-origin"
KIND: Final = "tidemill-kind"
FORWARDS: Final = ("request", "command")
MESSAGE: Final = "message"

Place = tuple[str, int, int]
"""(topic, partition, offset)"""


@dataclass(frozen=True, slots=True)
class _Envelope:
    kind: str
    origin: Place
    foreign: RawHeaders  # what lies before it


def _read(headers: RawHeaders) -> _Envelope | None:
    """It begins at the last origin: a stranger's headers may be called so too."""
    begins = [index for index, (name, _) in enumerate(headers) if name == ORIGIN]
    if not begins:
        return None
    ours = dict(headers[begins[-1] :])
    topic, _, rest = (ours[ORIGIN] or b"").decode("utf-8", "replace").partition("/")
    partition, _, number = rest.partition("/")
    kind = (ours.get(KIND) or b"").decode("utf-8", "replace")
    if kind not in (*FORWARDS, MESSAGE) or not partition.isdecimal() or not number.isdecimal():
        return None
    return _Envelope(kind, (topic, int(partition), int(number)), headers[: begins[-1]])


class Between:
    """Folds `jobs.internal`, then watches `jobs.requested` go by, then looks at the rows."""

    def __init__(self, report: Report, internal_topic: str, requested_topic: str) -> None:
        self.report = report
        self.records = 0
        self._internal = internal_topic
        self._requested = requested_topic
        self._seen: set[tuple[Place, bytes | None]] = set()
        self._forwards: dict[Place, tuple[RawRecord, RawHeaders]] = {}
        self._numbers: dict[int, set[int]] = defaultdict(set)  # by sender
        self._last: dict[tuple[int, int], int] = {}  # by sender and receiver
        self._ends: dict[int, int] = {}  # last offset by receiver

    def feed(self, record: RawRecord) -> None:
        """One record of `jobs.internal`, in the order of its partition."""
        self.records += 1
        self._ends[record.partition] = record.offset
        if record.has_odd_headers:
            return  # this client cannot give any of its headers
        place = f"{record.topic}[{record.partition}]{record.offset}"
        found = _read(record.headers)
        if found is None:
            self.report.violate("internal_unreadable", f"{place}: {record.headers!r:.200}")
        elif found.kind == MESSAGE:
            self._feed_message(record, found, place)
        else:
            # Of an outcome record several requests may be born.
            is_own = found.origin[0] == self._requested
            once = (found.origin, None if is_own else record.value)
            if once in self._seen:
                self.report.violate("forwarded_twice", f"{place}: {found.origin} came before")
            self._seen.add(once)
            if is_own:
                self._forwards[found.origin] = (record, found.foreign)

    def _feed_message(self, record: RawRecord, found: _Envelope, place: str) -> None:
        _, sender, number = found.origin
        if number in self._numbers[sender]:
            self.report.violate("message_twice", f"{place}: {number} of partition {sender}")
        self._numbers[sender].add(number)
        pair = (sender, record.partition)
        if number < self._last.get(pair, 0):
            self.report.violate(
                "message_out_of_order", f"{place}: {number} of {sender} after {self._last[pair]}"
            )
        self._last[pair] = number

    def watch(self, requested: Iterable[RawRecord]) -> Iterator[RawRecord]:
        """The records as they are; those that were forwarded are compared with what was sent on."""
        for record in requested:
            forward = self._forwards.pop((record.topic, record.partition, record.offset), None)
            if forward is not None:
                self._compare(record, *forward)
            yield record
        for topic, partition, offset in self._forwards:
            self.report.violate("forward_invented", f"{topic}[{partition}]{offset}: nobody sent it")

    def _compare(self, record: RawRecord, forward: RawRecord, foreign: RawHeaders) -> None:
        # Headers with a name that is no text are sent on with another one, which this client reads.
        sent_on = record.headers if record.has_odd_headers else foreign
        was = (record.key, record.value, record.headers)
        sent = (forward.key, forward.value, sent_on)
        if was != sent:
            self.report.violate(
                "forward_changed",
                f"{record.topic}[{record.partition}]{record.offset}: {was!r:.200} became "
                f"{sent!r:.200}",
            )

    def check(self, rows: Rows) -> None:
        """The numbers of each sender have no gap, and all that was sent was taken."""
        for sender, numbers in self._numbers.items():
            told = rows.positions.get(sender, {}).get("sent", 0)
            if numbers != set(range(1, told + 1)):
                self.report.violate(
                    "message_lost", f"partition {sender} says {told}, there are {len(numbers)}"
                )
        for receiver, end in self._ends.items():
            applied = rows.positions.get(receiver, {}).get("applied", {}).get(self._internal)
            if applied is None or applied < end:
                self.report.violate(
                    "internal_not_taken", f"{self._internal}[{receiver}]{end}: applied {applied}"
                )
