"""Whether the libraries that are installed are ones that Tidemill can run on.

Owns the comparison of installed versions with this very installation's own requirements. Refuses to
import any library, to ask an index, and to judge what is not installed: an import says that better.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Sequence
from typing import Final

PACKAGE: Final = "tidemill"
ROLE_EXTRAS: Final = {
    "dev": "dev-stack", "stack": "dev-stack", "ledger": "ledger", "worker": "worker",
    "sink": "sink", "api": "api",
}
"""Command -> the extra that has its libraries."""

_REQUIREMENT: Final = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)(?:\[(?P<extras>[^]]*)\])?\s*\(?(?P<bounds>[^;()]*)\)?"
    r"(?:;(?P<marker>.*))?$"
)
_BOUND: Final = re.compile(r"^(>=|<=|==|!=|<|>)\s*([0-9][0-9.]*)$")
_EXTRA: Final = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_RELEASE: Final = re.compile(r"^v?(?:\d+!)?(\d+(?:\.\d+)*)")


class WrongVersion(ImportError):
    """A library is installed in a version that Tidemill does not run on."""


def check_installed(extra: str) -> None:
    """Raise WrongVersion for the libraries of this extra, with the command that mends it."""
    wrong = wrong_versions(extra)
    if wrong:
        told, mend = in_words(wrong)
        raise WrongVersion(
            f"this version of Tidemill does not run on {told}; install what it needs with: {mend}"
        )


def in_words(wrong: Sequence[tuple[str, str, str]]) -> tuple[str, str]:
    """What is installed of an answer of `wrong_versions`, and the command that mends it."""
    told = ", ".join(f"{name} {found}" for name, found, _ in wrong)
    needed = " ".join(f"'{name}{bounds}'" for name, _, bounds in wrong)
    return told, f"pip install {needed}"


def wrong_versions(extra: str) -> list[tuple[str, str, str]]:
    """Name, installed version and bounds of each library that does not fit; in order, once each."""
    wrong: dict[str, tuple[str, str, str]] = {}
    for name, bounds in _needed({extra}):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if found and not fits(found, bounds):
            wrong[name] = (name, found, bounds)
    return list(wrong.values())


def fits(found: str, bounds: str) -> bool:
    """Whether a version is within bounds such as `>=1.3,<2`; what cannot be read counts as fit."""
    release = _release(found)
    return release is None or all(
        _holds(release, bound) for bound in bounds.replace(" ", "").split(",") if bound
    )


def _holds(release: tuple[int, ...], bound: str) -> bool:
    match = _BOUND.match(bound)
    wanted = None if match is None else _release(match[2])
    if match is None or wanted is None:
        return True
    length = max(len(release), len(wanted))
    have, want = (each + (0,) * (length - len(each)) for each in (release, wanted))
    return {
        ">=": have >= want, "<=": have <= want, "==": have == want,
        "!=": have != want, "<": have < want, ">": have > want,
    }[match[1]]


def _release(version: str) -> tuple[int, ...] | None:
    match = _RELEASE.match(version)
    return None if match is None else tuple(int(part) for part in match[1].split("."))


def _needed(extras: set[str]) -> Iterator[tuple[str, str]]:
    """Name and bounds of all requirements of the base and of these extras, and of theirs."""
    try:
        requirements = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return  # run from a source folder that nobody installed: there is nothing to hold it to
    parsed = [match for each in requirements if (match := _REQUIREMENT.match(each)) is not None]
    known: set[str] = set()
    while extras - known:
        known |= extras
        for match in parsed:
            if match["name"] == PACKAGE and _is_wanted(match["marker"], known):
                extras |= set(re.findall(r"[A-Za-z0-9_-]+", match["extras"] or ""))
    for match in parsed:
        if match["name"] != PACKAGE and _is_wanted(match["marker"], known):
            yield match["name"], match["bounds"].strip()


def _is_wanted(marker: str | None, extras: set[str]) -> bool:
    extra = None if marker is None else _EXTRA.search(marker)
    return extra is None or extra[1] in extras
