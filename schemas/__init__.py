"""Contracts only: words, requests, events, internal records, topics, rows and metric names.

Owns what every part of Tidemill and every stranger may rely on. Refuses to know how anything is
decided, stored or moved: no Kafka client, no ClickHouse client and no clock is imported here.
"""

from typing import Final

from tidemill.schemas.native import prefer_compiled

SCHEMA_VERSION: Final = 1
"""Version of every record that Tidemill writes; readers refuse versions that they do not know."""

prefer_compiled(__name__, __path__)
