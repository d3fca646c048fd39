"""Part: is every rule captured as a graph, and does the graph do what single launches do?"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.core import registry
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.types import Norm
from bench.workflows.gpu_check.setup import EngineRun, Job, Setup, load_net, make_spec, run_engine

EPS: dict[Norm, tuple[float, float]] = {
    "linf": (0.1, 0.2), "l2": (1.0, 3.0), "l1": (5.0, 15.0), "l0": (8.0, 24.0),
}  # fmt: skip


def list_jobs(setup: Setup) -> Iterator[Job]:
    """List a comparison for every rule in every norm.

    Args:
        setup: Device, images and sizes.

    Yields:
        Jobs.
    """
    for name in registry.names("attacks"):
        attack = None if name.endswith(":") else registry.find("attacks", name)
        if isinstance(attack, IterativeAttack) and not attack.rule.one_gradient:
            for norm in attack.norms:
                yield Job(f"{name} {norm}", partial(compare, setup, name, norm))


def compare(setup: Setup, name: str, norm: Norm) -> dict[str, Any]:
    """Run an attack from graphs and by single launches, and compare what it returns.

    The first comparison is on batches that stay full, so that both make the same passes and every
    bit can be asked for; single launches are compared with themselves, too, since a library may add
    in another order each time. In the second one examples leave and others follow: a graph then
    computes on more rows than there are, so that rounding may differ.

    Args:
        setup: Device, images and sizes.
        name: Registered name of the attack.
        norm: Norm of the ball.

    Returns:
        `captured`, `reason` where it was not, `equal` (every bit), `repeats` (single launches
        agree with themselves), `difference` (largest, of a pixel), and `refilled_steps_equal` and
        `refilled_difference` of the second comparison.
    """
    net, n = load_net(setup.device), setup.sizes.captured
    x = setup.x[:n]
    with torch.no_grad():
        y = net(x).argmax(1)
    params = {"steps": setup.sizes.steps}
    full = make_spec(name, norm, EPS[norm][:1], stop="never", params=params)
    refilled = make_spec(name, norm, EPS[norm], params=params)
    half = max(n // 2, 1)
    with _fixed_kernels():
        graph, eager, again = (
            run_engine(net, full, x, y, n, captures=which) for which in (True, False, False)
        )
        own, other = (
            run_engine(net, refilled, x, y, half, captures=which) for which in (True, False)
        )
    failures = graph.failures + own.failures
    steps = [run.result.first_success for run in (own, other)]
    return {
        "captured": setup.device.type == "cuda" and not failures,
        **({"reason": failures[0]} if failures else {}),
        "equal": _are_equal(graph, eager),
        "repeats": _are_equal(eager, again),
        "difference": _difference(graph.result.x_adv, eager.result.x_adv),
        "refilled_steps_equal": torch.equal(*steps),
        "refilled_difference": _difference(own.result.x_adv, other.result.x_adv),
    }


def _are_equal(one: EngineRun, other: EngineRun) -> bool:
    """Return whether images, steps and passes are equal to the bit."""
    fields = ("x_adv", "first_success", "forwards", "backwards")
    return all(
        torch.equal(getattr(one.result, field), getattr(other.result, field)) for field in fields
    )


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@contextlib.contextmanager
def _fixed_kernels() -> Iterator[None]:
    """Let cuDNN choose its kernels by rule, and only such as repeat their results."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
