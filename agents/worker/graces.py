"""How long code of users may take for what it is asked to do beside its jobs.

Owns these times, which are settings. Refuses to know what follows when one has passed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from tidemill.agents.settings import CANCEL_GRACE_SECONDS, CHILD_START_SECONDS

logger = logging.getLogger("tidemill.worker")


class Graces(NamedTuple):
    """Of one worker, in seconds."""

    #: From the word that an attempt shall stop to its end by force.
    cancel: float = CANCEL_GRACE_SECONDS
    #: From the start of a child process to its being ready, while the modules are loaded.
    child_start: float = CHILD_START_SECONDS


NO_GRACES: Final = Graces()


def tell_forced(job: Mapping[str, Any], graces: Graces) -> None:
    """A cancelled attempt did not stop by itself."""
    logger.warning(
        "job %s (%s) of user %s did not stop within %g s of its cancel "
        "(TIDEMILL_CANCEL_GRACE_SECONDS) and is ended by force",
        job["job_id"], job["type"], job["user_id"], graces.cancel,
    )
