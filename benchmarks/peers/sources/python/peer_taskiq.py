# mypy: ignore-errors
# Taskiq lives in the peers' own environment, so the types are unknown to the project's.
"""The Taskiq side of the benchmark: a broker with a no-op job, and how its producer sends."""

import asyncio
import os

from meter import job_ended
from taskiq_redis import ListQueueBroker

# Sends in flight at once; one at a time would measure round trips.
GATHERED = 200

# Without this, an idle worker dies of redis-py's own time-out on its blocking read.
broker = ListQueueBroker(url=os.environ["PEER_REDIS_URL"], socket_timeout=None)


@broker.task(task_name="noop")
async def noop(due_ns: int) -> None:
    job_ended(due_ns)


async def send_many(jobs: int) -> None:
    for first in range(0, jobs, GATHERED):
        await asyncio.gather(*(noop.kiq(0) for _ in range(min(GATHERED, jobs - first))))


async def send_one(due_ns: int) -> None:
    await noop.kiq(due_ns)
