"""A few threads for the engine's own blocking calls.

Owns the pool. A loop's default pool is for others: handlers that call `asyncio.to_thread` may fill
it with calls that never return, and no outcome may wait for those.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

THREADS: Final = 4  # calls at once; each ends by itself within seconds

_POOL: Final = ThreadPoolExecutor(THREADS, thread_name_prefix="tidemill-aside")

T = TypeVar("T")


async def call_aside(function: Callable[[], T]) -> T:
    """What `function` returns or raises; the loop goes on meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(_POOL, function)
