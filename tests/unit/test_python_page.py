"""docs/PYTHON.md, looked at without running it: its code is Python, and imports what is public.

`tests/integration/test_python_page.py` runs it.
"""

from __future__ import annotations

import ast
import re

import pytest

import tidemill
from tests.tidy.sources import ROOT

BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs" / "PYTHON.md").read_text(encoding="utf-8"),
    re.DOTALL | re.MULTILINE,
)


def imported_from_tidemill(text: str) -> set[str]:
    """The names that a block takes from the package itself."""
    return {
        alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module == "tidemill"
        for alias in node.names
    }


def test_the_page_has_code() -> None:
    assert len(BLOCKS) > 10
    assert {"job", "Context"} <= set().union(*map(imported_from_tidemill, BLOCKS))


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_is_python_and_imports_what_is_public(number: int) -> None:
    assert imported_from_tidemill(BLOCKS[number]) <= set(tidemill.__all__)
