"""Real texts: the dialogues of the package chatterbot-corpus, in English.

Owns how they become articles. Refuses to make any up.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@cache
def articles() -> tuple[tuple[str, str], ...]:
    """(title, text): a dialogue's first line, and all that follows it."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    folder = files("chatterbot_corpus") / "data" / "english"
    found = []
    for path in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if path.name.endswith(".yml"):
            for lines in yaml.load(path.read_text(encoding="utf-8"), loader)["conversations"]:
                first, *rest = (str(line) for line in lines)
                found.append((first, " ".join(rest) or first))
    return tuple(dict(found).items())
