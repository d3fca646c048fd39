"""Describe where a number comes from: versions, device, git commit, hashes of the user's files."""

import functools
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.core import registry, source_hash
from bench.engine.device import device_name, is_gpu, processor_name
from bench.models import serialized
from bench.suite.schema import Suite

PACKAGES = (
    "robustness-bench", "torch", "torchvision", "torchattacks", "numpy", "scipy", "pandas",
    "pyarrow", "scikit-learn", "safetensors", "matplotlib", "seaborn", "foolbox",
    "adversarial-robustness-toolbox", "pyautoattack", "timm", "transformers",
)  # fmt: skip
COMPUTING = {
    "torch": "torch", "torchvision": "torchvision", "torchattacks": "torchattacks",
    "foolbox": "foolbox", "adversarial-robustness-toolbox": "art", "pyautoattack": "pyautoattack",
    "timm": "timm", "transformers": "transformers",
}  # fmt: skip
"""Packages that compute a model's outputs or an attack's steps -> the module that they load."""


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Describe versions, device and platform: what a reader needs to rebuild the environment.

    Args:
        device: Device that the run computes on.

    Returns:
        The entry `environment` of a session in provenance.json.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": device_name(device) if is_gpu(device) else "",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "git": read_git_commit(),
    }


def list_loaded_packages() -> list[str]:
    """List the packages of COMPUTING that this process has loaded.

    Returns:
        Names of the packages.
    """
    return [name for name, module in COMPUTING.items() if module in sys.modules]


def describe_mixed_versions(sessions: Sequence[Any]) -> list[str]:
    """Say which packages had several versions in the sessions that made a run's records.

    Args:
        sessions: Those of provenance.json, in their order; damaged entries are ignored.

    Returns:
        A sentence for each package. Identities do not cover the version of torch, since the next
        one rarely changes a count.
    """
    known = [each for each in sessions if isinstance(each, Mapping) and each.get("parts") != 0]
    sentences = []
    for name in COMPUTING:
        versions = [version for each in known if (version := _used_version(each, name))]
        several = list(dict.fromkeys(versions))
        if len(several) > 1:
            sentences.append(
                f"The records of this folder were made with {name} {', then '.join(several)}: "
                "what two versions compute may differ in the last bits, and rarely in a count; "
                "--fresh makes all records with one."
            )
    return sentences


def _used_version(session: Mapping[str, Any], name: str) -> str | None:
    """Return the version of a package that a session computed with; None if it did not load it."""
    environment, loaded = session.get("environment"), session.get("loaded", ["torch"])
    packages = environment.get("packages") if isinstance(environment, Mapping) else None
    if not isinstance(packages, Mapping) or not isinstance(loaded, list) or name not in loaded:
        return None
    version = packages.get(name)
    return version if isinstance(version, str) else None


def list_requirements() -> list[str]:
    """List all installed packages except bench itself.

    Returns:
        Sorted lines "name==version", as `pip install -r` takes them.
    """
    versions = dict(_installed_packages())
    versions.pop("robustness-bench", None)  # see `read_git_commit`
    return sorted(
        (f"{name}=={version}" for name, version in versions.items() if name), key=str.lower
    )


@functools.cache
def _installed_packages() -> tuple[tuple[str, str], ...]:
    """Read name and version of every installed package, once: it takes a tenth of a second."""
    parsed = (each.metadata for each in metadata.distributions())
    return tuple((fields["Name"], fields["Version"]) for fields in parsed)


def hash_user_files(suite: Suite) -> dict[str, str]:
    """Hash the user's files that a suite refers to: code, programs and weights.

    Args:
        suite: The suite. If it uses any code of the user, the modules loaded from its folder are
            included; files that such code reads are not.

    Returns:
        Name relative to the suite's folder -> sha256.
    """
    entries = [
        ("datasets", suite.data.name),
        *(("models", each.name) for each in suite.models),
        *(("attacks", each.name) for each in suite.attacks),
        *(
            ("attacks", function.name)
            for each in suite.attacks
            if each.adaptation is not None
            for function in each.adaptation.functions
        ),
    ]
    names = [name for _, name in entries]
    code = [name.rpartition(":")[0] for name in names]
    weights = [str(entry.weights) for entry in suite.models]
    models = [entry.name for entry in suite.models if serialized.is_program_file(entry.name)]
    named = {*(name for name in code if name.endswith(".py")), *weights, *models}
    if not all(registry.built_in(kind, name) for kind, name in entries):
        named |= _loaded_files(suite.base.resolve())
    return hash_files(suite.base, sorted(named))


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Hash files.

    Args:
        folder: Folder of the files.
        names: Names relative to it; those of no file are ignored.

    Returns:
        Name -> sha256, 64 hexadecimal digits.
    """
    existing = [name for name in names if (folder / name).is_file()]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in existing}


def _loaded_files(folder: Path) -> set[str]:
    """List the files in a folder from which the user's modules were loaded."""
    sources = (source_hash.module_file(module) for module in [*sys.modules.values()])
    files = {file.resolve() for file in sources if file is not None and source_hash.is_own(file)}
    return {f.relative_to(folder).as_posix() for f in files if f.is_relative_to(folder)}


def relative_path(folder: Path) -> str:
    """Express a folder relative to the working directory, so that no absolute path is stored.

    Args:
        folder: Any folder.

    Returns:
        The relative path; on another drive of Windows the folder's name.
    """
    try:
        return Path(os.path.relpath(folder)).as_posix()
    except ValueError:  # on another drive of Windows
        return folder.name


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def read_git_commit() -> dict[str, Any] | None:
    """Read the commit of bench's checkout.

    Returns:
        `commit`, and whether files were `changed` since; None outside a checkout.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
