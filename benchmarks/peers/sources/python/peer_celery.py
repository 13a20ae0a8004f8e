# mypy: ignore-errors
# Celery lives in the peers' own environment, so the types are unknown to the project's.
"""The Celery side of the benchmark: an app with a no-op job, and how its producer sends."""

import os

from celery import Celery
from meter import job_ended

app = Celery("bench", broker=os.environ["PEER_REDIS_URL"])
app.conf.update(
    task_ignore_result=True,  # No result backend: the least work per job that Celery can do.
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=64,
    worker_hijack_root_logger=False,
)


@app.task(name="noop")
def noop(due_ns: int) -> None:
    job_ended(due_ns)


async def send_many(jobs: int) -> None:
    for _ in range(jobs):
        noop.apply_async((0,))


async def send_one(due_ns: int) -> None:
    noop.apply_async((due_ns,))
