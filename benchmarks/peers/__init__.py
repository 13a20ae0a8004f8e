"""The peers: job systems that Tidemill is measured against, each behind the `Program` protocol.

Owns: the list of them. Each peer is one module here plus its own sources in `sources/`, which are
copied to the cache, installed there from pinned versions, and run as they are.
"""

from __future__ import annotations

from benchmarks.peers.bullmq import BullMQ
from benchmarks.peers.graphile import Graphile
from benchmarks.peers.python_peers import celery, dramatiq, taskiq
from benchmarks.peers.river import River
from benchmarks.program import Program


def all_peers() -> list[Program]:
    """One new instance of each, fastest first."""
    return [River(), BullMQ(), Graphile(), taskiq(), dramatiq(), celery()]
