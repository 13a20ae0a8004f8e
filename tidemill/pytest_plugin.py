"""The plugin of pytest: the fixture `tidemill_engine`.

Owns that fixture. Imports nothing of the engine until a test asks for the fixture, so that neither
a start of pytest nor an installation without the extra `testing` notices the plugin.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tidemill.testing import Engine


@pytest.fixture
def tidemill_engine() -> Iterator[Engine]:
    """An `Engine` on a virtual clock for this test; typed calls use it."""
    from tidemill.testing import Engine

    with Engine() as engine:
        yield engine
