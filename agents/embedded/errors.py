"""What can go wrong with the embedded broker, each with the way out in its message.

Owns: the exception types of this package. Refuses to know: how they are shown.
"""

from __future__ import annotations


class EmbeddedError(RuntimeError):
    """The embedded broker cannot be set up or run; the message says why and what to do."""


class JarError(EmbeddedError):
    """A pinned jar cannot be had, or what was downloaded is not what is pinned."""


class JavaError(EmbeddedError):
    """There is no Java that can run the broker."""


class PortInUseError(EmbeddedError):
    """Another process listens on the broker's port."""


class FolderInUseError(EmbeddedError):
    """Another live broker works in the same data folder."""


class StartError(EmbeddedError):
    """The broker process ended or was not ready in time; the message says why."""


class DamagedFolderError(StartError):
    """What is in the data folder cannot be read: it is damaged, or another Kafka wrote it."""
