"""Everything in the repository that is written by a program: `python -m tools.generate`.

Owns which files those are. Refuses to know facts of its own where the code has them: topics,
fields, tables, settings, transitions and queries are read from the modules that own them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tools.generate import asyncapi, grafana, json_schemas, reference, state_machine

ROOT: Final = Path(__file__).resolve().parents[2]
OWN_FOLDERS: Final = ("docs/schemas", "deploy/grafana/dashboards")
"""Folders in which nothing else may be."""


def render_all() -> dict[str, str]:
    """Path from the root -> text, of every generated file."""
    return {
        **json_schemas.render(),
        **grafana.render(),
        "docs/asyncapi.yaml": asyncapi.render(),
        "docs/REFERENCE.md": reference.render(),
        "docs/STATE_MACHINE.md": state_machine.render(),
    }


def stale(root: Path = ROOT) -> list[str]:
    """Paths whose file differs from what would be written, is missing, or should not be there."""
    wanted = render_all()
    differing = [
        path
        for path, text in wanted.items()
        if not (root / path).is_file() or (root / path).read_text(encoding="utf-8") != text
    ]
    there = {
        str(path.relative_to(root))
        for folder in OWN_FOLDERS
        for path in (root / folder).glob("*")
    }
    return sorted(differing + list(there - wanted.keys()))


def write_all(root: Path = ROOT) -> list[str]:
    """Bring all files up to date; gives the paths that changed."""
    wanted = render_all()
    changed = stale(root)
    for path in changed:
        if path in wanted:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(wanted[path], encoding="utf-8")
        else:
            (root / path).unlink()
    return changed
