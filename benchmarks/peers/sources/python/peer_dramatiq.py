# mypy: ignore-errors
# Dramatiq lives in the peers' own environment, so the types are unknown to the project's.
"""The Dramatiq side of the benchmark: a broker with a no-op actor, and how its producer sends."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from meter import job_ended

dramatiq.set_broker(RedisBroker(url=os.environ["PEER_REDIS_URL"]))


@dramatiq.actor
def noop(due_ns: int) -> None:
    job_ended(due_ns)


async def send_many(jobs: int) -> None:
    for _ in range(jobs):
        noop.send(0)


async def send_one(due_ns: int) -> None:
    noop.send(due_ns)
