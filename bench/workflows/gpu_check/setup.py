"""What the parts of a GPU check share: device, images, sizes, time, and LeNet."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts.attack import AttackSpec
from bench.core.rng import seed_global
from bench.engine import stream
from bench.engine.cuda_graphs import CaptureFailures, KeptGraphs, keep_graphs
from bench.engine.float32_precision import allow_tf32
from bench.engine.stream_result import StreamResult
from bench.models.published_weights import WEIGHTS

NET, DATA = "lenet", "mnist"


class Sizes(NamedTuple):
    """How large the parts are."""

    images: int
    """Images of the race."""
    rows: tuple[int, ...]
    """Rows a pass of bench in the race; the second is also run launch by launch."""
    batches: tuple[int, ...]
    """Batch sizes of the library in the race; the first runs on a share of the images."""
    share: int
    """That share is one in so many."""
    pgd_steps: int
    captured: int
    """Images of a capture."""
    steps: int
    """Steps of a captured attack."""
    calls: int
    """Calls of an attack between which memory is compared."""
    large: tuple[int, ...]
    """Batch sizes of the large network."""
    side: int
    """Height and width of its images."""
    robust: int
    """Images of AutoAttack."""
    ensemble: dict[str, int]
    """Parameters of AutoAttack."""


FULL = Sizes(
    images=10_000, rows=(2048, 8192, 16384), batches=(100, 1000, 5000, 10_000), share=8,
    pgd_steps=40, captured=64, steps=12, calls=6, large=(64, 256), side=224, robust=1000,
    ensemble={},
)  # fmt: skip
"""For a GPU: some five minutes on an H100, by estimate."""
TINY = Sizes(
    images=4, rows=(4, 2), batches=(2, 4), share=2, pgd_steps=2, captured=4, steps=2, calls=2,
    large=(1,), side=32, robust=2, ensemble={"steps": 2, "targets": 1, "queries": 2},
)  # fmt: skip
"""To rehearse the parts on a CPU."""


class Setup(NamedTuple):
    """Where and on what the parts run."""

    device: torch.device
    x: Tensor
    """Images on the device, (n, 1, 28, 28), in [0, 1]."""
    y: Tensor
    """Labels, (n,), int64."""
    sizes: Sizes
    deadline: float
    """When the present part has to end, by `time.monotonic`."""

    def seconds_left(self) -> float:
        """Return the time of the present part that is left.

        Returns:
            Seconds; negative after its end.
        """
        return self.deadline - time.monotonic()


class Job(NamedTuple):
    """One measurement of a part."""

    name: str
    run: Callable[[], dict[str, Any]]
    """Returns what was found, as plain values by name."""


def load_setup(device: torch.device, data_dir: Path, sizes: Sizes) -> Setup:
    """Load the images.

    Args:
        device: Where they are placed.
        data_dir: Folder of the data sets.
        sizes: How large the parts are.

    Returns:
        The setup; its time has not begun.

    Raises:
        SuiteError: The images are missing or damaged.
    """
    data = registry.find("datasets", DATA).load(data_dir=data_dir, limit=sizes.images)
    x, y = data.read(0, len(data.labels)), data.labels
    return Setup(device, x.to(device), y.to(device), sizes, 0.0)


def load_net(device: torch.device, weights: str = "mnist") -> nn.Module:
    """Load LeNet.

    Args:
        device: Where it is placed.
        weights: Name of shipped weights.

    Returns:
        The model in evaluation mode, its parameters frozen.
    """
    net = build_net(NET, device)
    net.load_state_dict(load_file(WEIGHTS / f"{NET}-{weights}.safetensors"))
    return net


def build_net(name: str, device: torch.device) -> nn.Module:
    """Build a network with random weights, which are the same each time.

    Args:
        name: Registered name.
        device: Where it is placed.

    Returns:
        The model in evaluation mode, its parameters frozen.
    """
    with seed_global("gpu-check", name):  # initialisers know no other generator
        net: nn.Module = registry.find("models", name).build()
    return net.eval().requires_grad_(False).to(device)


def make_spec(name: str, norm: Any, eps: tuple[float, ...], **settings: Any) -> AttackSpec:
    """Describe an attack.

    Args:
        name: Registered name.
        norm: Norm of the ball.
        eps: Radii.
        **settings: Other fields; `params` holds the parameters that differ from their defaults.

    Returns:
        The spec.
    """
    attack = registry.find("attacks", name)
    params = attack.params(**settings.pop("params", {}))
    return AttackSpec(name=name, attack=attack, params=params, norm=norm, eps=eps, **settings)


class _NoCaptures(CaptureFailures):
    """Says that every capture has failed, so that steps are launched kernel by kernel."""

    def is_known(self, model: nn.Module, spec: AttackSpec) -> bool:
        return True


class EngineRun(NamedTuple):
    """What the engine returned, and why steps were not captured."""

    result: StreamResult
    failures: tuple[str, ...]


def run_engine(
    net: nn.Module,
    spec: AttackSpec,
    x: Tensor,
    y: Tensor,
    rows: int,
    *,
    captures: bool = True,
    accelerated: nn.Module | None = None,
) -> EngineRun:
    """Attack in full float32.

    Args:
        net: Model under attack.
        spec: An iterative attack.
        x: Images, (n, c, h, w), in [0, 1].
        y: Class to leave, (n,), int64.
        rows: Most rows a pass.
        captures: Whether steps may be captured as graphs.
        accelerated: Model to differentiate; None for `net`.

    Returns:
        The result and the failed captures.
    """
    kept = KeptGraphs()
    kept.failures = CaptureFailures() if captures else _NoCaptures()
    ids = torch.arange(len(x), device=x.device)
    with keep_graphs(kept), allow_tf32(False):
        result = stream.run_attack(net, spec, x, y, ids, rows, accelerated=accelerated)
    return EngineRun(result, tuple(each.reason for each in kept.failures.take_new()))
