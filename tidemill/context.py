"""The context that a handler may take as its second argument.

Owns the public name. Refuses to hold logic: it is the worker's own class.
"""

from __future__ import annotations

from tidemill.agents.worker.context import Context

__all__ = ["Context"]
