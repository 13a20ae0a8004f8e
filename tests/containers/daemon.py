"""Whether containers can be started here.

Owns one question to the Docker daemon. Refuses to know what would be started.
"""

from __future__ import annotations

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
    try:
        client = docker.from_env(timeout=PING_SECONDS)
    except (DockerException, OSError) as error:
        return f"no Docker daemon answers ({error})"
    client.close()
    return None
