"""News: feeds are read each minute, and questions are answered from what they said.

Owns the name that a worker loads: `tidemill dev systems.news`. The jobs are in `jobs`, the web
application in `web`.
"""

from __future__ import annotations

from systems.news.jobs import ingest, refresh

__all__ = ["ingest", "refresh"]
