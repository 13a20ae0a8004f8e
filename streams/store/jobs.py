"""The jobs of a partition: living ones, dead letters, and what is remembered of ended ones.

Owns the jobs' rows and when a job is packed or forgotten. Refuses to know which change is legal and
what follows from one.
"""

from __future__ import annotations

from typing import Final

from tidemill.schemas.batch_builder import BatchBuilder
from tidemill.schemas.words import TERMINAL_STATES, State
from tidemill.streams.job import Job, JobKey
from tidemill.streams.store import rows
from tidemill.streams.store.finished import COUNT_MAX, Ended, FinishedJobs, digest_of
from tidemill.streams.store.position import Position
from tidemill.streams.store.table import AnyTable

DEDUPE_RETENTION_MS: Final = 86_400_000  # ms that an ended job's id is remembered, a day
DEAD_LETTERS_MAX: Final = 200_000  # dead letters a partition keeps whole, the oldest go first
DEAD_RETENTION_MS: Final = 30 * 86_400_000  # ms that a dead letter stays redrivable
FORGET_AT_ONCE_MAX: Final = 1_000  # rows forgotten in one group, so that no group grows long

_OVER: Final = TERMINAL_STATES


class Jobs(AnyTable):
    """Jobs by key. Rows: see `tidemill.streams.store.rows`."""

    def __init__(self, position: Position, dedupe_retention_ms: int) -> None:
        super().__init__(rows.KIND)
        self.live: dict[JobKey, Job] = {}  # and dead letters, which are kept whole
        self.finished = FinishedJobs()
        self.dead_letters: dict[JobKey, None] = {}
        self._position = position
        self._dedupe_retention_ms = dedupe_retention_ms
        self._before: dict[JobKey, Job | None] = {}
        self._forgotten: list[bytes] = []
        #: Dead letters that this group forgets.
        self.buried: list[JobKey] = []

    def ended(self, key: JobKey) -> Ended | None:
        """What is remembered of an ended job whose row is packed."""
        return self.finished.get(digest_of(key)) if len(self.finished) else None

    def put(self, before: Job | None, after: Job) -> None:
        """A decision made `after` of `before`."""
        key = after.key
        if before is None or before.is_refused:
            self._accept(before, key)
        elif key not in self._before:
            self._before[key] = before
        self.live[key] = after

    def _accept(self, before: Job | None, key: JobKey) -> None:
        """A request was accepted: of a new job, or the mended one of a refused job (`before`)."""
        if key not in self._before:
            self._before[key] = self.live.get(key)
        if before is not None:
            self.finished.take_up(rows.key_of(before.spec)[1:])

    # --- forgetting ---

    def forget(self, now_ms: int) -> bool:
        """Ended jobs beyond their retention or number, and dead letters beyond theirs."""
        forgotten = self.finished.forget_until(
            now_ms - self._dedupe_retention_ms, count_max=COUNT_MAX, at_most=FORGET_AT_ONCE_MAX
        )
        self._forgotten += forgotten
        self._forget_dead_letters(now_ms)
        return max(len(forgotten), len(self.buried)) >= FORGET_AT_ONCE_MAX

    def _forget_dead_letters(self, now_ms: int) -> None:
        for key in self.dead_letters:
            job = self.live[key]
            too_many = len(self.dead_letters) - len(self.buried) > DEAD_LETTERS_MAX
            if not too_many and (job.finished_at or 0) > now_ms - DEAD_RETENTION_MS:
                break
            if key in self._before:
                break  # this group changes it
            self.buried.append(key)
            if len(self.buried) >= FORGET_AT_ONCE_MAX:
                break

    # --- the group's end ---

    def has_changes(self) -> bool:
        return bool(self._before or self._forgotten or self.buried)

    def write(self, pages: BatchBuilder) -> None:
        for key in self._before:
            job = self.live[key]
            row_key = rows.key_of(job.spec)
            if job.state in _OVER and not job.is_dead_letter:
                pages.add(row_key, rows.ended_value(job))
                continue
            page = pages.place()
            rows.put_live(page.begin(row_key), job)
            page.end_value()
            if not page.end():
                pages.add(row_key, rows.live_value(job))
        for digest in self._forgotten:
            pages.add(rows.KIND + digest, None)
        for key in self.buried:
            dead = self.live[key]
            left = rows.ended_value(dead) if self._is_remembered(dead) else None
            pages.add(rows.key_of(dead.spec), left)

    def commit(self) -> None:
        """Ended jobs are packed too."""
        dead_letters = self.dead_letters
        for key in self._before:
            job = self.live[key]
            if job.is_dead_letter:
                dead_letters[key] = None
                continue
            if dead_letters:
                dead_letters.pop(key, None)
            if job.state in _OVER:
                self._remember(job)
                del self.live[key]
        for key in self.buried:
            self.dead_letters.pop(key, None)
            job = self.live.pop(key)
            if self._is_remembered(job):
                self._remember(job)
        self.finished.commit()
        self._drop_before()

    def _is_remembered(self, job: Job) -> bool:
        """Whether a repeat of an ended job must still be recognised."""
        return (job.finished_at or 0) > self._position.clock_ms - self._dedupe_retention_ms

    def _remember(self, job: Job) -> None:
        self.finished.add(
            rows.key_of(job.spec)[1:], job.finished_at or self._position.clock_ms,
            job.spec.fingerprint, job.state, job.is_refused,
        )

    def rollback(self) -> None:
        for key, job in self._before.items():
            if job is None:
                self.live.pop(key, None)
            else:
                self.live[key] = job
        self.finished.rollback()
        self._drop_before()

    def _drop_before(self) -> None:
        self._before = {}
        self._forgotten = []
        self.buried = []

    # --- restore ---

    def load(self, key: bytes, value: bytes) -> None:
        row = rows.read_job(value)
        if isinstance(row, Ended):
            self.finished.add(key[1:], *row)
        else:
            self.live[row.key] = row

    def loaded(self) -> None:
        self.finished.sort()
        dead = [job for job in self.live.values() if job.state is State.FAILED]
        dead.sort(key=lambda job: job.finished_at or 0)
        self.dead_letters = {job.key: None for job in dead}
