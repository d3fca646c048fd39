"""Where a number comes from: versions, device, git commit, the user's files, fingerprint of the
model."""

import hashlib
import inspect
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import programs
from bench.entries import Suite

PACKAGES = (
    "robustness-bench", "torch", "torchvision", "torchattacks", "numpy", "scipy", "pandas",
    "pyarrow", "scikit-learn", "safetensors", "matplotlib", "seaborn", "foolbox",
    "adversarial-robustness-toolbox", "pyautoattack", "timm", "transformers",
)  # fmt: skip


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and platform: what a reader needs to rebuild the environment."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": device_name(device) if device.type == "cuda" else "",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "git": git_commit(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


def requirements() -> list[str]:
    """Everything that is installed here but bench itself, "name==version" each, sorted: the lines
    of a file that `pip install -r` makes this environment again from."""
    found = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    found.pop("robustness-bench", None)  # of which `git_commit` tells more
    return sorted((f"{name}=={version}" for name, version in found.items() if name), key=str.lower)


def own_files(suite: Suite) -> dict[str, str]:
    """sha256 of each file that the suite names beside itself, code, programs and weights, by that
    name. What such code imports or reads is not among them."""
    names = [suite.data.name, *(e.name for e in suite.models), *(e.name for e in suite.attacks)]
    code = [name.rpartition(":")[0] for name in names]
    weights = [str(entry.weights) for entry in suite.models]
    models = [entry.name for entry in suite.models if programs.named(entry.name)]
    named = {*(name for name in code if name.endswith(".py")), *weights, *models}
    there = [name for name in sorted(named) if (suite.base / name).is_file()]
    return {name: hashlib.sha256((suite.base / name).read_bytes()).hexdigest() for name in there}


def relative(folder: Path) -> str:
    """A folder as seen from the working directory, so that no machine's own path is kept."""
    try:
        return Path(os.path.relpath(folder)).as_posix()
    except ValueError:  # on another drive of Windows
        return folder.name


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor()


def git_commit() -> dict[str, Any] | None:
    """The commit of bench's own checkout and whether it was changed; None outside a checkout."""
    root = Path(__file__).parents[1]
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


def _source(kind: type) -> str:
    if kind.__module__.startswith(("torch.", "torchvision.")):
        return ""  # the versions of those are in the provenance
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # a class typed at a prompt
        return ""


def fingerprint(model: nn.Module) -> str:
    """sha256 over what the model computes with: its text, the source of every class in it that is
    not torch's own, and every parameter and buffer, those outside its state_dict included."""
    digest = hashlib.sha256(repr(model).encode())
    sources = {_source(type(module)) for module in model.modules()}
    digest.update("\x1f".join(sorted(sources)).encode())
    tensors = {**dict(model.named_buffers()), **model.state_dict()}
    for key, value in sorted(tensors.items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
