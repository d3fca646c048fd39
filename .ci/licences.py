"""Names and licences of everything that an install of bench brings; 1 if one is not known to do.

    python .ci/licences.py [EXTRA ...]

Reads what the installed packages say of themselves, from bench's own requirements on, so that it
lists what really lies there; the network is not asked.
"""

import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "robustness-bench"
FREE = (
    "MIT", "BSD", "0BSD", "Apache", "ISC", "Zlib", "PSF", "Python Software Foundation", "MPL",
    "Mozilla Public License", "LGPL", "Lesser General Public", "CC0", "BSL-1.0", "Unlicense",
    "HPND",
)  # fmt: skip
"""Permissive licences, and those whose duties end at the file or the library itself. The GPL is
none of them: what is imported together would have to be given under it."""
VENDOR = ("nvidia-", "cuda-")
"""NVIDIA's own, proprietary and redistributable; there only with torch's build for CUDA."""


def brought(
    name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]
) -> Iterator[metadata.Distribution]:
    """The distribution `name` with its extras, and all that it requires here.

    A distribution comes once for each set of extras: one of bench's extras may name others of them.
    """
    key = canonicalize_name(name), extras
    if key in seen:
        return
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:  # for another platform, or an extra that is not installed
        return
    seen.add(key)
    yield found
    for line in found.requires or []:
        wanted = Requirement(line)
        here = {"", *extras}
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": e}) for e in here):
            yield from brought(wanted.name, frozenset(wanted.extras), seen)


def licence(found: metadata.Distribution) -> str:
    """What a package says of its licence: the expression, else the classifiers, else free text."""
    about = found.metadata
    classified = [
        text.rpartition(" :: ")[2]
        for text in about.get_all("Classifier") or []
        if text.startswith("License :: ")
    ]
    told = about.get("License-Expression") or ", ".join(classified) or about.get("License") or ""
    return (told.strip().splitlines() or [""])[0][:120]


def objection(name: str, told: str) -> str:
    """Why a licence will not do; empty if it will."""
    if name.startswith(VENDOR):
        return ""
    if not told:
        return "says nothing of its licence"
    words = told.replace("Lesser General Public", "LGPL").replace("LGPL", "lesser")
    if "GPL" in words or "General Public" in words:
        return "GPL"
    return "" if any(free in told for free in FREE) else "not on the list"


def main(extras: list[str]) -> int:
    bad = []
    found = brought(ROOT, frozenset(extras), set())
    by_name = {canonicalize_name(each.metadata["Name"]): each for each in found}
    for name, each in sorted(by_name.items()):
        told = licence(each)
        if name == ROOT:
            continue
        print(f"{name:32} {each.version:20} {told or '-'}")
        if why := objection(name, told):
            bad.append(f"{name}: {why}: {told or '-'}")
    for line in bad:
        print(f"licences: {line}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
