"""Whether containers can be started here.

Owns one question to the Docker daemon. Refuses to know what would be started.
"""

from __future__ import annotations

import gc
import warnings
from functools import cache
from typing import Final

PING_SECONDS: Final = 3  # for the Docker daemon to answer


@cache
def no_daemon() -> str | None:
    """Why no container can be started here; None when a Docker daemon answers."""
    try:
        import docker
        from docker.errors import DockerException
    except ImportError as error:
        return f"the Docker client is not installed ({error})"
    with warnings.catch_warnings():
        # The client leaves the socket of a vain attempt to the collector, whose warning would meet
        # whatever test runs then.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            docker.from_env(timeout=PING_SECONDS).close()
        except (DockerException, OSError) as error:
            reason = f"no Docker daemon answers ({error})"
        else:
            return None
        gc.collect()
    return reason
