"""What the checker found: violations by kind, the first of each kind with its job's story.

Owns wording and counting. Refuses to know any rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

SHOWN_PER_KIND: Final = 5  # violations printed of each kind: the rest are usually the same bug


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise. `story` is the job's events as lines, oldest first."""

    kind: str
    message: str
    story: tuple[str, ...] = ()


@dataclass(slots=True)
class Report:
    """Violations and the numbers that were checked; it is clean when nothing was violated."""

    counts: Counter[str] = field(default_factory=Counter)
    shown: dict[str, list[Violation]] = field(default_factory=dict)
    checked: dict[str, int] = field(default_factory=dict)

    def violate(self, kind: str, message: str, story: Iterable[str] = ()) -> None:
        """Note one violation; only the first few of a kind keep their story."""
        self.counts[kind] += 1
        shown = self.shown.setdefault(kind, [])
        if len(shown) < SHOWN_PER_KIND:
            shown.append(Violation(kind, message, tuple(story)))

    @property
    def is_clean(self) -> bool:
        return not self.counts

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of violation that were found."""
        return frozenset(self.counts)

    def text(self) -> str:
        """The whole report for a person."""
        lines = ["checked: " + ", ".join(f"{name} {n:,}" for name, n in self.checked.items())]
        if self.is_clean:
            return "\n".join([*lines, "no violation"])
        for kind, count in self.counts.most_common():
            lines.append(f"VIOLATED {kind}: {count:,} times")
            for violation in self.shown[kind]:
                lines.append(f"  - {violation.message}")
                lines.extend(f"      {line}" for line in violation.story)
        return "\n".join(lines)
