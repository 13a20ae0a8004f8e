"""Settings of the system, from the environment, each default with its reason."""

from __future__ import annotations

import os
from typing import Final

DATABASE_VARIABLE: Final = "PROMPT_RUNS_DATABASE"
DATABASE_URL: Final = "sqlite:///prompt_runs.db"  # one file, no server; Postgres by its own DSN
SECRET_VARIABLE: Final = "CRON_SECRET"  # the old system's name, so that its crons go on working
STATUS_ROWS_MAX: Final = 100  # of one answer of /api/jobs/status
MODEL_SECONDS: Final = 60.0  # one call; two calls (model and fallback) stay below the job's time
JOB_SECONDS: Final = 300.0  # and what waits for its turn at the local model
LOST_SECONDS: Final = JOB_SECONDS + 120.0  # no attempt lives so long; a rescue begins within it
LOCAL_AT_ONCE: Final = 2  # calls of the local model; it makes no more at once
ANSWER_TOKENS_MAX: Final = 200  # a whole answer of the schema below; local models stop there


def database_url() -> str:
    """A SQLAlchemy address."""
    return os.environ.get(DATABASE_VARIABLE) or DATABASE_URL
