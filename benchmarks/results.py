"""The results file: one JSON document that every measurement adds its section to.

Owns reading, merging and writing it, whole or not at all. Refuses to know what the sections mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Version of the layout of the results file.
RESULTS_VERSION = 2
RESULTS_PATH = Path(__file__).resolve().parent / "results" / "latest.json"


def read_document(path: Path) -> dict[str, Any]:
    """What the file holds; an empty document when there is none or one of another layout."""
    if not path.exists():
        return {"results_version": RESULTS_VERSION}
    found: dict[str, Any] = json.loads(path.read_text())
    if found.get("results_version") != RESULTS_VERSION:
        return {"results_version": RESULTS_VERSION}
    return found


def write_sections(path: Path, sections: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces these sections and keeps the others; the whole document."""
    document = {**read_document(path), **sections}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(document, indent=2) + "\n")
    draft.replace(path)
    return document


def write_part(path: Path, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces one of the parts that are measured beside the comparison."""
    parts = {**read_document(path).get("parts", {}), name: dict(found)}
    return write_sections(path, {"parts": parts})


def now_text() -> str:
    """The instant of a measurement, as the file writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
