"""The schedules of the chaos run, as the checker is told of them.

Owns the table alone: `clockwork` declares them, and the checker holds announcements against
it. Who imports this module declares nothing.
"""

from __future__ import annotations

from typing import Any, Final

PLANS: Final[dict[str, dict[str, Any]]] = {
    "chaos.each": {"every_ms": 1_000, "overlap": "allow", "catch_up": "all"},
    "chaos.skips": {
        "every_ms": 2_000, "overlap": "skip", "catch_up": "last", "is_first_now": True,
    },
    "chaos.queues": {"every_ms": 3_000, "overlap": "queue_all", "catch_up": "all"},
    "chaos.one_waits": {"every_ms": 2_000, "overlap": "queue_one", "catch_up": "none"},
    "chaos.gives_way": {
        "every_ms": 4_000, "overlap": "cancel_old", "catch_up": "last", "is_first_now": True,
    },
}
"""By name: what is checked of each."""
