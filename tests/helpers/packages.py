"""Installed packages that a test makes: modules, and the metadata that pip would write."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path


def install_package(
    site: Path,
    name: str,
    files: Mapping[str, str],
    entry_points: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write a distribution of version 1.0 into a folder that is on Python's path."""
    record = []
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(content, encoding="utf-8")
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest())
        record.append(f"{path},sha256={digest.rstrip(b'=').decode()},{len(content)}")
    about = site / f"{name.replace('-', '_')}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "RECORD").write_text("\n".join(record) + "\n")
    sections = [
        "\n".join([f"[{group}]", *(f"{key} = {target}" for key, target in points.items())])
        for group, points in (entry_points or {}).items()
    ]
    (about / "entry_points.txt").write_text("\n".join(sections) + "\n")
